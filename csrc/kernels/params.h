// What one decode call is: a plain struct that every backend takes by value. No torch, no CUDA header.
#pragma once

#include <cstdint>

#include "cuts.h"
#include "query_blocks.h"

namespace leanattn {

enum class DType : int32_t { kFloat16, kBFloat16, kFloat32, kFloat8E4M3, kFloat8E5M2, kInt8 };
constexpr bool is_float8(DType dtype) { return dtype == DType::kFloat8E4M3 || dtype == DType::kFloat8E5M2; }
constexpr bool is_8_bit(DType dtype) { return is_float8(dtype) || dtype == DType::kInt8; }
constexpr int32_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : (is_8_bit(dtype) ? 1 : 2); }

// Strides in elements. The last dimension, (v_)head_dim, is contiguous.
struct CacheStrides {
  int64_t batch;  // of a sequence, or in a paged cache of a page
  int64_t token, head;
};
// Where the tokens of a sequence lie in a paged cache (PagedAttention, arXiv 2309.06180): token t in page
// clamped(entry(seq, t / page_size)), as its token t % page_size.
struct PageTable {
  const int32_t* pages;  // [batch, pages of the longest sequence]; null if not paged
  int64_t stride;        // from one sequence's pages to the next one's
  int32_t page_size;     // tokens of a page; 0: not paged, tokens follow each other
  int32_t num_pages;     // in the cache

  LEANATTN_HOST_DEVICE int32_t entry(int32_t seq, int32_t index) const { return pages[seq * stride + index]; }
  // The table lies on the device and cannot be checked before the launch, so a bad entry is clamped here: it may give a
  // wrong answer for its own sequence but never an access outside the cache. (As an unsigned number a negative one is
  // too large.)
  LEANATTN_HOST_DEVICE int32_t clamped(int32_t page) const {
    return static_cast<uint32_t>(page) < static_cast<uint32_t>(num_pages) ? page : num_pages - 1;
  }
};
// A query row: the q_len query tokens of a sequence are the last of its tokens.
struct QueryRow {
  int32_t token;  // 0..q_len - 1
  int32_t head;   // query head
};
// row / group, of a query row of a KV head. Exact, for rows below kMostRows: (row + 1/2) / group is at least 1/2 /
// group away from the next integer, and rounding moves it by less than row / group / 2^23. A division of integers is 20
// instructions of a kernel, among them a branch.
constexpr int32_t kMostRows = 1 << 22;
LEANATTN_HOST_DEVICE int32_t token_of(int32_t row, float inverse_group) {
  return static_cast<int32_t>((static_cast<float>(row) + 0.5f) * inverse_group);
}
struct RowStrides {
  int64_t batch, token, head;

  LEANATTN_HOST_DEVICE int64_t offset(int32_t seq, const QueryRow& row) const {
    return seq * batch + row.token * token + row.head * head;
  }
};

// Of a float8 cache: what its elements of a KV head are multiplied with.
struct HeadScales {
  const float* values;  // [1] or [num_kv_heads]; null: 1
  int32_t stride;       // from one head's to the next one's: 0 or 1

  LEANATTN_HOST_DEVICE const float* of_head(int32_t kv_head) const {
    return values == nullptr ? nullptr : values + kv_head * stride;
  }
  LEANATTN_HOST_DEVICE float operator[](int32_t kv_head) const {
    return values == nullptr ? 1.f : values[kv_head * stride];
  }
};
// Of an int8 cache: what its elements of a token and KV head are multiplied with.
struct TokenScales {
  const float* values;  // [batch, max_tokens, num_kv_heads]; if paged, [num_pages, page_size, num_kv_heads]
  CacheStrides strides;
};

// Scratch memory of stage 3. Its owner guarantees that no other call in flight uses it.
struct Workspace {
  float* partials;    // [slots, partial_floats]: of a partial, un-normalised O, m (log2 units) and l; slots:
                      // partial_slots(workers), of a batch-invariant call partial_slots(workers, fixed_pieces)
  uint32_t* tickets;  // [workers], all zero before a call; every call leaves them zero
};
// Floats of a row of a partial beside those of O, the kernel's head_dim: m, l, and two that keep rows at multiples of
// 16 bytes.
constexpr int32_t kPartialRowExtra = 4;

