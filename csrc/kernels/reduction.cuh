// Stage 3: the host-block reduction. Every span of a cut item leaves a partial (m, l, O) in the workspace and takes a
// ticket. Whoever takes the last ticket is the host block: all partials are there, and it merges them in token order.
// Nobody waits for another CTA, so it needs neither co-residency nor flags to clear; the ticket wraps to zero by
// itself. An item of many partials is merged in two levels, each with its own tickets: groups of neighbours first, then
// the groups (MergeGroups). The order of the sums is that of the tokens and not of arrival: the same bits on every run.
#pragma once

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

// True in exactly one of the `count` CTAs that take the ticket: the last one. All threads that compute call it.
template <typename Traits>
__device__ __forceinline__ bool arrives_last(const DecodeParams& p, int32_t ticket, int32_t count,
                                             typename Traits::SharedMemory& smem) {
  ptx::named_barrier_sync<Traits::kComputeThreads>();  // the whole partial is written before the ticket is taken
  if (threadIdx.x == 0) {
    smem.ticket = ptx::atomic_inc_acq_rel(p.workspace.tickets + ticket, uint32_t(count - 1));
  }
  ptx::named_barrier_sync<Traits::kComputeThreads>();
  return smem.ticket == uint32_t(count - 1);
}

// The partials of an item that are merged together: every `step`-th in token order.
template <typename Traits>
struct PartialList {
  const DecodeParams& params;
  CutItem cut;
  int32_t first, step, count;  // count is at most MergeGroups::kMaxMerged

  __device__ __forceinline__ Partial<Traits> operator[](int32_t i) const {
    return Partial<Traits>::at(params, cut.slot(first + i * step));
  }
  __device__ __forceinline__ int32_t floats() const { return int32_t(params.partial_floats()); }
};

// Shared memory for partials, into which they are copied all at once while the ring is idle; no capacity while it is
// not.
struct Staging {
  float* memory;      // [capacity, block_rows, Partial::kRow]
  int32_t capacity;   // partials
  uint64_t* barrier;  // completes when the copies have landed
  uint32_t parity;
};

// m and l of the item's rows over all partials of the list, and the factor of each partial's O: a lane a partial, a
// warp every fourth row. The rows of a warp are under way together.
template <typename Traits>
__device__ __forceinline__ void merge_ml(const PartialList<Traits>& list, int rows,
                                         typename Traits::SharedMemory& smem) {
  constexpr int kWarpRows = Traits::kRows / Traits::kWarps;
  static_assert(MergeGroups::kMaxMerged == 32);
  const int warp = ptx::thread_index_here() / 32, lane = ptx::thread_index_here() % 32;
  const Partial<Traits> partial = list[min(lane, list.count - 1)];
  float2 ml[kWarpRows];
#pragma unroll
  for (int i = 0; i < kWarpRows; ++i) {
    const int row = i * Traits::kWarps + warp;
    ml[i] = {kNoMaximum, 0.f};
    if (row < rows && lane < list.count) ml[i] = __ldcg(&partial.ml(row));
  }
#pragma unroll
  for (int i = 0; i < kWarpRows; ++i) {
    const int row = i * Traits::kWarps + warp;
    float m = ml[i].x;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) m = fmaxf(m, __shfl_xor_sync(~0u, m, step));
    const float factor = rescale_factor(ml[i].x, m);
    float l = ml[i].y * factor;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) l += __shfl_xor_sync(~0u, l, step);
    smem.factor(lane, row) = factor;
    if (lane == 0) smem.merged_ml[row] = {m, l};
  }
}

// The merge: calls emit(row, column, O of four columns, (m, l) of the row) for every element of the item's rows. First
// the factors, then the sum, strictly in token order: where the partials are read from, which depends on the CTA that
// comes last, must not change a bit. What costs time is the way to L2, so all that fits is requested at once.
template <typename Traits, typename Emit>
__device__ __forceinline__ void merge_partials(const PartialList<Traits>& list, int rows, Staging& staging,
                                               typename Traits::SharedMemory& smem, const Emit& emit) {
  constexpr int kRowQuads = Traits::kHeadDim / 4;
  constexpr int kRowStep = Traits::kComputeThreads / kRowQuads;
  constexpr int kThreadRows = Traits::kRows / kRowStep;  // four columns of each
  const int thread = ptx::thread_index_here(), thread_row = thread / kRowQuads, column = thread % kRowQuads * 4;
  float4 sum[kThreadRows] = {};
  const int32_t chunk = staging.capacity > 0 ? staging.capacity : list.count;
  for (int32_t first = 0; first < list.count; first += chunk) {
    const int32_t end = min(first + chunk, list.count);
    if (staging.capacity > 0) Traits::Loader::stage_partials(list, first, end, rows, staging);
    if (first == 0) {
      merge_ml(list, rows, smem);
      ptx::named_barrier_sync<Traits::kComputeThreads>();
    }
    // The first partial of an item has another place than those that follow it.
    const float* part = list[first].memory;
    const float* next = list[min(first + 1, list.count - 1)].memory;
    int64_t stride = int64_t{2} * list.step * list.floats();
    if (staging.capacity > 0) {
      ptx::mbarrier_wait(staging.barrier, staging.parity);
      staging.parity ^= 1;
      part = staging.memory;
      stride = list.floats();
      next = part + stride;
    }
    part += thread_row * Partial<Traits>::kRow + column;
    next += thread_row * Partial<Traits>::kRow + column;
#pragma unroll 4
    for (int32_t n = first; n < end; ++n, part = next, next += stride) {
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        const int row = thread_row + i * kRowStep;
        if (row >= rows) break;
        const float4 o = *reinterpret_cast<const float4*>(part + i * kRowStep * Partial<Traits>::kRow);
        const float f = smem.factor(n, row);
        sum[i] = {sum[i].x + o.x * f, sum[i].y + o.y * f, sum[i].z + o.z * f, sum[i].w + o.w * f};
      }
    }
    // Before the next chunk, or the next merge, overwrites what others still read.
    ptx::named_barrier_sync<Traits::kComputeThreads>();
  }
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    const int row = thread_row + i * kRowStep;
    if (row < rows) emit(row, column, sum[i], smem.merged_ml[row]);
  }
}

}  // namespace leanattn
