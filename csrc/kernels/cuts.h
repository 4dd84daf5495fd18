// Where items are cut: on the line of tiles (schedule.h), into even pieces, or not at all.
//
// The line gives every worker the same, to a tile. But its cuts fall anywhere, so some workers end one item and begin
// another, and write two partials. Where there is a worker for each piece of about a share's length, of all items, that
// costs more than the tile or two which the line saves. And where whole items can be given to the workers almost as
// evenly, nothing is cut:
//
//   line      [A A A A|A A A A|A A B B|B B B B|B B B B]     6 partials, the third worker has two
//   pieces    [A A A A A|A A A A A|B B B B B|B B B B B]     4 partials, and a worker with nothing to do
//   whole     [A A B B|C C D D|E E F F]
//
// To find that out takes a worker longer than it saves, so only plans (plan.h) look for pieces or whole items; unless
// all sequences are equally long: then it is a matter of some divisions.
#pragma once

#include "fixed_pieces.h"

namespace leanattn {

// Up to so many tiles of an item for each partial that is merged at once, more take less time than a second level of
// merging.
constexpr int32_t kFewTiles = 3 * MergeGroups::kMaxAtOnce;

// What a worker may have more than an equal share, in units, where that saves all cuts: they cost a call some 3 us, and
// the last workers, when the others are done, read a tile in half a microsecond.
constexpr int32_t kWholeSlack = 6;

// A line that may be made longer, by as much at most, and still fits 32 bits.
constexpr int32_t kHalfLine = 1 << 30;

// The cut of the line. Not among all workers, if that would cut short items into more partials than are merged at once;
// how long items are is known on average. Where an item costs nothing besides its tiles, partials don't either.
LEANATTN_HOST_DEVICE Shares shares_of(const TileLine& line, int32_t total_units, int32_t workers) {
  const int32_t items = line.batch * line.items_per_seq;
  const int32_t most = items < workers ? MergeGroups::kMaxAtOnce * items : workers;  // no overflow
  const bool fewer =
      line.item_cost > 0 && items > 0 && most < workers && total_units <= (kFewTiles + line.item_cost) * items;
  return Shares::of(total_units, fewer ? most : workers);
}

// Every item in pieces of equal length, a worker a piece, in the order of the line; with workers left over, some have
// nothing to do.
struct Pieces {
  int32_t tiles = 0;  // of a piece at most; 0: none

  LEANATTN_HOST_DEVICE int32_t count(int32_t item_tiles) const { return ceil_div(item_tiles, tiles); }

  // The spans of the worker that has piece number `offset` of those of sequence `seq`.
  LEANATTN_HOST_DEVICE SpanCursor worker_spans(const TileLine& line, int32_t seq, int32_t offset) const {
    const int32_t tokens = line.tokens(seq), item_tiles = line.tiles_of(tokens), pieces = count(item_tiles);
    const int32_t size = ceil_div(item_tiles, pieces), item = quotient(offset, pieces);
    const int32_t begin = (offset - item * pieces) * size, rest = item_tiles - begin;
    return {line, rest < size ? rest : size, seq, item, begin, item_tiles, 0, tokens, 0};
  }
  LEANATTN_HOST_DEVICE CutItem cut_item(int32_t worker, const Span& span) const {
    const int32_t pieces = count(span.item_tiles);
    return {worker - quotient(span.tile_begin, ceil_div(span.item_tiles, pieces)), pieces};
  }

  // --- which length? The first of these for which there are workers enough ------------------------------

  static constexpr int32_t kCandidates = 4;

  // Each item is a piece at least. And where an item costs nothing besides its tiles, another piece doesn't either.
  LEANATTN_HOST_DEVICE static bool possible(const TileLine& line, int32_t tiles, int32_t workers) {
    return line.item_cost > 0 && tiles > 0 && tiles < kHalfLine && line.batch * line.items_per_seq <= workers;
  }
  // A piece has a share's tiles at least, of `tiles` of all items; `longest` of one.
  LEANATTN_HOST_DEVICE static int32_t least_tiles(int32_t tiles, int32_t longest, int32_t workers) {
    const int32_t share = ceil_div(tiles, workers), merged = ceil_div(longest, MergeGroups::kMaxAtOnce);
    return longest <= kFewTiles && share < merged ? merged : share;
  }
  // A cut that is saved takes about as long as one to three tiles.
  LEANATTN_HOST_DEVICE static int32_t most_tiles(int32_t least) {
    return least + (least < 12 ? 1 : (least < 36 ? 2 : 3));
  }

