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
  float* first;       // [block_rows, Partial::kRow]
  int32_t to_second;  // from the first to the next one, in floats
  int32_t stride;     // from the second to the third, and so on
  int32_t count;

  // `count` neighbours from number `begin` of the item on.
  __device__ __forceinline__ static PartialList of(const DecodeParams& p, const CutItem& cut, int32_t begin,
                                                   int32_t count) {
    const auto floats = int32_t(p.partial_floats());
    const int32_t slot = cut.slot(begin);
    return {p.workspace.partials + int64_t{slot} * floats, (cut.slot(begin + 1) - slot) * floats, 2 * floats, count};
  }
  // The results of all groups of an item.
  __device__ __forceinline__ static PartialList of_groups(const DecodeParams& p, const CutItem& cut,
                                                          const MergeGroups& groups) {
    const auto floats = int32_t(p.partial_floats());
    const int64_t slot = group_slot(p.workers, cut.first_worker, 0);
    return {p.workspace.partials + slot * floats, floats, floats, groups.count};
  }
  // From the first partial to the i-th, in floats.
  __device__ __forceinline__ int32_t offset(int32_t i) const { return i == 0 ? 0 : to_second + (i - 1) * stride; }
};

// A merge of `kThreadRows` rows at a time, from `first_row` on: a thread has four columns of each. Memory takes longer
// to answer than all else, so everything is asked for before anything is used: O of as many partials as registers hold,
// and m and l, of which each of the threads of a row has one partial's. What they weigh goes round by shuffles.
// The sums are in token order and depend on nothing but the partials. A row beyond `rows` is a copy of the last one.
template <typename Traits, int kThreadRows, typename Emit>
__device__ __forceinline__ void merge_rows(const PartialList& list, int first_row, int rows, const Emit& emit) {
  constexpr int kRowThreads = Traits::kHeadDim / 4, kRowStep = Traits::kComputeThreads / kRowThreads;
  constexpr int kMaxList = 32, kListParts = kMaxList / kRowThreads;  // partials of a list; of those, a thread's
  constexpr int kDepth = Traits::kMergeLoads / kThreadRows;          // partials on their way
  const int thread = ptx::thread_index_here(), part_of_row = thread % kRowThreads;
  const float* row[kThreadRows];  // of the list's first partial
  float2 ml[kThreadRows];
  float factor[kThreadRows][kListParts];
  float4 sum[kThreadRows] = {}, o[kThreadRows][kDepth];

  const auto load = [&](int32_t begin) {
#pragma unroll
    for (int n = 0; n < kDepth; ++n) {
      if (begin + n >= list.count) break;
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        o[i][n] = *reinterpret_cast<const float4*>(row[i] + list.offset(begin + n) + part_of_row * 4);
      }
    }
  };
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    row[i] = list.first + min(first_row + thread / kRowThreads + i * kRowStep, rows - 1) * Partial<Traits>::kRow;
  }
  float2 part_ml[kThreadRows][kListParts];
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
    for (int p = 0; p < kListParts; ++p) {
      const int32_t n = part_of_row + p * kRowThreads;
      part_ml[i][p] = {kNoMaximum, 0.f};
      if (n < list.count) {
        part_ml[i][p] = *reinterpret_cast<const float2*>(row[i] + list.offset(n) + Traits::kHeadDim);
      }
    }
  }
  load(0);
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    ml[i] = {kNoMaximum, 0.f};
#pragma unroll
    for (int p = 0; p < kListParts; ++p) ml[i].x = fmaxf(ml[i].x, part_ml[i][p].x);
#pragma unroll
    for (int step = 1; step < kRowThreads; step *= 2) ml[i].x = fmaxf(ml[i].x, __shfl_xor_sync(~0u, ml[i].x, step));
#pragma unroll
    for (int p = 0; p < kListParts; ++p) {
      factor[i][p] = rescale_factor(part_ml[i][p].x, ml[i].x);
      ml[i].y += part_ml[i][p].y * factor[i][p];
    }
#pragma unroll
    for (int step = 1; step < kRowThreads; step *= 2) ml[i].y += __shfl_xor_sync(~0u, ml[i].y, step);
  }
#pragma unroll 1
  for (int32_t begin = 0; begin < list.count; begin += kDepth) {
    if (begin > 0) load(begin);
#pragma unroll
    for (int n = 0; n < kDepth; ++n) {
      if (begin + n >= list.count) break;
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        float f = __shfl_sync(~0u, factor[i][0], (begin + n) % kRowThreads, kRowThreads);
        if constexpr (kListParts == 2) {
          const float second = __shfl_sync(~0u, factor[i][1], (begin + n) % kRowThreads, kRowThreads);
          if (begin + n >= kRowThreads) f = second;
        }
        sum[i] = {sum[i].x + o[i][n].x * f, sum[i].y + o[i][n].y * f, sum[i].z + o[i][n].z * f,
                  sum[i].w + o[i][n].w * f};
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    const int r = first_row + thread / kRowThreads + i * kRowStep;
    if (r < rows) emit(r, part_of_row * 4, sum[i], ml[i]);
  }
}

// The merge: calls emit(row, column, O of four columns, (m, l) of the row) for every element of the item's rows.
template <typename Traits, typename Emit>
__device__ __forceinline__ void merge_partials(const PartialList& list, int rows, const Emit& emit) {
  constexpr int kPassRows = Traits::kComputeThreads / (Traits::kHeadDim / 4);  // of all threads, with a row each
  constexpr int kThreadRows = std::min(Traits::kHeads * Traits::kRows / kPassRows, Traits::kMergeLoads / 4);
  if (kThreadRows > 1 && rows <= kPassRows) return merge_rows<Traits, 1>(list, 0, rows, emit);
#pragma unroll 1
  for (int row = 0; row < rows; row += kThreadRows * kPassRows) {
    merge_rows<Traits, kThreadRows>(list, row, rows, emit);
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
  return {staging.memory, floats, floats, list.count};
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
