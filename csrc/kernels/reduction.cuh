// Stage 3: the host-block reduction. Every span of a cut item leaves a partial (m, l, O) in the workspace and takes a
// ticket. Whoever takes the last ticket is the host block: all partials are there, and it merges them in token order.
// Nobody waits for another CTA, so it needs neither co-residency nor flags to clear; the ticket wraps to zero by
// itself. The order of the merge is that of the tokens, not of arrival: the same bits on every run.
#pragma once

#include "copy.cuh"
#include "output.cuh"
#include "ptx.cuh"
#include "softmax_state.cuh"

namespace leanattn {

// A row of a partial: head_dim floats of O, then m and l, filled up to 16 bytes so that whole partials can be copied.
template <typename Traits>
constexpr int kPartialRow = Traits::kHeadDim + kPartialRowExtra;

// A partial in the workspace, [block_rows, kPartialRow].
template <typename Traits>
struct Partial {
  float* memory;

  __device__ __forceinline__ static Partial at(const DecodeParams& p, int32_t slot) {
    return {p.workspace.partials + slot * p.partial_floats()};
  }
  __device__ __forceinline__ float* row(int row) const { return memory + row * kPartialRow<Traits>; }
  __device__ __forceinline__ void store(int row_index, int column, float4 o, float2 ml) const {
    float* to = row(row_index);
    *reinterpret_cast<float4*>(to + column) = o;
    if (column == 0) *reinterpret_cast<float4*>(to + Traits::kHeadDim) = {ml.x, ml.y, 0.f, 0.f};
  }
};

// True in exactly one of the CTAs that share the item: the last one. All threads call it.
template <typename Traits>
__device__ __forceinline__ bool is_host_block(const DecodeParams& p, const CutItem& cut,
                                              typename Traits::SharedMemory& smem) {
  __syncthreads();  // the whole partial is written before the ticket is taken
  if (threadIdx.x == 0) {
    smem.ticket = ptx::atomic_inc_acq_rel(p.workspace.tickets + cut.first_worker, uint32_t(cut.partials - 1));
  }
  __syncthreads();
  return smem.ticket == uint32_t(cut.partials - 1);
}

// Shared memory in which the host block collects partials.
struct Staging {
  float* memory;
  int floats;
};

// Rows of some partials of an item in shared memory, each [rows, kPartialRow].
template <typename Traits>
struct StagedPartials {
  float* memory;
  int rows, count;

  // Four floats more than the rows take, so that neighbouring partials begin in different banks.
  __host__ __device__ static constexpr int stride(int rows) { return rows * kPartialRow<Traits> + 4; }
  __device__ __forceinline__ float* row(int n, int row) const {
    return memory + n * stride(rows) + row * kPartialRow<Traits>;
  }
};

// Starts to copy rows of the partials from number `first` on, a warp a partial. What costs time is the way to L2, so
// they are all requested at once.
template <typename Traits>
__device__ __forceinline__ void stage_partials(const DecodeParams& p, const CutItem& cut, int first, int first_row,
                                               const StagedPartials<Traits>& staged) {
  const int warp = ptx::thread_index_here() / 32, lane = ptx::thread_index_here() % 32;
  const int floats = staged.rows * kPartialRow<Traits>;
  for (int n = warp; n < staged.count; n += Traits::kWarps) {
    const float* from = Partial<Traits>::at(p, cut.slot(first + n)).row(first_row);
    float* to = staged.row(n, 0);
#pragma unroll 4
    for (int i = lane * 4; i < floats; i += 32 * 4) {
      copy_16_bytes(to + i, from + i);
    }
  }
  cute::cp_async_fence();
}

// m and l of `count` rows of the item, over all its partials, into smem.item_ml: a lane takes every 32nd partial of its
// warp's rows. The loads of all rows are under way together.
template <typename Traits>
__device__ __forceinline__ void merge_ml(const DecodeParams& p, const CutItem& cut, int first_row, int count,
                                         typename Traits::SharedMemory& smem) {
  constexpr int kWarpRows = kHostRows / Traits::kWarps;
  const int warp = ptx::thread_index_here() / 32, lane = ptx::thread_index_here() % 32;
  float m[kWarpRows], l[kWarpRows];
#pragma unroll
  for (int i = 0; i < kWarpRows; ++i) {
    m[i] = kMinusInfinity;
    l[i] = 0.f;
  }
#pragma unroll 2
  for (int n = lane; n < cut.partials; n += 32) {
    const Partial<Traits> partial = Partial<Traits>::at(p, cut.slot(n));
    float2 ml[kWarpRows];
#pragma unroll
    for (int i = 0; i < kWarpRows; ++i) {
      const int row = i * Traits::kWarps + warp;
      ml[i] = {kMinusInfinity, 0.f};
      if (row < count) {
        ml[i] = __ldcg(reinterpret_cast<const float2*>(partial.row(first_row + row) + Traits::kHeadDim));
      }
    }
#pragma unroll
    for (int i = 0; i < kWarpRows; ++i) {
      const float new_m = fmaxf(m[i], ml[i].x);
      l[i] = l[i] * rescale_factor(m[i], new_m) + ml[i].y * rescale_factor(ml[i].x, new_m);
      m[i] = new_m;
    }
  }
#pragma unroll
  for (int i = 0; i < kWarpRows; ++i) {
    float row_m = m[i];
#pragma unroll
    for (int step = 16; step > 0; step /= 2) row_m = fmaxf(row_m, __shfl_xor_sync(~0u, row_m, step));
    float row_l = l[i] * rescale_factor(m[i], row_m);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) row_l += __shfl_xor_sync(~0u, row_l, step);
    if (lane == 0) smem.item_ml[i * Traits::kWarps + warp] = {row_m, row_l};
  }
}