// Which of the new tokens of its sequence (those of the queries) a query sees beside all older ones: bit j % 32 of word
// j / 32 says whether it sees the j-th. Those that there is no bit for are seen.
struct TreeMask {
  const int32_t* bits = nullptr;  // [query tokens of the call, words]; null: none
  int32_t words = 0;              // of a query token
  int32_t batch_stride = 0;       // in query tokens, along RowStrides::batch

  LEANATTN_HOST_DEVICE const int32_t* of_query(int32_t query, int32_t token) const {
    return bits + (int64_t{query} * batch_stride + token) * words;
  }
  // `of_query`: what that function returns.
  LEANATTN_HOST_DEVICE bool hides(const int32_t* of_query, int32_t new_token) const {
    return new_token >= 0 && new_token < 32 * words && (of_query[new_token / 32] >> new_token % 32 & 1) == 0;
  }
};

// What changes the scores, or which tokens a query sees (leanattn/decode.py); by default nothing does.
struct ScoreOptions {
  int32_t window_left = -1, window_right = -1;  // tokens ahead of and after its own that a query sees; -1: all; with
                                                // a causal mask window_right is 0
  float softcap_log2 = 0;                       // softcap * log2(e); 0: none
  int64_t alibi_batch_stride = 0;
  const float* sinks = nullptr;         // [num_kv_heads * group]; null: none
  const float* alibi_slopes = nullptr;  // [batch or 1, num_kv_heads * group], stride alibi_batch_stride; null: none
  const int32_t* leftpad = nullptr;     // [batch] tokens that are not seen; null: none
  TreeMask tree;

  // Of a query head, in alibi_slopes.
  LEANATTN_HOST_DEVICE int32_t first_slope(int32_t seq, int32_t head) const {
    return static_cast<int32_t>(seq * alibi_batch_stride) + head;
  }
  // What is done to a tile's scores, in this order.
  static constexpr int32_t kSoftcap = 1, kAlibi = 2, kWindow = 4, kTree = 8;
  int32_t changes() const {
    return (softcap_log2 != 0 ? kSoftcap : 0) | (alibi_slopes != nullptr ? kAlibi : 0) |
           (window_left >= 0 ? kWindow : 0) | (tree.bits != nullptr ? kTree : 0);
  }
  // But for window_right, of which DecodeParams::causal_tokens says all, if queries are not packed.
  bool any() const { return changes() != 0 || leftpad != nullptr || sinks != nullptr; }
};

// Test hooks; all zero in a normal call.
struct DebugOptions {
  uint32_t delay_seed;   // not 0: workers pause for pseudo-random times before they publish and merge
  int32_t max_stages;    // not 0: a GPU's ring has no more stages, as on a GPU with little shared memory
  int32_t fixed_splits;  // not 0: FixedSplit (schedule.h) instead of the lean decomposition, to compare them
};

struct DecodeParams {
  const void* q;           // [batch, q_len, num_kv_heads * group, head_dim], strides q_strides; if packed, below
  const void* k;           // [batch, max_tokens, num_kv_heads, head_dim], strides k_strides; if paged,
                           // [num_pages, page_size, num_kv_heads, head_dim]
  const void* v;           // as k but for v_head_dim; strides v_strides
  const int32_t* seqlens;  // [batch] tokens of each sequence that this call reads; contiguous; if packed, of each block
  int32_t* plan;           // plan.h; may be null
  void* out;               // [batch, q_len, num_kv_heads * group, v_head_dim], strides out_strides, dtype of q
  float* lse;              // [batch, num_kv_heads * group, q_len] natural log, strides lse_strides; may be null

  RowStrides q_strides, out_strides, lse_strides;
  CacheStrides k_strides, v_strides;

