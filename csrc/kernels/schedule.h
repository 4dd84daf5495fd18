// Stage 1: the lean decomposition (LeanAttention, arXiv 2405.10480, section 4), in integers only.
//
// Every (sequence, KV head, query block) is an output tile ("item"), cut into lean tiles of tile_tokens
// KV tokens. Written one after the other, in the order sequence, item, token, all lean tiles of the batch
// form one line. The line is cut into equal shares, one a worker, wherever the cuts happen to fall:
//
//   items     |---- A ----|-- B --|-------------- C --------------|- D -|
//   tiles      0 1 2 3 4 5 0 1 2 3 0 1 2 3 4 5 6 7 8 9 . . . . . . 0 1 2
//   workers   [     0     |     1     |     2     |     3     |     4    ]
//
//   worker 1 has two spans: all of B, whose output it writes alone, and the first two tiles of C, a partial.
//   C is cut over workers 1..4; the last of the four to take a ticket (its host block) merges the partials. Of many
//   query rows, each of the four merges some (merge_parts.h).
//
// An item costs more than its tiles: its queries are loaded, its output is merged and written. So each item may stand
// on the line with item_cost units of its own before its tiles, as if it had that many tiles more; a unit is the cost
// of one tile. Shares are equal in units. A worker whose share ends among an item's own units does nothing for the
// item.
//
// This header is the only statement of the schedule. The CUDA kernels, the CPU backend and the Python
// module leanattn._schedule all compile it, with nvcc or with a plain C++ compiler.
//
// Integers are 32 bits on purpose: a 64-bit division costs a GPU thread about a hundred instructions.
// check_line_fits() in the bindings refuses a line of 2^31 units or more (64 TiB of bf16 K/V at head_dim 128).
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define LEANATTN_HOST_DEVICE __host__ __device__ __forceinline__
#define LEANATTN_COLD __host__ __device__ __noinline__
#else
#define LEANATTN_HOST_DEVICE inline
#define LEANATTN_COLD
#endif

namespace leanattn {

// Numbers here are never negative, which a compiler can't know: as unsigned ones they are divided in fewer
// instructions, and to find a share is a chain of such divisions.
LEANATTN_HOST_DEVICE constexpr int32_t quotient(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b));
}
LEANATTN_HOST_DEVICE constexpr int32_t ceil_div(int32_t a, int32_t b) { return quotient(a + b - 1, b); }
// Numbers that lie on the device and cannot be checked before a launch: to 0..most.
LEANATTN_HOST_DEVICE constexpr int32_t clamped(int32_t n, int32_t most) { return n < 0 ? 0 : (n > most ? most : n); }

// The batch seen as one line of lean tiles.
//
// Of a sequence with a sliding window, or with padding on the left, the line has only what any of its queries sees: its
// last tokens. Who reads K and V adds where those begin.
struct TileLine {
  const int32_t* seqlens;  // [batch] KV tokens of each sequence; device memory for a CUDA kernel
  int32_t batch;
  int32_t items_per_seq;  // output tiles of a sequence: KV heads x query blocks
  int32_t tile_tokens;
  int32_t max_tokens;                // of a sequence, that are seen: as many as the cache can hold, or a window
  int32_t item_cost = 0;             // units of an item besides its tiles
  int32_t capacity = 0;              // tokens of a sequence that the cache can hold
  const int32_t* leftpad = nullptr;  // [batch] tokens of each sequence ahead of those that are seen; null: none
  int32_t block_tokens = 0;  // query tokens of a sequence that is a block of packed ones; 0: queries are not packed