// Four columns of one row: O of the staged partials, re-scaled to the item's m, added to `sum` one after the other.
template <typename Traits>
__device__ __forceinline__ float4 sum_staged(const StagedPartials<Traits>& staged, int row, int column, float item_m,
                                             float4 sum) {
  constexpr int kBatch = 8;  // loads under way together
  const float* part = staged.row(0, row);
  for (int n = 0; n < staged.count; n += kBatch) {
    float4 o[kBatch];
    float factor[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i, part += StagedPartials<Traits>::stride(staged.rows)) {
      o[i] = {};
      factor[i] = 0.f;
      if (n + i < staged.count) {
        o[i] = *reinterpret_cast<const float4*>(part + column);
        factor[i] = rescale_factor(part[Traits::kHeadDim], item_m);
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      sum = {sum.x + o[i].x * factor[i], sum.y + o[i].y * factor[i], sum.z + o[i].z * factor[i],
             sum.w + o[i].w * factor[i]};
    }
  }
  return sum;
}

// The host block's work on kHostRows rows of the item at most. First m of all partials, then the sum, strictly in
// token order: how many partials `staging` holds at a time, which depends on the CTA that comes last, must not change a
// bit.
template <typename Traits>
__device__ __forceinline__ void merge_rows(const DecodeParams& p, const CutItem& cut, const ItemRows& rows,
                                           int first_row, const Staging& staging, typename Traits::SharedMemory& smem) {
  using Staged = StagedPartials<Traits>;
  constexpr int kRowQuads = Traits::kHeadDim / 4;  // a thread sums four columns of a row at a time
  constexpr int kThreadQuads = kHostRows * kRowQuads / Traits::kThreads;
  constexpr int kRowStep = Traits::kThreads / kRowQuads;
  static_assert(kThreadQuads * Traits::kThreads == kHostRows * kRowQuads);
  const int thread = ptx::thread_index_here(), thread_row = thread / kRowQuads, column = thread % kRowQuads * 4;
  const int count = min(kHostRows, rows.count - first_row);
  const int capacity = staging.floats / Staged::stride(count);

  float4 sum[kThreadQuads] = {};
  for (int first = 0; first < cut.partials; first += capacity) {
    const Staged staged{staging.memory, count, min(capacity, cut.partials - first)};
    stage_partials(p, cut, first, first_row, staged);
    if (first == 0) merge_ml<Traits>(p, cut, first_row, count, smem);
    ptx::cp_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int q = 0; q < kThreadQuads; ++q) {
      const int row = thread_row + q * kRowStep;
      if (row < count) sum[q] = sum_staged(staged, row, column, smem.item_ml[row].x, sum[q]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int q = 0; q < kThreadQuads; ++q) {
    const int row = thread_row + q * kRowStep;
    if (row < count) store_output<Traits>(p, rows, first_row + row, column, sum[q], smem.item_ml[row]);
  }
  __syncthreads();
}

template <typename Traits>
__device__ __forceinline__ void merge_partials(const DecodeParams& p, const CutItem& cut, const ItemRows& rows,
                                               const Staging& staging, typename Traits::SharedMemory& smem) {
  // Else the loop over partials would not end.
  static_assert(sizeof(Traits::SharedMemory::merge) / sizeof(float) >= StagedPartials<Traits>::stride(kHostRows));
  for (int row = 0; row < rows.count; row += kHostRows) merge_rows<Traits>(p, cut, rows, row, staging, smem);
}

}  // namespace leanattn