  LEANATTN_HOST_DEVICE static Pieces candidate(int32_t number, int32_t tiles, int32_t longest, int32_t workers) {
    const int32_t least = least_tiles(tiles, longest, workers), most = most_tiles(least);
    if (number == 3) return {longest <= least + kWholeSlack ? longest : most};  // no cut at all
    return {number == 0 ? least : (number == 1 ? least + 1 : most)};
  }
};

// The line cut at every `units`-th place, each cut moved to the nearest border of items.
struct WholeItems {
  int32_t units = 0;  // 0: the line is cut otherwise

  // Where an item of `item_units`, from `begin` on, has a cut at place `at`.
  LEANATTN_HOST_DEVICE static int32_t nearest_border(int32_t at, int32_t begin, int32_t item_units) {
    return 2 * (at - begin) < item_units ? begin : begin + item_units;
  }

  // How far cuts are moved to the left (negative) and to the right. A worker then has up to `right - left` units more.
  struct Moves {
    int32_t left = 0, right = 0;

    // With those of the items of sequence `seq`, which begin at place `begin` of the line.
    LEANATTN_HOST_DEVICE void add(const TileLine& line, const WholeItems& whole, int32_t seq, int32_t begin) {
      const int32_t item_units = line.item_units(seq);
      for (int32_t item = 0; item < line.items_per_seq && item_units > 0; ++item, begin += item_units) {
        const int32_t cut = (quotient(begin, whole.units) + 1) * whole.units;
        if (cut >= begin + item_units) continue;
        const int32_t move = nearest_border(cut, begin, item_units) - cut;
        left = move < left ? move : left;
        right = move > right ? move : right;
      }
    }
  };

  // --- how many units? The first of these with which nobody has much more than an equal share ----------

  static constexpr int32_t kCandidates = 2;

  // Items longer than a share must be cut. And a cut behind the end of the line must be a number.
  LEANATTN_HOST_DEVICE static bool possible(const TileLine& line, int32_t total_units, int32_t longest_units,
                                            int32_t workers) {
    return line.item_cost > 0 && total_units > 0 && total_units < kHalfLine &&
           longest_units <= ceil_div(total_units, workers);
  }
  // An equal share; or so many of the longest items, which for a uniform batch is where the borders are.
  LEANATTN_HOST_DEVICE static WholeItems candidate(int32_t number, int32_t total_units, int32_t longest_units,
                                                   int32_t workers) {
    const int32_t share = ceil_div(total_units, workers);
    return {number == 0 ? share : ceil_div(share, longest_units) * longest_units};
  }
  LEANATTN_HOST_DEVICE bool even(const Moves& moves, int32_t total_units, int32_t workers) const {
    return units + moves.right - moves.left <= ceil_div(total_units, workers) + kWholeSlack;
  }
  // Where the share of a worker begins, before it is moved.
  LEANATTN_HOST_DEVICE int32_t cut(int32_t worker, int32_t total_units) const {
    return worker < ceil_div(total_units, units) ? worker * units : total_units;
  }
};

// Of shorter shares, to find pieces of equally long items takes longer than they save.
constexpr int32_t kLeastUniformShare = 6;

// How the line is cut without a plan.
struct LineCut {
  Shares shares;
  int32_t item_cost;  // of the line that is cut
  bool uniform;       // all sequences are equally long, and each worker has whole items, or a piece of one

  // `longest`: units of the longest item.
  LEANATTN_HOST_DEVICE static LineCut of(const TileLine& line, int32_t total_units, int32_t longest, int32_t workers) {
    return may_be_even(line, total_units, longest, workers) ? even(line, total_units, longest, workers)
                                                            : anywhere(line, total_units, workers);
  }
  LEANATTN_HOST_DEVICE static LineCut anywhere(const TileLine& line, int32_t total_units, int32_t workers) {
    return {shares_of(line, total_units, workers), line.item_cost, false};
  }
  LEANATTN_HOST_DEVICE static bool may_be_even(const TileLine& line, int32_t total_units, int32_t longest,
                                               int32_t workers) {
    const int32_t items = line.batch * line.items_per_seq;
    return line.item_cost > 0 && total_units >= kLeastUniformShare * int64_t{workers} && total_units < kHalfLine &&
           int64_t{longest} * items == total_units;
  }
  // Only if may_be_even().
  LEANATTN_HOST_DEVICE static LineCut even(const TileLine& line, int32_t total_units, int32_t longest,
                                           int32_t workers) {
    const int32_t items = line.batch * line.items_per_seq;
    if (items <= workers) {
      // Each item made longer until pieces of it are shares.
      const int32_t tiles = longest - line.item_cost, least = Pieces::least_tiles(tiles * items, tiles, workers);
      const int32_t most = ceil_div(tiles, quotient(workers, items)), size = most > least ? most : least;
      const int32_t units = ceil_div(tiles, size) * size;
      if (size <= Pieces::most_tiles(least)) return {{size, 0, items * units}, units - tiles, true};
    }
    const int32_t share = ceil_div(total_units, workers), whole = ceil_div(share, longest) * longest;
    if (whole <= share + kWholeSlack) return {{whole, 0, total_units}, line.item_cost, true};
    return anywhere(line, total_units, workers);
  }
};

// What a worker needs to know to tell how an item is cut.
struct Cuts {
  Shares shares;      // of the line, unless
  Pieces pieces;      // there are any, or
  WholeItems whole;   // nothing is cut
  int32_t item_cost;  // of the line

