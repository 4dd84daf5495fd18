// End of a span: the four warps, each with the (m, l, O) of its own tokens, become one state of the CTA.
#pragma once

#include "tile_loop_portable.cuh"

namespace leanattn {

// m and l of a row over all warps.
template <typename Traits>
__device__ __forceinline__ float2 merged_ml(const typename Traits::SharedMemory& smem, int row) {
  float m = kMinusInfinity, l = 0.f;
#pragma unroll
  for (int w = 0; w < Traits::kWarps; ++w) m = fmaxf(m, smem.warp_ml[w][row].x);
#pragma unroll
  for (int w = 0; w < Traits::kWarps; ++w) l += smem.warp_ml[w][row].y * rescale_factor(smem.warp_ml[w][row].x, m);
  return {m, l};
}

// Calls emit(row, column, O of four columns, (m, l) of the row) for every element of the item's `rows` rows, spread
// over the threads of the CTA. All threads call it; it ends with a barrier.
template <typename Traits, typename Emit>
__device__ __forceinline__ void merge_warps(TileLoop<Traits>& loop, typename Traits::SharedMemory& smem, int rows,
                                            const Emit& emit) {
  using Loop = TileLoop<Traits>;
  const int warp = threadIdx.x / 32;
  loop.state.finish();
#pragma unroll
  for (int r = 0; r < Loop::kThreadRows; ++r) {
    if (threadIdx.x % 4 == 0) smem.warp_ml[warp][Loop::row(r)] = {loop.state.m[r], loop.state.l[r]};
  }
  __syncthreads();

  auto output = loop.output();
#pragma unroll
  for (int r = 0; r < Loop::kThreadRows; ++r) {
    if (Loop::first_row(r) >= rows) break;
    const float2 ml = merged_ml<Traits>(smem, Loop::row(r));
    if (warp == 0 && threadIdx.x % 4 == 0) smem.span_ml[Loop::row(r)] = ml;
    const float factor = rescale_factor(loop.state.m[r], ml.x);
#pragma unroll
    for (int c = 0; c < Loop::kThreadColumns; ++c) output(r, c) *= factor;
  }

  constexpr int kQuads = Traits::kMergeColumns / 4;         // float4s of a row in a slice of columns
  constexpr int kSliceColumns = Traits::kMergeColumns / 4;  // a thread's columns in a slice: every fourth pair
#pragma unroll
  for (int slice = 0; slice < Traits::kHeadDim / Traits::kMergeColumns; ++slice) {
#pragma unroll
    for (int r = 0; r < Loop::kThreadRows; ++r) {
      if (Loop::first_row(r) >= rows) break;  // the padding of a small group
#pragma unroll
      for (int c = 0; c < kSliceColumns; c += 2) {
        float* to = &smem.merge[warp][Loop::row(r)][Loop::column(c)];
        const int from = slice * kSliceColumns + c;
        *reinterpret_cast<float2*>(to) = {output(r, from), output(r, from + 1)};
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < rows * kQuads; i += Traits::kThreads) {
      const int row = i / kQuads, column = i % kQuads * 4;
      float4 sum{};
#pragma unroll
      for (int w = 0; w < Traits::kWarps; ++w) {
        const float4 part = *reinterpret_cast<const float4*>(&smem.merge[w][row][column]);
        sum = {sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
      }
      emit(row, slice * Traits::kMergeColumns + column, sum, smem.span_ml[row]);
    }
    __syncthreads();
  }
}

}  // namespace leanattn
