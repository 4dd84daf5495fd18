// Stage 2, input: the producer warps walk the CTA's share and keep the ring full. How a tile is brought is the
// loader's: cp.async from all lanes (loader_cp_async.cuh), or the copy engine of Hopper (loader_tma.cuh).
#pragma once

#include "tile_ring.cuh"
#include "worker_share.cuh"

namespace leanattn {

template <typename Traits>
__device__ __forceinline__ void produce_tiles(const DecodeParams& params, const typename Traits::Source& source,
                                              const WorkerShare& share, const TileRing<Traits>& ring) {
  typename Traits::Loader loader(params, source, ring);
  RingIndex stage, span_slot, landing;
  int32_t in_flight = 0;
  SpanCursor spans = share.spans;
  if (spans.done()) {
    if (Traits::Loader::writes_notes()) ring.smem.notes[0] = {0, TileNote::kNothing};
    loader.load_nothing(0);
  }
  for (; !spans.done(); spans.next(), span_slot.advance(ring.num_stages)) {
    const Span span = spans.span();
    const ItemRows rows = ItemRows::of(params, span.seq, span.item);
    int32_t token = span.tile_begin * Traits::kTileTokens;
    const int32_t end = spans.line.tokens(span.seq);
    loader.begin_span(rows, token);
    for (int32_t tile = span.tile_begin; tile < span.tile_end; ++tile, token += Traits::kTileTokens) {
      const bool first = tile == span.tile_begin, last = tile + 1 == span.tile_end;
      // The first round finds the stages empty: the phase before the first counts as complete.
      ptx::mbarrier_wait(&ring.smem.empty[stage.slot], stage.parity ^ 1);
      if (in_flight == Traits::kMostInFlight) {
        ptx::mbarrier_wait(&ring.smem.full[landing.slot], landing.parity);
        landing.advance(ring.num_stages);
      } else {
        ++in_flight;
      }
      if (Traits::Loader::writes_notes()) {
        const bool end_of_share = last && spans.last();
        ring.smem.notes[stage.slot] = {end - token, (first ? TileNote::kFirst : 0) | (last ? TileNote::kLast : 0) |
                                                        (end_of_share ? TileNote::kEnd : 0)};
        if (first) ring.smem.tasks[span_slot.slot] = SpanTask::of(params, share.shares, blockIdx.x, span, rows);
      }
      loader.load(stage.slot, token, end - token, first, span_slot.slot);
      stage.advance(ring.num_stages);
    }
  }
}

}  // namespace leanattn
