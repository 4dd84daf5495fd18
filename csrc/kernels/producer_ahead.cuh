// Stage 2, input, ahead of time. A CTA may start while the kernel ahead in the stream still runs. Until that has
// finished, memory belongs to it: lengths, queries and the newest tokens may be about to change, and the producer
// waits. But DRAM is idle while the last CTAs of a kernel merge and write. So if the caller has promised which tokens
// will not change, and neither lengths nor plan (fresh_tokens), their tiles go to the ring at once.
#pragma once

#include "copy.cuh"
#include "reduction.cuh"
#include "span_producer.cuh"

namespace leanattn {

// Between the producer, which knows the first span's queries, and the warps that compute, which load them.
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

// Loads the tiles of the promise that fit into the ring, waits for the kernel ahead, and loads their queries, but for
// those of the first span (load_first_query).
template <typename Traits>
__device__ __forceinline__ void load_ahead(Producer<Traits>& producer, const ShareOf<Spans<Traits>>& share) {
  using Loader = typename Traits::Loader;
  const auto& params = producer.params;
  const auto& ring = producer.ring;
  auto& tiles = producer.tiles;
  auto& loader = producer.loader;
  // Not announced yet, and their slots: a share's first span and its last one, or one piece, the last of an item
  // (traits.cuh).
  int cut_spans = 0, first_cut = 0, second_cut = 0;
  int32_t held = 0;  // tiles that are there, but whose queries are not
  // Until a tile with a token that is not certain to be there yet, a full ring, or the end of the share.
  while (!tiles.done() && producer.in_flight < ring.num_stages) {
    const int32_t settled = tiles.span.tokens - params.fresh_tokens;
    if (min(tiles.token + Traits::kTileTokens, tiles.end) > settled) break;
    if (tiles.first) producer.begin_span();
    loader.by_layout([&](auto paged) {
      loader.template locate<decltype(paged)::value>(tiles.ahead + tiles.token, tiles.visible());
      loader.template load<decltype(paged)::value>(producer.stage.slot, tiles.visible());
    });
    ++producer.in_flight;
    const bool last = tiles.last();
    producer.write_note(last);
    // The queries of the first span come from others, and its tiles need not wait for them.
    if (producer.begun > 1) {
      ++held;
    } else {
      loader.finish(producer.stage.slot);
    }
    producer.pass_tile(last);
    tiles.advance();
    if (last) {
      producer.end_span([&](int slot) {
        (cut_spans == 0 ? first_cut : second_cut) = slot;
        ++cut_spans;
      });
    }
  }

  ptx::grid_dependency_wait();
  // Scales come through L1, where those of fresh tokens may stand as they were, beside others.
  if constexpr (Traits::kTokenScales) __threadfence();
  auto spans = share.spans;
  for (int slot = 1; slot < producer.begun; ++slot) {
    spans.next();
    const Span span = spans.span();
    Loader::load_query(params, ring, SpanItem::of<Traits>(params, span).rows, slot);
  }
  for (int i = producer.in_flight - held; i < producer.in_flight; ++i) loader.finish(i);
  for (; cut_spans > 0; --cut_spans) {
    announce_cut_span<Traits>(params, ring, first_cut, producer.last_tile());
    first_cut = second_cut;
  }
}

}  // namespace leanattn
