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
  const int thread = ptx::thread_index_here(), warp = thread / 32;
  const int lane_row = thread % 32 / 4, lane_column = thread % 4 * 2;  // in every 8 x 8 block of an accumulator
  loop.state.finish();
#pragma unroll
  for (int r = 0; r < Loop::kThreadRows; ++r) {
    if (thread % 4 == 0) smem.warp_ml[warp][Loop::first_row(r) + lane_row] = {loop.state.m[r], loop.state.l[r]};
  }
  __syncthreads();

  auto output = loop.output();
  constexpr int kRowQuads = Traits::kHeadDim / 4;
#pragma unroll
  for (int r = 0; r < Loop::kThreadRows; ++r) {
    const int first_row = Loop::first_row(r);
    if (first_row >= rows) break;  // the padding of a small group
    const float2 ml = merged_ml<Traits>(smem, first_row + lane_row);
    if (warp == 0 && thread % 4 == 0) smem.span_ml[first_row + lane_row] = ml;
    const float factor = rescale_factor(loop.state.m[r], ml.x);
    float* const to = &smem.merge[warp][lane_row][lane_column];
#pragma unroll
    for (int c = 0; c < Loop::kThreadColumns; c += 2) {
      *reinterpret_cast<float2*>(to + c / 2 * 8) = {output(r, c) * factor, output(r, c + 1) * factor};
    }
    __syncthreads();
    const int count = min(Traits::SharedMemory::kMergeRows, rows - first_row);
    for (int i = thread; i < count * kRowQuads; i += Traits::kThreads) {
      const int row = i / kRowQuads, column = i % kRowQuads * 4;
      float4 sum{};
#pragma unroll
      for (int w = 0; w < Traits::kWarps; ++w) {
        const float4 part = *reinterpret_cast<const float4*>(&smem.merge[w][row][column]);
        sum = {sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
      }
      emit(first_row + row, column, sum, smem.span_ml[first_row + row]);
    }
    __syncthreads();
  }
}

}  // namespace leanattn
