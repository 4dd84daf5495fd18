// Stage 2, input: the producer warps walk the CTA's share and keep the ring full. How a tile is brought is the
// loader's (loader_cp_async.cuh).
//
// A CTA may start while the kernel ahead in the stream still runs. Until that has finished, memory belongs to it:
// lengths, queries and the newest tokens may be about to change, and the producer waits. But DRAM is idle while the
// last CTAs of a kernel merge and write. So if the caller has promised which tokens will not change, and neither
// lengths nor plan (fresh_tokens), their tiles go to the ring at once.
#pragma once

#include "copy.cuh"
#include "reduction.cuh"
#include "tickets.cuh"
#include "tile_ring.cuh"
#include "worker_share.cuh"

namespace leanattn {

// Walks the tiles of a share.
template <typename Traits>
struct TileCursor {
  Spans<Traits> spans;
  Span span;      // the current one
  int32_t token;  // first token of the next tile
  int32_t end;    // of the span
  int32_t ahead;  // tokens of the sequence that no query sees, ahead of those that are counted here
  bool first;     // the next tile is the span's first

  __device__ __forceinline__ explicit TileCursor(const Spans<Traits>& at) : spans(at) { begin_span(); }

  __device__ __forceinline__ bool done() const { return spans.done(); }
  // Tokens of the sequence from the next tile on.
  __device__ __forceinline__ int32_t visible() const { return span.tokens - token; }
  __device__ __forceinline__ bool last() const { return token + Traits::kTileTokens >= end; }
  __device__ __forceinline__ bool last_of_share() const { return last() && spans.last(); }
  __device__ __forceinline__ void next() {
    first = last();
    token += Traits::kTileTokens;
    if (first) next_span();
  }
  __device__ __forceinline__ void next_span() {
    spans.next();
    begin_span();
  }

 private:
  __device__ __forceinline__ void begin_span() {
    if (spans.done()) return;
    span = spans.span();
    token = span.tile_begin * Traits::kTileTokens;
    end = min(span.tokens, span.tile_end * Traits::kTileTokens);
    ahead = 0;
    if constexpr (Traits::kFixedPieces) {
      ahead = spans.spans.line.first_token(span.seq);
    } else if constexpr (Traits::kGeneral) {
      ahead = spans.line.first_token(span.seq);
    }
    first = true;
  }
};

// Between the producer, which finds the share, and the warps that compute, which set up the ring meanwhile.
constexpr int kRingBarrier = 0;
template <typename Traits>
constexpr int kShareBarrier = 2 + Traits::kHeads;

// With a promise, the queries of the first span are loaded by the warps that compute: the producers' would land behind
// all tiles that they have asked for. After the wait for the kernel ahead.
template <typename Traits>
__device__ __forceinline__ void load_first_query(const DecodeParams& params, const TileRing<Traits>& ring) {
  ptx::named_barrier_sync<Traits::kThreads>(kShareBarrier<Traits>);
  if (ring.smem.first_rows.count == 0) return;
  Traits::Loader::load_query(params, ring, ring.smem.first_rows, 0);
  wait_for_copies();
  compute_barrier<Traits>();
}

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
  return SpanTask::of(params, cuts, tiles.span, rows, tiles.spans.last());
}

// The share is empty.
template <typename Traits>
__device__ __forceinline__ void announce_nothing(typename Traits::Loader& loader, const TileRing<Traits>& ring) {
  if (loader.writes_notes()) ring.smem.notes[0] = {0, TileNote::kNothing, 0};
  loader.finish(0);
}

