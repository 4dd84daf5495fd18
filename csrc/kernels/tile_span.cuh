// Stage 2, the tiles of a span, with mma.sync: each warp folds its tokens of every tile into its own (m, l, O).
#pragma once

#include "tile_loop.cuh"
#include "tile_ring.cuh"

namespace leanattn {

// From `stage`, where the span's first tile is. Leaves it at the last one, which the caller frees. Returns the flags of
// that one's note.
template <typename Traits>
__device__ __forceinline__ int32_t fold_span(TileLoop<Traits>& loop, const DecodeParams& params,
                                             const TileRing<Traits>& ring, const SpanOrigin& origin, RingIndex& stage) {
  const int32_t warp = threadIdx.x / 32;
  while (true) {
    ptx::mbarrier_wait(&ring.smem.full[stage.slot], stage.parity);
    const TileNote note = ring.smem.notes[stage.slot];
    const int32_t visible = note.visible - Traits::first_token_of_warp(warp);
    if (visible > 0) {
      const int32_t causal_tokens = Traits::kGeneral ? note.causal_tokens : params.causal_tokens;
      const CausalRows causal{causal_tokens, params.inverse_group, note.first_row};
      const auto changes = ScoreChanges<Traits>::of(params, origin, warp, note.first_row, visible);
      loop.fold_tile(ring.keys(stage.slot, warp), ring.value_columns(stage.slot, warp), ring.tile_scales(stage.slot),
                     visible, causal, changes);
    }
    if (note.flags & TileNote::kLast) return note.flags;
    ptx::mbarrier_arrive(&ring.smem.empty[stage.slot]);
    stage.advance(ring.num_stages);
  }
}

}  // namespace leanattn
