// Stage 2, the tiles of a span, with wgmma. While a warpgroup turns the scores S of a tile into weights P, the tensor
// cores multiply the weights and values of the tile ahead of it, and the scores of the other warpgroup:
//
//   tensor cores   Q K(t), P V(t - 1)      Q K(t + 1), P V(t)
//   warpgroup              softmax of S(t)             softmax of S(t + 1)
//
// So a stage is freed a tile late. Both warpgroups wait for the same tile, so they would multiply at the same time and
// then, while the tensor cores do nothing, both work on scores. They take turns: one asks for its products when the
// other one's are under way.
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

// The turns of two warpgroups that both have rows; otherwise nobody waits.
class Turns {
  static constexpr int kThreads = 2 * 128;
  static constexpr int kFirst = 8;  // the number of the first one's barrier; those below have other uses
  const bool both_;
  const int warpgroup_;

 public:
  // The first one's turn comes first.
  __device__ __forceinline__ Turns(bool both, int warpgroup) : both_(both), warpgroup_(warpgroup) {
    if (both_ && warpgroup_ == 1) ptx::named_barrier_arrive<kThreads>(kFirst);
  }
  __device__ __forceinline__ void wait() const {
    if (both_) ptx::named_barrier_sync<kThreads>(kFirst + warpgroup_);
  }
  // `last`: of the span. Nobody waits for what the second one gives then.
  __device__ __forceinline__ void give(bool last) const {
    if (both_ && !(last && warpgroup_ == 1)) ptx::named_barrier_arrive<kThreads>(kFirst + 1 - warpgroup_);
  }
};

// As that of tile_span.cuh.
template <typename Traits>
__device__ __forceinline__ int32_t fold_span(WgmmaLoop<Traits>& loop, const DecodeParams& params,
                                             const TileRing<Traits>& ring, const SpanOrigin& origin, RingIndex& stage) {
  auto& smem = ring.smem;
  const int rows = params.item_rows(origin.block, smem.notes[stage.slot].first_row);
  const int warpgroup = loop.warpgroup();
  if (!loop.has_rows(rows, warpgroup)) return pass_span(ring, stage);
  const Turns turns(loop.has_rows(rows, 1), warpgroup);
  // The stage of the tile ahead of this one. Ahead of the first one there is none, and its own values get the weights
  // of begin_span(), zeros: what is asked of the tensor cores must not depend on a branch.
  int ahead = stage.slot;
  while (true) {
    const TileNote note = smem.notes[stage.slot];
    const bool last = ptx::uniform(note.flags & TileNote::kLast);
    turns.wait();
    loop.begin_scores(ring.keys(stage.slot, 0));
    loop.begin_values(ring.values(ahead, 0));
    turns.give(last);
    const CausalRows causal{note.causal_tokens, params.inverse_group, note.first_row};
    const auto changes = ScoreChanges<Traits>::of(params, origin, 0, note.first_row, note.visible);
    loop.fold_scores(note.visible, causal, changes);
    if (ahead != stage.slot) ptx::mbarrier_arrive(&smem.empty[ahead]);
    if (last) {
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
