// Stage 2, input: the producer warps walk the CTA's share and keep the ring full. How a tile is brought is the
// loader's (loader_cp_async.cuh).
#pragma once

#include "tile_ring.cuh"
#include "worker_share.cuh"

namespace leanattn {

template <typename Traits>
__device__ __forceinline__ void produce_tiles(const DecodeParams& params, const WorkerShare& share,
                                              const TileRing<Traits>& ring) {
  typename Traits::Loader loader(params, ring);
  RingIndex stage, span_slot, landing;
  // No more than there are stages: further back, a stage's barrier may be a whole round on, and its parity the same.
  const int32_t most_in_flight = min(Traits::kMostInFlight, ring.num_stages);
  int32_t in_flight = 0;
  SpanCursor spans = share.spans;
  if (spans.done()) {
    if (Traits::Loader::writes_notes()) ring.smem.notes[0] = {0, TileNote::kNothing};
    loader.finish(0);
  }
  for (; !spans.done(); spans.next(), span_slot.advance(ring.num_stages)) {
    const Span span = spans.span();
    const ItemRows rows = ItemRows::of(params, span.seq, span.item);
    int32_t token = span.tile_begin * Traits::kTileTokens;
    const int32_t end = min(spans.line.tokens(span.seq), span.tile_end * Traits::kTileTokens);
    loader.begin_span(rows, token);
    for (bool first = true; token < end; token += Traits::kTileTokens, first = false) {
      const bool last = token + Traits::kTileTokens >= end;
      // The first round finds the stages empty: the phase before the first counts as complete.
      ptx::mbarrier_wait(&ring.smem.empty[stage.slot], stage.parity ^ 1);
      if (in_flight == most_in_flight) {
        ptx::mbarrier_wait(&ring.smem.full[landing.slot], landing.parity);
        landing.advance(ring.num_stages);
      } else {
        ++in_flight;
      }
      loader.load(stage.slot, token, end - token, first, span_slot.slot);
      if (Traits::Loader::writes_notes()) {
        const bool end_of_share = last && spans.last();
        ring.smem.notes[stage.slot] = {end - token, (first ? TileNote::kFirst : 0) | (last ? TileNote::kLast : 0) |
                                                        (end_of_share ? TileNote::kEnd : 0)};
      }
      // With the last tile: it would hold up the loads of the first ones.
      if (last && Traits::Loader::writes_tasks()) {
        ring.smem.tasks[span_slot.slot] = SpanTask::of(params, share.shares, blockIdx.x, span, rows);
      }
      loader.finish(stage.slot);
      stage.advance(ring.num_stages);
    }
  }
}

}  // namespace leanattn
