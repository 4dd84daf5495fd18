// Packed queries: the query tokens of all sequences one after the other, of each sequence a number of its own
// (cu_seqlens_q), so that sequences that decode and chunks of prompts share a launch.
//
// They are cut into blocks of query tokens, as many as fit the rows of an item. A block is a sequence of its own to the
// schedule: as long as what its last query sees, so that the causal mask is bottom-right in each block. A tile of a
// block costs about the same whatever the block, so equal shares of tiles are equal shares of work.
//
//   cu_seqlens_q  [0, 1, 7]       blocks of 4 query tokens
//   sequence 0    1 query,   20 tokens     block 0: query 0,      its length 20
//   sequence 1    6 queries, 10 tokens     block 1: queries 1-4,  its length  8
//                                          block 2: queries 5-6,  its length 10
#pragma once

#include "schedule.h"

namespace leanattn {

// Query tokens that are a sequence of the line.
struct QueryBlock {
  int32_t seq;     // of the cache
  int32_t query;   // place in q, out and lse, along RowStrides::batch
  int32_t tokens;  // query tokens; 0: none
  int32_t tail;    // tokens of the line's sequence from its first query's own one on
  int32_t first;   // its first query, among those of its sequence
};

// Of the last `tail` tokens, which begin with a query token's own, how many it does not see.
LEANATTN_HOST_DEVICE constexpr int32_t hidden_tokens(int32_t tail, int32_t window_right) {
  const int32_t hidden = window_right < 0 ? 0 : tail - 1 - window_right;
  return hidden < 0 ? 0 : hidden;
}

struct PackedQueries {
  const int32_t* offsets = nullptr;  // [seqs + 1] cu_seqlens_q: where each sequence's queries begin; null: not packed
  const int32_t* seqlens;            // [seqs] tokens of each sequence
  const int32_t* leftpad;            // [seqs] ScoreOptions::leftpad; may be null
  int32_t seqs;
  int32_t total;                      // query tokens that q has
  int32_t max_tokens;                 // of a sequence
  int32_t window_left, window_right;  // of ScoreOptions
  int32_t block_tokens;               // query tokens of a block at most

  // Blocks, at most: none but the last of a sequence has fewer tokens than there may be.
  LEANATTN_HOST_DEVICE constexpr static int32_t most_blocks(int32_t total, int32_t seqs, int32_t block_tokens) {
    const int64_t most = int64_t{total} / block_tokens + seqs;
    return most < total ? static_cast<int32_t>(most) : total;
  }
  LEANATTN_HOST_DEVICE int32_t most_blocks() const { return most_blocks(total, seqs, block_tokens); }

  // The offsets lie on the device and cannot be checked before the launch, so bad ones are clamped: a query may then
  // get a wrong answer or none, but nobody leaves q.
  LEANATTN_HOST_DEVICE int32_t first_query(int32_t seq) const { return clamped(offsets[seq], total); }
  LEANATTN_HOST_DEVICE int32_t queries(int32_t seq) const {
    const int32_t first = first_query(seq), end = first_query(seq + 1);
    return end > first ? end - first : 0;
  }
  LEANATTN_HOST_DEVICE int32_t blocks(int32_t seq) const { return ceil_div(queries(seq), block_tokens); }

  // Block `i` of a sequence, and its length.
  LEANATTN_HOST_DEVICE QueryBlock block(int32_t seq, int32_t i, int32_t& length) const {
    const int32_t count = queries(seq), first = i * block_tokens, rest = count - first;
    const int32_t tokens = rest < block_tokens ? rest : block_tokens, seq_tokens = clamped(seqlens[seq], max_tokens);
    const int32_t own = seq_tokens - count + first;  // of its first query; its place in the sequence
    // What its last query sees; in 64 bits, since a window may be of any size.
    const int64_t seen = window_right < 0 ? seq_tokens : int64_t{own} + tokens + window_right;
    length = seen < 0 ? 0 : static_cast<int32_t>(seen < seq_tokens ? seen : seq_tokens);
    return {seq, first_query(seq) + first, tokens, length - own, first};
  }
  // Tokens of the block's length that none of its queries sees, ahead of all that one does.
  LEANATTN_HOST_DEVICE int32_t unseen(const QueryBlock& block, int32_t length) const {
    const int32_t pad = leftpad == nullptr ? 0 : leftpad[block.seq];
    const int64_t ahead = int64_t{length} - block.tail - window_left;
    return window_left >= 0 && ahead > pad ? static_cast<int32_t>(ahead) : pad;
  }
  // Some may be so.
  LEANATTN_HOST_DEVICE bool leaves_some_unseen() const { return leftpad != nullptr || window_left >= 0; }
};

// The memory of a call's blocks, int32.
struct QueryBlocks {
  QueryBlock* blocks;   // [most_blocks]
  int32_t* lengths;     // [most_blocks]
  int32_t* leftpads;    // [most_blocks] what PackedQueries::unseen says
  int32_t* first_ones;  // [seqs + 1] the blocks of sequences begin here

  static int64_t elements(const PackedQueries& packed) {
    return int64_t{packed.most_blocks()} * (sizeof(QueryBlock) / sizeof(int32_t) + 2) + packed.seqs + 1;
  }
  static QueryBlocks in(int32_t* memory, const PackedQueries& packed) {
    auto* const blocks = reinterpret_cast<QueryBlock*>(memory);
    auto* const lengths = reinterpret_cast<int32_t*>(blocks + packed.most_blocks());
    return {blocks, lengths, lengths + packed.most_blocks(), lengths + 2 * int64_t{packed.most_blocks()}};
  }
  // Of block `i` of a sequence; `number` among all.
  LEANATTN_HOST_DEVICE void set(const PackedQueries& packed, int32_t seq, int32_t i, int32_t number) const {
    blocks[number] = packed.block(seq, i, lengths[number]);
    leftpads[number] = packed.unseen(blocks[number], lengths[number]);
  }
  LEANATTN_HOST_DEVICE void set_none(int32_t number) const {
    blocks[number] = {};
    lengths[number] = leftpads[number] = 0;
  }
};

}  // namespace leanattn