template <typename Traits>
__device__ __forceinline__ void produce_tiles(const DecodeParams& params, const TileRing<Traits>& ring) {
  using Loader = typename Traits::Loader;
  const bool promised = params.promised();
  if (!promised) ptx::grid_dependency_wait();
  const auto share = worker_share<Traits>(params, team_here());
  TileCursor<Traits> tiles(share.spans);
  SpanItem item{};
  if (!tiles.done()) item = SpanItem::of<Traits>(params, tiles.span);
  ptx::named_barrier_sync<Traits::kThreads>(kRingBarrier);
  if (promised) {
    if (Loader::writes_notes()) ring.smem.first_rows = item.rows;
    ptx::named_barrier_arrive<Traits::kThreads>(kShareBarrier<Traits>);
  }

  Loader loader(params, ring);
  if (tiles.done()) {
    announce_nothing(loader, ring);
    return;
  }
  RingIndex stage, span_slot, landing;
  QuerySlot<Traits> query_slot;
  // Not announced yet, and their slots: while the producer waits for the kernel ahead, a share's first span and its
  // last one, or one piece, the last of an item (traits.cuh).
  int cut_spans = 0, first_cut = 0, second_cut = 0;
  // No more than there are stages: further back, a stage's barrier may be a whole round on, and its parity the same.
  const int32_t most_in_flight = min(Traits::kMostInFlight, ring.num_stages);
  int32_t in_flight = 0, begun = 0, held = 0;
  bool waiting = promised;  // the kernel ahead may still run: tiles are loaded, but neither queries nor fresh tokens
  while (true) {
    // A tile with a token that is not certain to be there yet ends the waiting, as do a full ring and the share's end.
    const int32_t settled = tiles.span.tokens - params.fresh_tokens;
    if (waiting &&
        (tiles.done() || in_flight == ring.num_stages || min(tiles.token + Traits::kTileTokens, tiles.end) > settled)) {
      ptx::grid_dependency_wait();
      // Scales come through L1, where those of fresh tokens may stand as they were, beside others.
      if constexpr (Traits::kTokenScales) __threadfence();
      waiting = false;
      auto spans = share.spans;
      for (int slot = 1; slot < begun; ++slot) {
        spans.next();
        const Span span = spans.span();
        Loader::load_query(params, ring, SpanItem::of<Traits>(params, span).rows, slot);
      }
      for (int i = in_flight - held; i < in_flight; ++i) loader.finish(i);
    }
    for (; cut_spans > 0 && !waiting; --cut_spans) {
      announce_cut_span<Traits>(params, ring.smem, first_cut);
      first_cut = second_cut;
    }
    if (tiles.done()) return;
    const int32_t visible = tiles.visible();
    if (tiles.first) loader.begin_span(item.origin, tiles.ahead + tiles.token, visible);
    loader.locate(tiles.ahead + tiles.token, visible);
    if (!waiting) {
      // The first round finds the stages empty: the phase before the first counts as complete.
      ptx::mbarrier_wait(&ring.smem.empty[stage.slot], stage.parity ^ 1);
      for (; in_flight >= most_in_flight; --in_flight) {
        ptx::mbarrier_wait(&ring.smem.full[landing.slot], landing.parity);
        landing.advance(ring.num_stages);
      }
    }
    loader.load(stage.slot, visible);
    ++in_flight;
    begun += tiles.first;
    if (tiles.first && !waiting && !(promised && begun == 1)) {
      query_slot.wait(ring.smem.empty, begun - 1, ring.num_stages);
      Loader::load_query(params, ring, item.rows, query_slot.of(span_slot));
    }
    if (Loader::writes_notes()) {
      const int32_t flags = (tiles.last() ? TileNote::kLast : 0) | (tiles.last_of_share() ? TileNote::kEnd : 0);
      ring.smem.notes[stage.slot] = {visible, flags, item.rows.first_row, item.causal_tokens};
      if constexpr (Traits::kGeneral) {
        if (tiles.first) ring.smem.origins[span_slot.slot] = item.origin;
      }
    }
    if (waiting && begun > 1) {
      ++held;  // it is there, but its queries are not
    } else {
      loader.finish(stage.slot);
    }
    if (tiles.last()) {
      // Not before the last tile: it would hold up the loads of the first ones.
      if (Loader::writes_tasks()) {
        const auto task = task_of<Traits>(params, ring.smem.pieces[span_slot.slot], share.cuts, tiles, item.rows);
        ring.smem.tasks[span_slot.slot] = task;
        if (task.whole_item) ptx::mbarrier_arrive(&ring.smem.task_there[span_slot.slot]);
      }
      if (!tiles.span.whole_item() && Loader::in_task_warp()) {
        (cut_spans == 0 ? first_cut : second_cut) = span_slot.slot;
        ++cut_spans;
      }
      span_slot.advance(ring.num_stages);
    }
    query_slot.count_tile(tiles.last());
    stage.advance(ring.num_stages);
    tiles.next();
    if (tiles.first && !tiles.done()) item = SpanItem::of<Traits>(params, tiles.span);
  }
}

}  // namespace leanattn
