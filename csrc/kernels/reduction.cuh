// Stage 3: the host-block reduction. Every span of a cut item leaves a partial (m, l, O) in the workspace and takes a
// ticket. Whoever takes the last ticket is the host block: all partials are there, and it merges them in token order.
// Nobody waits for another CTA, so it needs neither co-residency nor flags to clear; the ticket wraps to zero by
// itself. An item of many partials is merged in two levels, each with its own tickets: groups of neighbours first, then
// the groups (MergeGroups). The order of the sums is that of the tokens and not of arrival: the same bits on every run.
#pragma once

#include "debug_delay.cuh"
#include "output.cuh"
#include "ptx.cuh"
#include "softmax_state.cuh"
#include "traits.cuh"

namespace leanattn {

// A partial in the workspace, [block_rows, head_dim + kPartialRowExtra]: rows of O, each followed by its m and l.
template <typename Traits>
struct Partial {
  static constexpr int kRow = Traits::kHeadDim + kPartialRowExtra;
  float* memory;

  __device__ __forceinline__ static Partial at(const DecodeParams& p, int32_t slot) {
    return {p.workspace.partials + slot * p.partial_floats()};
  }
  __device__ __forceinline__ float4& o(int row, int column) const {
    return *reinterpret_cast<float4*>(memory + row * kRow + column);
  }
  __device__ __forceinline__ float2& ml(int row) const {
    return *reinterpret_cast<float2*>(memory + row * kRow + Traits::kHeadDim);
  }
  __device__ __forceinline__ void store(int row, int column, float4 value, float2 row_ml) const {
    o(row, column) = value;
    if (column == 0) ml(row) = row_ml;
  }
};

// A barrier of all threads that compute. Numbers from 1 on are those of single heads (warp_merge.cuh).
template <typename Traits>
__device__ __forceinline__ void compute_barrier() {
  ptx::named_barrier_sync<Traits::kComputeThreads>(1 + Traits::kHeads);
}

// True in exactly one of the `count` CTAs that take the ticket: the last one. All threads that compute call it.
template <typename Traits>
__device__ __forceinline__ bool arrives_last(const DecodeParams& p, int32_t ticket, int32_t count,
                                             typename Traits::SharedMemory& smem) {
  compute_barrier<Traits>();  // the whole partial is written before the ticket is taken
  if (threadIdx.x == 0) {
    smem.ticket = ptx::atomic_inc_acq_rel(p.workspace.tickets + ticket, uint32_t(count - 1));
  }
  compute_barrier<Traits>();
  return smem.ticket == uint32_t(count - 1);
}

// The partials of an item that are merged together, in token order. All but the first lie evenly.
struct PartialList {
  float* first;    // [block_rows, Partial::kRow]
  float* second;   // the next one
  int64_t stride;  // from the second to the third, and so on, in floats
  int32_t count;

