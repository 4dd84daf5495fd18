// Stage 3: the host-block reduction. Every span of a cut item leaves a partial (m, l, O) in the workspace and takes a
// ticket. Whoever takes the last ticket is the host block: all partials are there, and it merges them in token order.
// Nobody waits for another CTA, so it needs neither co-residency nor flags to clear; the ticket wraps to zero by
// itself. The order of the merge is that of the tokens, not of arrival: the same bits on every run.
#pragma once

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
  __device__ __forceinline__ void store(int row, int column, float4 o, float2 ml) const {
    float* to = memory + row * kPartialRow<Traits>;
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

// Some partials of an item in shared memory, each [rows, kPartialRow]; kMergeRows rows of them at most.
template <typename Traits>
struct StagedPartials {
  // A lane a partial, in merge_ml.
  static constexpr int kMaxCount = 32;

  float* memory;
  int rows, count;

  // Four floats more than the partial: the (m, l) of a row then lie in different banks for different partials.
  __device__ __forceinline__ static int stride(int rows) { return rows * kPartialRow<Traits> + 4; }
  __device__ __forceinline__ float* row(int n, int row) const {
    return memory + n * stride(rows) + row * kPartialRow<Traits>;
  }
};

// Copies rows of the partials from number `first` on, a warp a partial. What costs time is the way to L2, so they are
// all requested at once. The copies bypass L1, which is not coherent.
template <typename Traits>
__device__ __forceinline__ void stage_partials(const DecodeParams& p, const CutItem& cut, int first, int first_row,
                                               const StagedPartials<Traits>& staged) {
  using Copy = cute::SM80_CP_ASYNC_CACHEGLOBAL<cute::uint128_t>;
  const int floats = staged.rows * kPartialRow<Traits>;
  const int warp = ptx::thread_index_here() / 32, lane = ptx::thread_index_here() % 32;
  for (int n = warp; n < staged.count; n += Traits::kWarps) {
    const float* from = Partial<Traits>::at(p, cut.slot(first + n)).memory + first_row * kPartialRow<Traits>;
    float* to = staged.row(n, 0);
#pragma unroll 4
    for (int i = lane * 4; i < floats; i += 32 * 4) {
      Copy::copy(*reinterpret_cast<const cute::uint128_t*>(from + i), *reinterpret_cast<cute::uint128_t*>(to + i));
    }
  }
  cute::cp_async_fence();
  ptx::cp_async_wait<0>();
  __syncthreads();
}

// Folds the staged (m, l) into those of the item's rows, a warp a row and a lane a partial, and leaves each partial's
// factor in place of its m.
template <typename Traits>
__device__ __forceinline__ void merge_ml(const StagedPartials<Traits>& staged, typename Traits::SharedMemory& smem) {
  const int warp = ptx::thread_index_here() / 32, lane = ptx::thread_index_here() % 32;
#pragma unroll
  for (int i = 0; i < kMergeRows / Traits::kWarps; ++i) {
    const int row = i * Traits::kWarps + warp;
    if (row >= staged.rows) break;
    const auto before = smem.item[row];
    float2* const part = reinterpret_cast<float2*>(staged.row(lane, row) + Traits::kHeadDim);
    const bool exists = lane < staged.count;
    const float2 ml = exists ? *part : float2{kMinusInfinity, 0.f};
    float m = fmaxf(before.m, ml.x);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) m = fmaxf(m, __shfl_xor_sync(~0u, m, step));
    const float factor = rescale_factor(ml.x, m);
    float l = ml.y * factor;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) l += __shfl_xor_sync(~0u, l, step);
    if (exists) part->x = factor;
    const float scale = rescale_factor(before.m, m);
    __syncwarp();  // all lanes have read smem.item[row]
    if (lane == 0) smem.item[row] = {m, before.l * scale + l, scale};
  }
  __syncthreads();
}

// Four columns of one row: the sum over the staged partials, times their factors, in token order.
template <typename Traits>
__device__ __forceinline__ float4 sum_staged(const StagedPartials<Traits>& staged, int row, int column, float4 sum) {
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
        factor[i] = part[Traits::kHeadDim];
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

// The host block's work on kMergeRows rows of the item at most: all partials, as many at a time as `staging` holds,
// re-scaled and summed in token order.
template <typename Traits>
__device__ __forceinline__ void merge_rows(const DecodeParams& p, const CutItem& cut, const ItemRows& rows,
                                           int first_row, const Staging& staging, typename Traits::SharedMemory& smem) {
  using Staged = StagedPartials<Traits>;
  constexpr int kRowQuads = Traits::kHeadDim / 4;  // a thread sums four columns of a row at a time
  constexpr int kThreadQuads = kMergeRows * kRowQuads / Traits::kThreads;
  constexpr int kRowStep = Traits::kThreads / kRowQuads;
  const int thread = ptx::thread_index_here(), thread_row = thread / kRowQuads, column = thread % kRowQuads * 4;
  const int count = min(kMergeRows, rows.count - first_row);
  const int capacity = min(Staged::kMaxCount, staging.floats / Staged::stride(count));

  if (thread < kMergeRows) smem.item[thread] = {kMinusInfinity, 0.f, 0.f};
  float4 sum[kThreadQuads] = {};
  for (int first = 0; first < cut.partials; first += capacity) {
    const Staged staged{staging.memory, count, min(capacity, cut.partials - first)};
    stage_partials(p, cut, first, first_row, staged);
    merge_ml(staged, smem);
#pragma unroll
    for (int q = 0; q < kThreadQuads; ++q) {
      const int row = thread_row + q * kRowStep;
      if (row >= count) break;
      const float scale = smem.item[row].scale;
      sum[q] = {sum[q].x * scale, sum[q].y * scale, sum[q].z * scale, sum[q].w * scale};
      sum[q] = sum_staged(staged, row, column, sum[q]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int q = 0; q < kThreadQuads; ++q) {
    const int row = thread_row + q * kRowStep;
    if (row >= count) break;
    store_output<Traits>(p, rows, first_row + row, column, sum[q], {smem.item[row].m, smem.item[row].l});
  }
  __syncthreads();
}

template <typename Traits>
__device__ __forceinline__ void merge_partials(const DecodeParams& p, const CutItem& cut, const ItemRows& rows,
                                               const Staging& staging, typename Traits::SharedMemory& smem) {
  for (int row = 0; row < rows.count; row += kMergeRows) merge_rows<Traits>(p, cut, rows, row, staging, smem);
}

}  // namespace leanattn
