// Where items are cut: on the line of tiles (schedule.h), or into even pieces.
//
// The line gives every worker the same, to a tile. But its cuts fall anywhere, so some workers end one item and begin
// another, and write two partials. Where there is a worker for each piece of about a share's length, of all items, that
// costs more than the tile or two which the line saves:
//
//   line      [A A A A|A A A A|A A B B|B B B B|B B B B]     6 partials, the third worker has two
//   pieces    [A A A A A|A A A A A|B B B B B|B B B B B]     4 partials, and a worker with nothing to do
//
// To find that out takes a worker longer than it saves, so only plans (plan.h) look for pieces.
#pragma once

#include "schedule.h"

namespace leanattn {

// Every item in pieces of equal length, a worker a piece, in the order of the line; with workers left over, some have
// nothing to do.
struct Pieces {
  int32_t tiles = 0;  // of a piece at most; 0: the line is cut instead

  LEANATTN_HOST_DEVICE int32_t count(int32_t item_tiles) const { return ceil_div(item_tiles, tiles); }

  // The spans of the worker that has piece number `offset` of those of sequence `seq`.
  LEANATTN_HOST_DEVICE SpanCursor worker_spans(const TileLine& line, int32_t seq, int32_t offset) const {
    const int32_t tokens = line.tokens(seq), item_tiles = line.tiles_of(tokens), pieces = count(item_tiles);
    const int32_t size = ceil_div(item_tiles, pieces), begin = offset % pieces * size, rest = item_tiles - begin;
    return {line, rest < size ? rest : size, seq, offset / pieces, begin, item_tiles, 0, tokens, 0};
  }
  LEANATTN_HOST_DEVICE CutItem cut_item(int32_t worker, const Span& span) const {
    const int32_t pieces = count(span.item_tiles);
    return {worker - span.tile_begin / ceil_div(span.item_tiles, pieces), pieces};
  }

  // --- which length? The first of these for which there are workers enough ------------------------------

  static constexpr int32_t kCandidates = 3;

  // Each item is a piece at least. And where an item costs nothing besides its tiles, another piece doesn't either.
  LEANATTN_HOST_DEVICE static bool possible(const TileLine& line, int32_t workers) {
    return line.item_cost > 0 && line.batch * line.items_per_seq <= workers;
  }
  // `tiles` of all items; `longest` of one.
  LEANATTN_HOST_DEVICE static Pieces candidate(int32_t number, int32_t tiles, int32_t longest, int32_t workers) {
    int32_t least = ceil_div(tiles, workers);
    // Up to three tiles take less time than a second level of merging.
    if (longest <= 3 * MergeGroups::kMaxAtOnce && least < ceil_div(longest, MergeGroups::kMaxAtOnce)) {
      least = ceil_div(longest, MergeGroups::kMaxAtOnce);
    }
    // A cut that is saved takes about as long as one to three tiles.
    const int32_t most = least + (least < 24 ? 1 : (least < 36 ? 2 : 3));
    return {number == 0 ? least : (number == 1 ? least + 1 : most)};
  }
};

// What a worker needs to know to tell how an item is cut.
struct Cuts {
  Shares shares;  // of the line
  Pieces pieces;

  LEANATTN_HOST_DEVICE CutItem cut_item(int32_t worker, const Span& span) const {
    return pieces.tiles > 0 ? pieces.cut_item(worker, span) : CutItem::of(shares, span);
  }
};

// The cuts of a plan, by one thread; by a warp: plan.cu.
inline Cuts cuts_of(const TileLine& line, int32_t workers) {
  const Cuts line_cuts{Shares::of(total_units(line), workers), {}};
  const int32_t tiles = total_tiles(line);
  if (tiles == 0 || !Pieces::possible(line, workers)) return line_cuts;
  int32_t longest = 0;
  for (int32_t seq = 0; seq < line.batch; ++seq) {
    if (line.item_tiles(seq) > longest) longest = line.item_tiles(seq);
  }
  for (int32_t number = 0; number < Pieces::kCandidates; ++number) {
    const Pieces pieces = Pieces::candidate(number, tiles, longest, workers);
    int64_t count = 0;
    for (int32_t seq = 0; seq < line.batch; ++seq) count += pieces.count(line.item_tiles(seq));
    if (count * line.items_per_seq <= workers) return {line_cuts.shares, pieces};
  }
  return line_cuts;
}

// The spans of a worker, by one thread that walks the batch from its start.
inline SpanCursor worker_spans(const TileLine& line, const Cuts& cuts, int32_t worker) {
  if (cuts.pieces.tiles == 0) return worker_spans(line, cuts.shares, worker);
  for (int32_t seq = 0, first = 0; seq < line.batch; ++seq) {
    const int32_t pieces = cuts.pieces.count(line.item_tiles(seq)) * line.items_per_seq;
    if (worker < first + pieces) return cuts.pieces.worker_spans(line, seq, worker - first);
    first += pieces;
  }
  return SpanCursor::at(line, 0, 0, 0, 0);
}

}  // namespace leanattn