  // The lengths live on the device and cannot be checked before the launch, so a bad one is clamped here:
  // it may give a wrong answer for its own sequence but never an access outside the cache.
  LEANATTN_HOST_DEVICE int32_t tokens(int32_t seq) const {
    const int32_t n = seqlens[seq];
    if (leftpad == nullptr) return clamped(n, max_tokens);
    return clamped(clamped(n, capacity) - clamped(leftpad[seq], capacity), max_tokens);
  }
  // Where those that are seen begin, in the sequence.
  LEANATTN_HOST_DEVICE int32_t first_token(int32_t seq) const { return clamped(seqlens[seq], capacity) - tokens(seq); }
  // Of the sequence after it, if there is one.
  LEANATTN_HOST_DEVICE int32_t tokens_after(int32_t seq) const { return seq + 1 < batch ? tokens(seq + 1) : 0; }
  LEANATTN_HOST_DEVICE int32_t tiles_of(int32_t tokens) const { return ceil_div(tokens, tile_tokens); }
  LEANATTN_HOST_DEVICE int32_t item_tiles(int32_t seq) const { return tiles_of(tokens(seq)); }
  // An empty sequence has no tile and no place on the line; write_empty_outputs (stage 4) serves it.
  LEANATTN_HOST_DEVICE int32_t units_of(int32_t tokens) const { return tokens == 0 ? 0 : tiles_of(tokens) + item_cost; }
  LEANATTN_HOST_DEVICE int32_t item_units(int32_t seq) const { return units_of(tokens(seq)); }
  LEANATTN_HOST_DEVICE int32_t seq_units(int32_t seq) const { return item_units(seq) * items_per_seq; }
};

// The cut of the line into equal shares: the first `longer` workers take share + 1 units, the others share, as far as
// the line goes.
struct Shares {
  int32_t share;
  int32_t longer;
  int32_t total_units;

  LEANATTN_HOST_DEVICE static Shares of(int32_t total_units, int32_t workers) {
    const int32_t share = quotient(total_units, workers);
    return {share, total_units - share * workers, total_units};
  }
  // First unit of a worker on the line; of one after the last, the length of the line.
  LEANATTN_HOST_DEVICE int32_t begin(int32_t worker) const {
    const int32_t place = worker * share + (worker < longer ? worker : longer);
    return place < total_units ? place : total_units;
  }
  LEANATTN_HOST_DEVICE int32_t size(int32_t worker) const { return begin(worker + 1) - begin(worker); }
  // The worker that has a unit of the line. The unit must exist, so share > 0 wherever the second branch divides.
  LEANATTN_HOST_DEVICE int32_t worker_of(int32_t unit) const {
    const int32_t in_longer = longer * (share + 1);
    return unit < in_longer ? quotient(unit, share + 1) : longer + quotient(unit - in_longer, share);
  }
};

// A run of consecutive lean tiles of one item, done by one worker.
struct Span {
  int32_t seq;
  int32_t item;        // within the sequence: KV head x query blocks + query block
  int32_t tile_begin;  // first tile, within the item
  int32_t tile_end;    // one past the last tile, within the item
  int32_t item_tiles;  // tiles of the whole item
  int32_t item_line;   // place of the item's first tile on the line
  int32_t tokens;      // of the sequence

  LEANATTN_HOST_DEVICE bool starts_item() const { return tile_begin == 0; }
  LEANATTN_HOST_DEVICE bool ends_item() const { return tile_end == item_tiles; }
  LEANATTN_HOST_DEVICE bool whole_item() const { return starts_item() && ends_item(); }
};

// Walks the spans of one worker, in the order of the line.
struct SpanCursor {
  TileLine line;
  int32_t units_left;  // of this worker's share, from the next tile on
  int32_t seq;
  int32_t item;
  int32_t tile;        // next tile to do, within the item
  int32_t item_tiles;  // of the current sequence
  int32_t item_line;   // place of the item's first tile on the line
  int32_t tokens;      // of the current sequence
  int32_t following;   // tokens of the sequence after it: asked for early, since memory takes long to answer

  // A worker with nothing to do.
  LEANATTN_HOST_DEVICE static SpanCursor none(const TileLine& line) { return {line, 0, 0, 0, 0, 0, 0, 0, 0}; }

