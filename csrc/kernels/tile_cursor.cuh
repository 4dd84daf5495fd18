// Walks the tiles of a share.
#pragma once

#include "worker_share.cuh"

namespace leanattn {

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
  // To the next tile, if there is one in the span.
  __device__ __forceinline__ void advance() {
    first = false;
    token += Traits::kTileTokens;
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

}  // namespace leanattn
