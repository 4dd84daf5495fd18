// Stage 1, between the schedule and the tile loop: the spans that a worker does at once, and where their memory lies.
#pragma once

#include <algorithm>

#include "kernels/params.h"
#include "tile_kernels.h"

namespace leanattn::cpu {

// KV heads read together at most. In a [batch, token, head, head_dim] cache the rows of one head lie far apart, and
// read alone they come a fifth to a third slower than beside those of other heads. A tile of four heads, and the next
// one on its way, still fit an L2 cache.
constexpr int32_t kMaxHeads = 4;

// A span that is part of an item, or the whole items of up to kMaxHeads neighbouring KV heads of one sequence.
struct Bundle {
  Span span;            // of the first head
  int32_t first_token;  // of the sequence that any query sees: there the first tile begins
  int32_t heads;
  int32_t kv_head;    // the first
  int32_t first_row;  // among the query rows of a KV head
  int32_t rows;       // query rows of each KV head: block_rows, fewer in its last query block
  QueryBlock block;

  int32_t all_rows() const { return heads * rows; }
  QueryRow query_row(const DecodeParams& p, int32_t row) const {
    return p.query_row(kv_head + row / rows, first_row + row % rows);
  }

  // Takes the next bundle off the cursor, which must not be done.
  static Bundle take(const DecodeParams& p, PieceCursor& cursor) {
    const Span first = cursor.span();
    const int32_t kv_head = first.item / p.row_blocks, first_row = first.item % p.row_blocks * p.block_rows;
    const int32_t first_token = cursor.spans.line.first_token(first.seq);
    const QueryBlock block = p.query_block(first.seq);
    const int32_t rows = p.item_rows(block, first_row);
    Bundle bundle{first, first_token, 1, kv_head, first_row, rows, block};
    const bool alone = !first.whole_item() || p.row_blocks > 1;
    const int32_t max_heads = alone ? 1 : std::min(kMaxHeads, kMaxRows / bundle.rows);
    for (cursor.next(); !cursor.done() && bundle.heads < max_heads; cursor.next(), ++bundle.heads) {
      const Span next = cursor.span();
      if (next.seq != first.seq || !next.whole_item()) break;
    }
    return bundle;
  }

  SpanTask task(const DecodeParams& p) const {
    const int32_t begin = span.tile_begin * p.tile_tokens, query_head = kv_head * p.group;
    const ScoreOptions& scores = p.scores;
    const int32_t end = span.ends_item() ? span.tokens : span.tile_end * p.tile_tokens;
    const auto at = [](const void* base, int64_t offset, DType dtype) {
      return static_cast<const char*>(base) + offset * element_size(dtype);
    };
    const PageTable& table = p.page_table;
    const bool paged = p.paged();
    const auto first_head = [&](const CacheStrides& s) { return (paged ? 0 : block.seq * s.batch) + kv_head * s.head; };
    const auto strides_of = [](const CacheStrides& s) { return PageStrides{s.batch, s.token, s.head}; };
    const auto scales_of = [&](const leanattn::TokenScales& scales) {
      return TokenScales{scales.values + first_head(scales.strides), strides_of(scales.strides)};
    };
    return {.q = at(p.q, p.q_strides.offset(block.query, {0, query_head}), p.dtype),
            .k = at(p.k, first_head(p.k_strides), p.cache_dtype),
            .v = at(p.v, first_head(p.v_strides), p.cache_dtype),
            .q_strides = {p.q_strides.token, p.q_strides.head},
            .k_strides = strides_of(p.k_strides),
            .v_strides = strides_of(p.v_strides),
            .pages = paged ? table.pages + block.seq * table.stride : nullptr,
            .page_size = table.page_size,
            .num_pages = table.num_pages,
            .first_token = first_token + begin,
            .heads = heads,
            .rows = rows,
            .tokens = end - begin,
            .head_dim = p.head_dim,
            .v_head_dim = p.v_head_dim,
            .tile_tokens = p.tile_tokens,
            .group = p.group,
            .first_row = first_row,
            .tokens_behind = span.tokens - end,
            .causal_tokens = p.causal_tokens_of(block),
            .tail = block.tail,
            .first_new = block.tail + block.first,
            .window_left = scores.window_left,
            .softcap_log2 = scores.softcap_log2,
            .alibi_slopes = scores.alibi_slopes != nullptr
                                ? scores.alibi_slopes + scores.first_slope(block.seq, query_head)
                                : nullptr,
            .tree_bits = scores.tree.bits != nullptr ? scores.tree.of_query(block.query, 0) : nullptr,
            .tree_words = scores.tree.words,
            .k_scales = p.k_scales.of_head(kv_head),
            .k_scale_stride = p.k_scales.stride,
            .k_token_scales = scales_of(p.k_token_scales),
            .v_token_scales = scales_of(p.v_token_scales),
            .scale_log2 = p.scale_log2};
  }
};

}  // namespace leanattn::cpu