  // A worker whose share of `units`, at least one, begins at place `begin` of the line, `offset` units after the start
  // of sequence `seq`. Of the sequence's tokens and those of the one after it.
  LEANATTN_HOST_DEVICE static SpanCursor at(const TileLine& line, int32_t seq, int32_t tokens, int32_t following,
                                            int32_t offset, int32_t begin, int32_t units) {
    const int32_t item_tiles = line.tiles_of(tokens), item_units = item_tiles + line.item_cost;
    const int32_t item = quotient(offset, item_units);
    const int32_t item_line = begin - offset + item * item_units + line.item_cost;
    SpanCursor c{line, units, seq, item, 0, item_tiles, item_line, tokens, following};
    if (begin < item_line) {
      c.spend(item_line - begin);
    } else {
      c.tile = begin - item_line;
    }
    return c;
  }

  LEANATTN_HOST_DEVICE bool done() const { return units_left == 0; }
  // Nothing follows the span at the cursor.
  LEANATTN_HOST_DEVICE bool last() const { return units_left <= item_tiles - tile + line.item_cost; }

  // The span at the cursor; only while !done().
  LEANATTN_HOST_DEVICE Span span() const {
    const int32_t rest = item_tiles - tile;
    return {seq, item, tile, tile + (rest < units_left ? rest : units_left), item_tiles, item_line, tokens};
  }

  // Moves past the current span, over empty sequences if need be.
  LEANATTN_HOST_DEVICE void next() {
    const int32_t rest = item_tiles - tile;
    spend(rest);
    spend(line.item_cost);  // of the next item
    if (units_left == 0) return;
    item_line += item_tiles + line.item_cost;
    tile = 0;
    if (++item == line.items_per_seq) {
      item = 0;
      do {
        ++seq;
        tokens = following;
        item_tiles = line.tiles_of(tokens);
        following = line.tokens_after(seq);
      } while (item_tiles == 0 && seq + 1 < line.batch);
    }
  }

 private:
  LEANATTN_HOST_DEVICE void spend(int32_t units) { units_left -= units < units_left ? units : units_left; }
};

// Length of the line, by one thread. CUDA kernels do the same sum with a warp (worker_share.cuh).
LEANATTN_HOST_DEVICE int32_t total_units(const TileLine& line) {
  int32_t total = 0;
  for (int32_t seq = 0; seq < line.batch; ++seq) total += line.seq_units(seq);
  return total;
}

// Units of the longest item.
LEANATTN_HOST_DEVICE int32_t longest_item_units(const TileLine& line) {
  int32_t longest = 0;
  for (int32_t seq = 0; seq < line.batch; ++seq) {
    if (line.item_units(seq) > longest) longest = line.item_units(seq);
  }
  return longest;
}

// Tiles on the line, without what items cost besides.
LEANATTN_HOST_DEVICE int32_t total_tiles(const TileLine& line) {
  int32_t total = 0;
  for (int32_t seq = 0; seq < line.batch; ++seq) total += line.item_tiles(seq) * line.items_per_seq;
  return total;
}

// The spans of the worker that has places `begin` to `end` of the line, by one thread that walks the line from its
// start.
LEANATTN_HOST_DEVICE SpanCursor worker_spans(const TileLine& line, int32_t begin, int32_t end) {
  if (begin == end) return SpanCursor::none(line);
  int32_t seq = 0, seq_line = 0;
  for (int32_t n = line.seq_units(0); seq_line + n <= begin; n = line.seq_units(++seq)) seq_line += n;
  return SpanCursor::at(line, seq, line.tokens(seq), line.tokens_after(seq), begin - seq_line, begin, end - begin);
}

