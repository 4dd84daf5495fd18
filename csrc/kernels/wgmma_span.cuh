// Stage 2, the tiles of a span, with wgmma. While a warpgroup turns the scores S of a tile into weights P, the tensor
// cores multiply the weights and values of the tile ahead of it, and the scores of the other warpgroup:
//
//   tensor cores   Q K(t), P V(t - 1)      Q K(t + 1), P V(t)
//   warpgroup              softmax of S(t)             softmax of S(t + 1)
//
// So a stage is freed a tile late.
#pragma once

#include "tile_ring.cuh"
#include "wgmma_loop.cuh"

namespace leanattn {

// Of a warpgroup without rows: lets the tiles pass.
template <typename Traits>
__device__ __forceinline__ int32_t pass_span(const TileRing<Traits>& ring, RingIndex& stage) {
  while (true) {
    ptx::mbarrier_wait(&ring.smem.full[stage.slot], stage.parity);
    const int32_t flags = ring.smem.notes[stage.slot].flags;
    if (flags & TileNote::kLast) return flags;
    ptx::mbarrier_arrive(&ring.smem.empty[stage.slot]);
    stage.advance(ring.num_stages);
  }
}

// As that of tile_span.cuh.
template <typename Traits>
__device__ __forceinline__ int32_t fold_span(WgmmaLoop<Traits>& loop, const DecodeParams& params,
                                             const TileRing<Traits>& ring, const SpanOrigin& origin, RingIndex& stage) {
  auto& smem = ring.smem;
  const int rows = ScoreChanges<Traits>::of(params, origin, 0, smem.notes[stage.slot].first_row, 0).rows();
  if (!loop.has_rows(rows)) return pass_span(ring, stage);
  // The stage of the tile ahead of this one. Ahead of the first one there is none, and its own values get the weights
  // of begin_span(), zeros: what is asked of the tensor cores must not depend on a branch.
  int ahead = stage.slot;
  while (true) {
    const TileNote note = smem.notes[stage.slot];
    loop.begin_scores(ring.keys(stage.slot, 0));
    loop.begin_values(ring.values(ahead, 0));
    const CausalRows causal{note.causal_tokens, params.inverse_group, note.first_row};
    const auto changes = ScoreChanges<Traits>::of(params, origin, 0, note.first_row, note.visible);
    loop.fold_scores(note.visible, causal, changes);
    if (ahead != stage.slot) ptx::mbarrier_arrive(&smem.empty[ahead]);
    if (ptx::uniform(note.flags & TileNote::kLast)) {
      loop.begin_values(ring.values(stage.slot, 0));
      loop.end_values();
      return note.flags;
    }
    ahead = stage.slot;
    stage.advance(ring.num_stages);
    ptx::mbarrier_wait(&smem.full[stage.slot], stage.parity);
  }
}

}  // namespace leanattn
