// Stage 2, input, of one span: its tiles, its queries, and what is to be done with its result.
#pragma once

#include "tickets.cuh"
#include "tile_cursor.cuh"
#include "tile_ring.cuh"

namespace leanattn {

// What is to be done with the current span. Of a batch-invariant call, `pieces` is where the rest of that is written.
template <typename Traits>
__device__ __forceinline__ SpanTask task_of(const DecodeParams& params, CutPieces& pieces, const Cuts& cuts,
                                            const TileCursor<Traits>& tiles, const ItemRows& rows) {
  if constexpr (Traits::kFixedPieces) {
    if (params.fixed_pieces.any()) {
      pieces = CutPieces::of(params.fixed_pieces, cuts.shares, params.teams, team_here(), tiles.span);
      return SpanTask::of_piece(pieces, tiles.span, rows, tiles.spans.last());
    }
  }
  auto task = SpanTask::of(params, cuts, tiles.span, rows, tiles.spans.last());
  if constexpr (Traits::kManyRows) {
    if (!task.whole_item) task.parts = MergeParts::of(rows.count, kMergeStepRows<Traits>, task.cut.partials);
  }
  return task;
}

// What the producer's threads keep from tile to tile.
template <typename Traits>
struct Producer {
  using Loader = typename Traits::Loader;

  const DecodeParams& params;
  const TileRing<Traits>& ring;
  const Cuts& cuts;
  TileCursor<Traits> tiles;
  Loader loader;
  SpanItem item{};  // of the current span
  RingIndex stage, span_slot, landing;
  QuerySlot<Traits> query_slot;
  int32_t in_flight = 0;  // tiles that have been asked for, and have not been seen to land
  int32_t begun = 0;      // spans

  __device__ __forceinline__ Producer(const DecodeParams& p, const TileRing<Traits>& r,
                                      const ShareOf<Spans<Traits>>& share)
      : params(p), ring(r), cuts(share.cuts), tiles(share.spans), loader(p, r) {
    find_item();
  }

  __device__ __forceinline__ void begin_span() {
    loader.begin_span(item.origin, tiles.ahead + tiles.token, tiles.visible());
    ++begun;
  }

  // What there is to know about the tile at the producer's place.
  __device__ __forceinline__ void write_note(bool last) {
    if (!Loader::writes_notes()) return;
    const int32_t flags = last ? TileNote::kLast | (tiles.spans.last() ? TileNote::kEnd : 0) : 0;
    ring.smem.notes[stage.slot] = {tiles.visible(), flags, item.rows.first_row, item.causal_tokens};
    if constexpr (Traits::kGeneral) {
      if (tiles.first) ring.smem.origins[span_slot.slot] = item.origin;
    }
  }
  // Where the last one is that has been asked for.
  __device__ __forceinline__ RingIndex last_tile() const { return stage.before(ring.num_stages); }
  __device__ __forceinline__ void pass_tile(bool last) {
    query_slot.count_tile(last);
    stage.advance(ring.num_stages);
  }

  // After the span's last tile, and no sooner: it would hold up the loads of the first ones. `announce_cut`: what is
  // done about the ticket of a cut item (tickets.cuh), given its slot, by the task's warp, or where rows are many by
  // all.
  template <typename Announce>
  __device__ __forceinline__ void end_span(const Announce& announce_cut) {
    write_task();
    if (!tiles.span.whole_item() && (Traits::kManyRows || Loader::in_task_warp())) announce_cut(span_slot.slot);
    span_slot.advance(ring.num_stages);
    tiles.next_span();
    find_item();
  }

  // The tiles of the current span that are left, and then all else. `promised`: the queries of the first span are
  // loaded by others.
  template <bool kPagedCache>
  __device__ __forceinline__ void load_span(bool promised) {
    if (tiles.first) begin_span();
    for (bool last = false; !last; tiles.advance()) {
      last = tiles.last();
      loader.template locate<kPagedCache>(tiles.ahead + tiles.token, tiles.visible());
      // The first round finds the stages empty: the phase before the first counts as complete.
      ptx::mbarrier_wait(&ring.smem.empty[stage.slot], stage.parity ^ 1);
      wait_for_landing();
      loader.template load<kPagedCache>(stage.slot, tiles.visible());
      if (tiles.first && !(promised && begun == 1)) {
        query_slot.wait(ring.smem.empty, begun - 1, ring.num_stages);
        Loader::load_query(params, ring, item.rows, query_slot.of(span_slot));
      }
      write_note(last);
      loader.finish(stage.slot);
      pass_tile(last);
    }
    end_span([&](int slot) { announce_cut_span<Traits>(params, ring, slot, last_tile()); });
  }

 private:
  __device__ __forceinline__ void find_item() {
    if (!tiles.done()) item = SpanItem::of<Traits>(params, tiles.span);
  }
  __device__ __forceinline__ void write_task() {
    if (!Loader::writes_tasks()) return;
    const auto task = task_of<Traits>(params, ring.smem.pieces[span_slot.slot], cuts, tiles, item.rows);
    ring.smem.tasks[span_slot.slot] = task;
    if (task.whole_item) ptx::mbarrier_arrive(&ring.smem.task_there[span_slot.slot]);
  }
  // Until another tile may be under way, which it counts. No more than there are stages: further back, a stage's
  // barrier may be a whole round on, and its parity the same.
  __device__ __forceinline__ void wait_for_landing() {
    const int32_t most = min(params.tiles_in_flight, ring.num_stages);
    for (; in_flight >= most; --in_flight) {
      ptx::mbarrier_wait(&ring.smem.full[landing.slot], landing.parity);
      landing.advance(ring.num_stages);
    }
    ++in_flight;
  }
};

}  // namespace leanattn