// --- where the partials of a cut item lie (stage 3) -----------------------------------------------------
//
// At most the first and the last span of a worker are cut, so two slots a worker are enough for any batch:
// slot 2w holds the partial of a span that continues an item, slot 2w + 1 of one that begins it. One more a worker
// holds the results of groups of partials (MergeGroups): an item has fewer groups than workers that do nothing else.
// A batch-invariant call needs more (fixed_pieces.h).
LEANATTN_HOST_DEVICE constexpr int32_t partial_slots(int32_t workers) { return 3 * workers; }
LEANATTN_HOST_DEVICE constexpr int32_t group_slot(int32_t workers, int32_t first_worker, int32_t group) {
  return 2 * workers + first_worker + 1 + group;
}
LEANATTN_HOST_DEVICE int32_t partial_slot(int32_t worker, const Span& span) {
  return 2 * worker + (span.starts_item() ? 1 : 0);
}

// The workers among whom an item is cut: they follow each other, and each has one span of it.
struct CutItem {
  int32_t first_worker;  // also the item's ticket: a worker begins at most one cut item, its last
  int32_t partials;

  LEANATTN_HOST_DEVICE static CutItem of(const Shares& shares, const Span& span) {
    const int32_t first = shares.worker_of(span.item_line);
    return {first, shares.worker_of(span.item_line + span.item_tiles - 1) - first + 1};
  }
  // Slot of the i-th partial in token order: the order of the merge, whoever finishes first.
  LEANATTN_HOST_DEVICE int32_t slot(int32_t i) const { return i == 0 ? 2 * first_worker + 1 : 2 * (first_worker + i); }
};

// For comparison, the decomposition of FlashDecoding: every item in `splits` pieces of equal length, a worker a piece;
// with one split that of FlashAttention. Worker `splits i + j` has piece j of item i; an item of few tiles has fewer
// pieces. The item costs of the line play no part.
struct FixedSplit {
  int32_t splits;

  LEANATTN_HOST_DEVICE int32_t piece_tiles(int32_t item_tiles) const { return ceil_div(item_tiles, splits); }

  LEANATTN_HOST_DEVICE SpanCursor worker_spans(const TileLine& line, int32_t worker) const {
    const int32_t line_item = worker / splits, seq = line_item / line.items_per_seq;
    const int32_t tokens = line.tokens(seq), tiles = line.tiles_of(tokens), size = piece_tiles(tiles);
    const int32_t begin = worker % splits * size, rest = tiles - begin;
    const int32_t units = rest < 0 ? 0 : (rest < size ? rest : size);
    return {line, units, seq, line_item % line.items_per_seq, begin, tiles, 0, tokens, 0};
  }
  LEANATTN_HOST_DEVICE CutItem cut_item(int32_t worker, const Span& span) const {
    return {worker / splits * splits, ceil_div(span.item_tiles, piece_tiles(span.item_tiles))};
  }
};

// How the partials of an item are merged: few of them at once; many in groups of neighbours, whose results are then
// merged. One CTA alone would need as long for a hundred partials as for twenty tiles.
struct MergeGroups {
  int32_t size;   // partials of a group; the last one may have fewer
  int32_t count;  // groups; 1 if the item is merged at once

  static constexpr int32_t kMaxAtOnce = 24;

  LEANATTN_HOST_DEVICE static MergeGroups of(int32_t partials) {
    if (partials <= kMaxAtOnce) return {partials, 1};
    int32_t size = 5;  // the square root, rounded up: both levels take as long
    while (size * size < partials) ++size;
    return {size, ceil_div(partials, size)};
  }
  LEANATTN_HOST_DEVICE int32_t group_of(int32_t partial) const { return quotient(partial, size); }
  LEANATTN_HOST_DEVICE int32_t members(int32_t group, int32_t partials) const {
    const int32_t rest = partials - group * size;
    return rest < size ? rest : size;
  }
  // The ticket of a group is that of its first worker; the ticket of the groups, counted from the item's first worker.
  // Both workers have nothing but this item, or begin with it, so no other item uses their tickets. But the worker of a
  // group of one, the last, may begin another item: it has nobody to wait for, and takes no ticket of its group.
  LEANATTN_HOST_DEVICE int32_t item_ticket() const { return 1; }
};

}  // namespace leanattn
