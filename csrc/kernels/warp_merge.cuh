// End of a span: the warps of a head, each with the (m, l, O) of its own tokens, become one state.
#pragma once

#include "tile_loop.cuh"

namespace leanattn {

// m and l over all warps of a head, of a row of this pass, and what each warp's O is multiplied with to fit them.
template <typename Traits>
struct WarpFactors {
  float2 ml;
  float factor[Traits::kTokenWarps];

  __device__ __forceinline__ static WarpFactors of(const typename Traits::SharedMemory& smem, int first_warp, int row) {
    float2 warp_ml[Traits::kTokenWarps];
    WarpFactors result{{kNoMaximum, 0.f}, {}};
#pragma unroll
    for (int w = 0; w < Traits::kTokenWarps; ++w) {
      warp_ml[w] = smem.warp_ml[first_warp + w * Traits::kColumnWarps][row];
      result.ml.x = fmaxf(result.ml.x, warp_ml[w].x);
    }
#pragma unroll
    for (int w = 0; w < Traits::kTokenWarps; ++w) {
      result.factor[w] = rescale_factor(warp_ml[w].x, result.ml.x);
      result.ml.y += warp_ml[w].y * result.factor[w];
    }
    return result;
  }
};

// A barrier of the warps of one head.
template <typename Traits>
__device__ __forceinline__ void head_barrier(int head) {
  if constexpr (Traits::kHeadWarps == 1) {
    __syncwarp();
  } else {
    ptx::named_barrier_sync<32 * Traits::kHeadWarps>(1 + head);
  }
}

// Stores every element of the item's rows, `rows` a head, in what result_row(row, column, (m, l) of the row) returns,
// spread over the threads of the head. All threads that compute call it.
template <typename Traits, typename ResultRowOf>
__device__ __forceinline__ void merge_warps(TileLoop<Traits>& loop, typename Traits::SharedMemory& smem, int rows,
                                            const DecodeParams& params, const ResultRowOf& result_row) {
  using Loop = TileLoop<Traits>;
  constexpr int kRowQuads = Traits::kHeadDim / 4, kMergeRows = Traits::SharedMemory::kMergeRows;
  constexpr int kHeadThreads = 32 * Traits::kHeadWarps;
  const int thread = ptx::thread_index_here(), warp = thread / 32, lane = thread % 32;
  const int head = Traits::head_of_warp(warp), first_warp = head * Traits::kHeadWarps;
  loop.state.finish();
  auto output = loop.output();
#pragma unroll
  for (int first_row = 0; first_row < Traits::kRows; first_row += kMergeRows) {
    if (first_row >= rows) break;              // the padding of a small group
    head_barrier<Traits>(head);                // nobody reads what was there before
    constexpr int kPassRows = kMergeRows / 4;  // of a thread
#pragma unroll
    for (int i = 0; i < kPassRows; ++i) {
      const int r = first_row / 4 + i;
      const int row = Loop::row(lane, r) - first_row;
      if (lane < 4) smem.warp_ml[warp][row] = {loop.state.m[r], loop.state.l[r]};
#pragma unroll
      for (int c = 0; c < Loop::kThreadColumns; ++c) smem.merge[warp][row][Loop::column(lane, c)] = output(r, c);
    }
    head_barrier<Traits>(head);
    const int count = min(kMergeRows, rows - first_row);
#pragma unroll 1
    for (int i = thread % kHeadThreads; i < count * kRowQuads; i += kHeadThreads) {
      const int row = i / kRowQuads, column = i % kRowQuads * 4;
      const auto warps = WarpFactors<Traits>::of(smem, first_warp, row);
      float4 sum{};
#pragma unroll
      for (int w = 0; w < Traits::kTokenWarps; ++w) {
        const int part_warp = first_warp + w * Traits::kColumnWarps + column / Traits::kWarpColumns;
        const float4 part =
            *reinterpret_cast<const float4*>(&smem.merge[part_warp][row][column % Traits::kWarpColumns]);
        sum = {sum.x + part.x * warps.factor[w], sum.y + part.y * warps.factor[w], sum.z + part.z * warps.factor[w],
               sum.w + part.w * warps.factor[w]};
      }
      result_row(head * rows + first_row + row, column, warps.ml).store(params, column, sum);
    }
  }
}

}  // namespace leanattn
