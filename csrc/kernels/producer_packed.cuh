// Stage 2, input, for blocks of many query rows: as producer.cuh, but of packed queries nothing is promised, so there
// is one wait for the kernel ahead, at the start, and a loop over spans with a loop over tiles in it. A tile takes the
// tensor cores some thousand cycles, of two warpgroups, and this loop, of the warps beside them, has to be faster.
#pragma once

#include "producer.cuh"

namespace leanattn {

template <typename Traits>
__device__ __forceinline__ void produce_packed_tiles(const DecodeParams& params, const TileRing<Traits>& ring) {
  using Loader = typename Traits::Loader;
  ptx::grid_dependency_wait();
  const auto share = worker_share<Traits>(params, team_here());
  TileCursor<Traits> tiles(share.spans);
  ptx::named_barrier_sync<Traits::kThreads>(kRingBarrier);
  Loader loader(params, ring);
  if (tiles.done()) return announce_nothing(loader, ring);

  auto& smem = ring.smem;
  RingIndex stage, span_slot, landing;
  QuerySlot<Traits> query_slot;
  const int32_t most_in_flight = min(Traits::kMostInFlight, ring.num_stages);
  int32_t in_flight = 0;
  for (int32_t spans = 0; !tiles.done(); ++spans) {
    const SpanItem item = SpanItem::of<Traits>(params, tiles.span);
    const bool last_span = tiles.spans.last();
    loader.begin_span(item.origin, tiles.ahead + tiles.token, tiles.visible());
    for (bool first = true, last = false; !last; first = false) {
      const int32_t visible = tiles.visible();
      last = tiles.last();
      loader.locate(tiles.ahead + tiles.token, visible);
      ptx::mbarrier_wait(&smem.empty[stage.slot], stage.parity ^ 1);
      if (in_flight == most_in_flight) {
        ptx::mbarrier_wait(&smem.full[landing.slot], landing.parity);
        landing.advance(ring.num_stages);
      } else {
        ++in_flight;
      }
      loader.load(stage.slot, visible);
      if (first) {
        query_slot.wait(smem.empty, spans, ring.num_stages);
        Loader::load_query(params, ring, item.rows, query_slot.of(span_slot));
      }
      if (Loader::writes_notes()) {
        const int32_t flags = (last ? TileNote::kLast : 0) | (last && last_span ? TileNote::kEnd : 0);
        smem.notes[stage.slot] = {visible, flags, item.rows.first_row, item.causal_tokens};
        if (first) smem.origins[span_slot.slot] = item.origin;
      }
      loader.finish(stage.slot);
      query_slot.count_tile(last);
      stage.advance(ring.num_stages);
      tiles.token += Traits::kTileTokens;
    }
    // Only now: it would hold up the loads.
    if (Loader::writes_tasks()) {
      const auto task = task_of<Traits>(params, smem.pieces[span_slot.slot], share.cuts, tiles, item.rows);
      smem.tasks[span_slot.slot] = task;
      if (task.whole_item) ptx::mbarrier_arrive(&smem.task_there[span_slot.slot]);
    }
    if (!tiles.span.whole_item() && Loader::in_task_warp()) {
      announce_cut_span<Traits>(params, smem, span_slot.slot);
    }
    span_slot.advance(ring.num_stages);
    tiles.next_span();
  }
}

}  // namespace leanattn