  // `count` neighbours from number `begin` of the item on.
  __device__ __forceinline__ static PartialList of(const DecodeParams& p, const CutItem& cut, int32_t begin,
                                                   int32_t count) {
    const int64_t floats = p.partial_floats();
    float* const all = p.workspace.partials;
    return {all + cut.slot(begin) * floats, all + cut.slot(begin + 1) * floats, 2 * floats, count};
  }
  // The results of all groups of an item.
  __device__ __forceinline__ static PartialList of_groups(const DecodeParams& p, const CutItem& cut,
                                                          const MergeGroups& groups) {
    const int64_t floats = p.partial_floats();
    float* const first = p.workspace.partials + group_slot(p.workers, cut.first_worker, 0) * floats;
    return {first, first + floats, floats, groups.count};
  }
  __device__ __forceinline__ float* operator[](int32_t i) const { return i == 0 ? first : second + (i - 1) * stride; }
};

// The merge: calls emit(row, column, O of four columns, (m, l) of the row) for every element of the item's rows. First
// m of all partials, then the sums, strictly in token order: where the partials are read from, which depends on the CTA
// that comes last, must not change a bit. A row that the item does not have is a copy of its last one.
template <typename Traits, typename Emit>
__device__ __forceinline__ void merge_partials(const PartialList& list, int rows, const Emit& emit) {
  constexpr int kRowQuads = Traits::kHeadDim / 4;
  constexpr int kRowStep = Traits::kComputeThreads / kRowQuads;
  // A thread has four columns of a row, and a few rows at a time: more would take registers from the tile loop.
  constexpr int kThreadRows = std::min(Traits::kHeads * Traits::kRows / kRowStep, 4);
  constexpr int kRow = Partial<Traits>::kRow;
  const int thread = ptx::thread_index_here(), column = thread % kRowQuads * 4;
#pragma unroll 1
  for (int thread_row = thread / kRowQuads; thread_row < rows; thread_row += kThreadRows * kRowStep) {
    int offset[kThreadRows];
    float2 ml[kThreadRows];
    float4 sum[kThreadRows] = {};
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      offset[i] = min(thread_row + i * kRowStep, rows - 1) * kRow;
      ml[i] = {list.first[offset[i] + Traits::kHeadDim], 0.f};
    }
    const float* part = list.second;
#pragma unroll 4
    for (int32_t n = 1; n < list.count; ++n, part += list.stride) {
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) ml[i].x = fmaxf(ml[i].x, part[offset[i] + Traits::kHeadDim]);
    }
    part = list.first;
    const float* next = list.second;
#pragma unroll 4
    for (int32_t n = 0; n < list.count; ++n, part = next, next += list.stride) {
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        const float4 o = *reinterpret_cast<const float4*>(part + offset[i] + column);
        const float2 part_ml = *reinterpret_cast<const float2*>(part + offset[i] + Traits::kHeadDim);
        const float f = rescale_factor(part_ml.x, ml[i].x);
        ml[i].y += part_ml.y * f;
        sum[i] = {sum[i].x + o.x * f, sum[i].y + o.y * f, sum[i].z + o.z * f, sum[i].w + o.w * f};
      }
    }
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      if (thread_row + i * kRowStep < rows) emit(thread_row + i * kRowStep, column, sum[i], ml[i]);
    }
  }
}

// Shared memory into which all partials are copied at once, while the ring is idle: the way to L2 is what costs time.
struct Staging {
  float* memory;
  int32_t floats;     // 0 while the ring is in use
  uint64_t* barrier;  // completes when the copies have landed
  uint32_t parity;
};

// The list in shared memory, or the list as it is if there is no room.
template <typename Traits>
__device__ __forceinline__ PartialList staged(const PartialList& list, int rows, Staging& staging) {
  const int32_t floats = rows * Partial<Traits>::kRow;
  if (list.count * floats > staging.floats) return list;
  Traits::Loader::stage_partials(list, floats, staging);
  ptx::mbarrier_wait(staging.barrier, staging.parity);
  staging.parity ^= 1;
  return {staging.memory, staging.memory + floats, floats, list.count};
}

// Stage 3 of a span whose partial is written. What ends in the last CTA of the item with
// 4. its output.
template <typename Traits>
__device__ __forceinline__ void reduce_partials(const DecodeParams& p, const SpanTask& task, Staging& staging,
                                                typename Traits::SharedMemory& smem) {
  const CutItem& cut = task.cut;
  const MergeGroups& groups = task.groups;
  const int32_t first_of_group = task.group * groups.size;
  const auto group_result = Partial<Traits>::at(p, group_slot(p.workers, cut.first_worker, task.group));
#pragma unroll 1
  for (bool top = groups.count == 1 || task.members == 1;; top = true) {
    const bool of_groups = top && groups.count > 1;
    const PartialList list =
        of_groups ? PartialList::of_groups(p, cut, groups) : PartialList::of(p, cut, first_of_group, task.members);
    const int32_t ticket = cut.first_worker + (of_groups ? groups.item_ticket() : first_of_group);
    debug_delay(p.debug, blockIdx.x, 4 * task.rows.seq + 2 * of_groups);
    if (!arrives_last<Traits>(p, ticket, list.count, smem)) return;
    debug_delay(p.debug, blockIdx.x, 4 * task.rows.seq + 2 * of_groups + 1);
    merge_partials<Traits>(staged<Traits>(list, task.rows.count, staging), task.rows.count,
                           [&](int row, int column, float4 o, float2 ml) {
                             if (top) {
                               store_output<Traits>(p, task.rows, row, column, o, ml);
                             } else {
                               group_result.store(row, column, o, ml);
                             }
                           });
    if (top) return;
  }
}

}  // namespace leanattn