  LEANATTN_HOST_DEVICE static Cuts of_line(const LineCut& cut) { return {cut.shares, {}, {}, cut.item_cost}; }
  // Of a batch-invariant call, with a plan or without: shares whose ends are then moved to borders of pieces.
  LEANATTN_HOST_DEVICE static Cuts of_fixed_pieces(const TileLine& line, int32_t total_units, int32_t workers) {
    return {Shares::of(total_units, workers), {}, {}, line.item_cost};
  }
  // Of a call without a plan, by one thread.
  static Cuts of_line(const TileLine& line, int32_t workers, const FixedPieces& fixed = {}) {
    if (fixed.any()) return of_fixed_pieces(line, total_units(line), workers);
    return of_line(LineCut::of(line, total_units(line), longest_item_units(line), workers));
  }

  LEANATTN_HOST_DEVICE CutItem cut_item(int32_t worker, const Span& span) const {
    return pieces.tiles > 0 ? pieces.cut_item(worker, span) : CutItem::of(shares, span);
  }
};

// The cuts of a plan, by one thread; by a warp: plan.cu.
inline Cuts cuts_of(const TileLine& line, int32_t workers, const FixedPieces& fixed = {}) {
  if (fixed.any()) return Cuts::of_line(line, workers, fixed);
  const int32_t tiles = total_tiles(line), units = total_units(line);
  Cuts cuts{shares_of(line, units, workers), {}, {}, line.item_cost};
  const int32_t longest = longest_item_units(line);
  for (int32_t i = 0; i < Pieces::kCandidates && Pieces::possible(line, tiles, workers); ++i) {
    cuts.pieces = Pieces::candidate(i, tiles, longest - line.item_cost, workers);
    int64_t count = 0;
    for (int32_t seq = 0; seq < line.batch; ++seq) count += cuts.pieces.count(line.item_tiles(seq));
    if (count * line.items_per_seq <= workers) return cuts;
  }
  cuts.pieces = {};
  for (int32_t i = 0; i < WholeItems::kCandidates && WholeItems::possible(line, units, longest, workers); ++i) {
    cuts.whole = WholeItems::candidate(i, units, longest, workers);
    WholeItems::Moves moves;
    for (int32_t seq = 0, begin = 0; seq < line.batch; begin += line.seq_units(seq++)) {
      moves.add(line, cuts.whole, seq, begin);
    }
    if (cuts.whole.even(moves, units, workers)) return cuts;
  }
  cuts.whole = {};
  return cuts;
}

// Place `at` of the line moved to a border: of items, the nearest one, or of fixed pieces; by one thread.
inline int32_t moved_cut(const TileLine& line, int32_t at, const FixedPieces& fixed) {
  int32_t seq = 0, begin = 0;
  while (seq < line.batch && at >= begin + line.seq_units(seq)) begin += line.seq_units(seq++);
  if (seq == line.batch) return at;  // the end of the line
  const int32_t item_units = line.item_units(seq), offset = (at - begin) % item_units;
  if (fixed.any()) return at - offset + moved_to_border(line, fixed, line.item_tiles(seq), offset);
  return WholeItems::nearest_border(at, at - offset, item_units);
}

// The spans of a worker, by one thread that walks the batch from its start.
inline PieceCursor worker_spans(TileLine line, const Cuts& cuts, int32_t worker, const FixedPieces& fixed = {}) {
  line.item_cost = cuts.item_cost;
  if (cuts.pieces.tiles > 0) {
    for (int32_t seq = 0, first = 0; seq < line.batch; ++seq) {
      const int32_t pieces = cuts.pieces.count(line.item_tiles(seq)) * line.items_per_seq;
      if (worker < first + pieces) return PieceCursor::at(cuts.pieces.worker_spans(line, seq, worker - first), fixed);
      first += pieces;
    }
    return PieceCursor::at(SpanCursor::none(line), fixed);
  }
  const auto cut = [&](int32_t i) {
    if (fixed.any()) return moved_cut(line, cuts.shares.begin(i), fixed);
    return cuts.whole.units > 0 ? moved_cut(line, cuts.whole.cut(i, total_units(line)), fixed) : cuts.shares.begin(i);
  };
  return PieceCursor::at(worker_spans(line, cut(worker), cut(worker + 1)), fixed);
}

}  // namespace leanattn
