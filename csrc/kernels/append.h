// What one append call is: new keys and values go into a cache, rotated on the way if asked for (rotary position
// embedding, RoFormer, arXiv 2104.09864). Both backends take it by value. No torch, no CUDA header.
#pragma once

#include "params.h"

namespace leanattn {

constexpr int32_t kMaxAppendHeadDim = 512;
constexpr int32_t kMaxAppendHeads = 1 << 15;  // KV heads, and query heads: a GPU's grid has no more places for them
// Elements that a thread takes at once: 16 bytes of 16-bit elements. (v_)head_dim is a multiple, and so is half of the
// rotated dimensions, where the second element of each pair begins.
constexpr int32_t kAppendChunk = 8;

// The first `dim` elements of each head are rotated, as dim / 2 pairs (x, y): at position t, pair j becomes
// (x cos[t, j] - y sin[t, j], y cos[t, j] + x sin[t, j]).
struct Rotary {
  const void* cos;  // [max_positions, dim / 2], rows cos_stride elements apart
  const void* sin;  // [max_positions, dim / 2], rows sin_stride elements apart
  int64_t cos_stride, sin_stride;
  DType dtype;            // of cos and sin: float32, or that of k
  int32_t dim;            // a multiple of 2 kAppendChunk; 0: nothing is rotated
  int32_t max_positions;  // 0..max_tokens and beyond
  bool interleaved;       // pair j is elements (2j, 2j + 1) instead of (j, j + dim / 2)
};

// Where a new token goes, or why it goes nowhere.
struct TokenPlace {
  enum class Fate {
    kWritten,
    kPadding,       // its position is below 0: the sequence has fewer tokens than are new
    kBeyondCache,   // max_tokens or more
    kBeyondRotary,  // max_positions or more
    kNoPage,        // what the table holds is no page
  };
  Fate fate;
  int64_t position;  // in the sequence
  int32_t row;       // of the caches' first dimension: a sequence, or in a paged cache a page
  int32_t token;     // of the second

  LEANATTN_HOST_DEVICE int64_t offset(const CacheStrides& strides, int32_t head) const {
    return row * strides.batch + token * strides.token + head * strides.head;
  }
};

struct AppendParams {
  const void* k;  // [batch, new_tokens, num_kv_heads, head_dim], strides k_strides
  const void* v;  // [batch, new_tokens, num_kv_heads, v_head_dim], strides v_strides
  void* q;        // [batch, new_tokens, num_q_heads, head_dim], strides q_strides; rotated in place; may be null
  void* k_cache;  // [batch, max_tokens, num_kv_heads, head_dim], strides k_cache_strides; if paged,
                  // [num_pages, page_size, num_kv_heads, head_dim]
  void* v_cache;  // as k_cache but for v_head_dim; strides v_cache_strides
  const int32_t* seqlens;  // [batch] tokens of each sequence, the new ones included; contiguous

  RowStrides k_strides, v_strides, q_strides;
  CacheStrides k_cache_strides, v_cache_strides;

  DType dtype;                    // of k, v and q
  DType cache_dtype;              // the same, or float8
  HeadScales k_scales, v_scales;  // what a float8 cache holds times this is K, or V
  int32_t batch;
  int32_t new_tokens;
  int32_t num_kv_heads;
  int32_t num_q_heads;  // 0 without q
  int32_t head_dim;     // of k and q
  int32_t v_head_dim;   // of v
  int32_t max_tokens;   // that a sequence can have
  PageTable page_table;
  Rotary rotary;

  LEANATTN_HOST_DEVICE bool rotates() const { return rotary.dim > 0; }
  LEANATTN_HOST_DEVICE bool paged() const { return page_table.page_size > 0; }

  // Of new token `token` of a sequence. Reads no entry of the table but the one that is needed, and clamps none: what
  // is written to another page than was meant destroys tokens of another sequence.
  LEANATTN_HOST_DEVICE TokenPlace place(int32_t seq, int32_t token) const {
    using Fate = TokenPlace::Fate;
    const int64_t position = int64_t{seqlens[seq]} - new_tokens + token;
    if (position < 0) return {Fate::kPadding, position, 0, 0};
    if (position >= max_tokens) return {Fate::kBeyondCache, position, 0, 0};
    if (rotates() && position >= rotary.max_positions) return {Fate::kBeyondRotary, position, 0, 0};
    const auto in_sequence = static_cast<int32_t>(position);
    if (!paged()) return {Fate::kWritten, position, seq, in_sequence};
    const int32_t index = quotient(in_sequence, page_table.page_size), page = page_table.entry(seq, index);
    const Fate fate = page == page_table.clamped(page) ? Fate::kWritten : Fate::kNoPage;
    return {fate, position, page, in_sequence - index * page_table.page_size};
  }
};

}  // namespace leanattn
