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
  constexpr int kMergeRows = Traits::SharedMemory::kMergeRows, kMergeColumns = Traits::SharedMemory::kMergeColumns;
  constexpr int kParts = Traits::kWarpColumns / kMergeColumns, kPartColumns = Loop::kThreadColumns / kParts;
  static_assert(kParts == 1 || Traits::kColumnWarps == 1);
  constexpr int kRowQuads = Traits::kHeadDim / kParts / 4;
  constexpr int kHeadThreads = 32 * Traits::kHeadWarps;
  const int thread = ptx::thread_index_here(), warp = thread / 32, lane = thread % 32;
  const int head = Traits::head_of_warp(warp), first_warp = head * Traits::kHeadWarps;
  loop.finish();
  auto output = loop.output();
#pragma unroll
  for (int first_row = 0; first_row < Traits::kRows; first_row += kMergeRows) {
    if (first_row >= rows) break;  // the padding of a small group
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      head_barrier<Traits>(head);                // nobody reads what was there before
      constexpr int kPassRows = kMergeRows / 4;  // of a thread
#pragma unroll
      for (int i = 0; i < kPassRows; ++i) {
        const int r = first_row / 4 + i;
        const int row = Loop::row(lane, r) - first_row;
        if (lane < 4) smem.warp_ml[warp][row] = {loop.state.m[r], loop.state.l[r]};
#pragma unroll
        for (int c = 0; c < kPartColumns; ++c) {
          smem.merge[warp][row][Loop::column(lane, c)] = output(r, part * kPartColumns + c);
        }
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
          const int from_warp = first_warp + w * Traits::kColumnWarps + column / kMergeColumns;
          const float4 from = *reinterpret_cast<const float4*>(&smem.merge[from_warp][row][column % kMergeColumns]);
          sum = {sum.x + from.x * warps.factor[w], sum.y + from.y * warps.factor[w], sum.z + from.z * warps.factor[w],
                 sum.w + from.w * warps.factor[w]};
        }
        const int in_head = part * kMergeColumns + column;
        result_row(head * rows + first_row + row, in_head, warps.ml).store(params, in_head, sum);
      }
    }
  }
}

}  // namespace leanattn