  DType dtype;        // of q and out
  DType cache_dtype;  // of k and v: the same, or of 8 bits
  HeadScales k_scales, v_scales;
  // Packed queries: q, out are [tokens, num_kv_heads * group, (v_)head_dim], lse [num_kv_heads * group, tokens]. A
  // block of query tokens is then what is called a sequence here, batch the number of blocks, q_len the most tokens of
  // one, and strides along `batch` those of tokens.
  const QueryBlock* query_blocks;  // [batch]; null: not packed
  int32_t row_limit;               // tile_table::Shape::row_limit
  int32_t batch;
  int32_t num_kv_heads;
  int32_t q_len;
  int32_t causal_tokens;  // the last ones, which not all query tokens see: q_len - 1 with a causal mask, fewer with
                          // scores.window_right instead, or 0
  int32_t group;          // query heads per KV head
  float inverse_group;    // 1 / group, for token_of()
  int32_t rows;           // query rows of a KV head, which share a read of K and V: q_len x group, in this order
  int32_t block_rows;     // query rows of a KV head in an item, ceil(rows / row_blocks)
  int32_t row_blocks;     // items per (sequence, KV head); 1 unless heads is 1
  int32_t heads;          // KV heads of an item
  int32_t head_dim;       // of q and k
  int32_t v_head_dim;     // of v and out
  int32_t max_tokens;     // of a sequence: what the cache can hold,
  int32_t seen_tokens;    // ... and what its queries see at most: as many, or fewer with scores.window_left
  int32_t tile_tokens;
  int32_t tiles_in_flight;  // of a CUDA worker at most, besides those of a promise
  int32_t item_cost;        // schedule.h
  // Workers, CTAs or threads, are teams x team_size. A team is what schedule.h calls a worker: its members have the
  // same tokens of neighbouring items, team_size of them (tile_table.h).
  int32_t workers, teams, team_size;
  int32_t items_per_team;  // of a sequence: its items / team_size
  int32_t partial_floats;  // heads x block_rows x (head_dim of the kernel + kPartialRowExtra)
  // The caller's promise, or -1 for none: whatever in the stream may still run when the call begins writes at most the
  // last fresh_tokens tokens of each sequence, and neither lengths, nor plan, nor any other token.
  int32_t fresh_tokens;
  float scale_log2;  // softmax_scale * log2(e): scores are kept in log2 units, so that exp is exp2

  Workspace workspace;
  DebugOptions debug;
  PageTable page_table;
  ScoreOptions scores;
  bool score_options;     // there are some;
  int32_t score_changes;  // ... scores.changes()
  TokenScales k_token_scales, v_token_scales;
  bool batch_invariant;
  FixedPieces fixed_pieces;  // of a batch-invariant call; else none

  LEANATTN_HOST_DEVICE QueryRow query_row(int32_t kv_head, int32_t row) const {
    const int32_t token = token_of(row, inverse_group);
    return {token, kv_head * group + row - token * group};
  }
  LEANATTN_HOST_DEVICE bool packed() const { return query_blocks != nullptr; }
  // Of a sequence of the line.
  LEANATTN_HOST_DEVICE QueryBlock query_block(int32_t seq) const {
    return packed() ? query_blocks[seq] : QueryBlock{seq, seq, q_len, q_len, 0};
  }
  // Query rows of an item that begins with this one; the last of a block may have fewer.
  LEANATTN_HOST_DEVICE int32_t item_rows(const QueryBlock& block, int32_t first_row) const {
    const int32_t left = block.tokens * group - first_row;
    return left < block_rows ? left : block_rows;
  }
  LEANATTN_HOST_DEVICE int32_t causal_tokens_of(const QueryBlock& block) const {
    return packed() ? hidden_tokens(block.tail, scores.window_right) : causal_tokens;
  }
  LEANATTN_HOST_DEVICE bool paged() const { return page_table.page_size > 0; }
  LEANATTN_HOST_DEVICE bool promised() const { return fresh_tokens >= 0; }
  LEANATTN_HOST_DEVICE CutItem cut_item(const Cuts& cuts, int32_t team, const Span& span) const {
    return debug.fixed_splits > 0 ? FixedSplit{debug.fixed_splits}.cut_item(team, span) : cuts.cut_item(team, span);
  }
  // The line of the items that the first members of all teams have.
  LEANATTN_HOST_DEVICE TileLine line() const {
    return {seqlens,   batch,      items_per_team, tile_tokens,         seen_tokens,
            item_cost, max_tokens, scores.leftpad, packed() ? q_len : 0};
  }
};

}  // namespace leanattn
