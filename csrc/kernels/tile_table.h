// The sizes that the schedule and the kernels need, one place for each number. Integers only, no CUDA header:
// the bindings, the CPU backend and leanattn._schedule read them too.
#pragma once

#include "params.h"

namespace leanattn::tile_table {

// Query rows of a KV head in an item at most. 32 rows x head_dim 128 of float32 O are 128 registers a thread when one
// warp holds them; 64 would not fit. More become several query blocks, which read K and V again (mostly from L2), or
// go to wgmma.
constexpr int32_t kMaxBlockRows = 32;
// CUDA, with score options or a cache of 8 bits: what those take leaves no registers for 32.
constexpr int32_t kMostRowsGeneral = 16;
// ... and with a head_dim above 128 no more than a group of eight.
constexpr int32_t kMostRowsWide = 8;
// Where there is wgmma, which takes 64 rows of a warpgroup: one computes its scores while the other multiplies.
constexpr int32_t kRowsWgmma = 128;
// ... and the tokens of a tile there: more scores than 64 x 64 of a warpgroup do not fit into its registers.
constexpr int32_t kTokensWgmma = 64;

// Workers at most; the size of a block of tickets. Far above any SM count, small enough to hand out freely (4 KiB).
constexpr int32_t kMaxWorkers = 1024;

// CUDA: the head_dim of the kernel that serves one, of K and V the wider. Columns that there are not are zeros.
constexpr int32_t kMaxCudaHeadDim = 512;
constexpr int32_t kMaxCudaHeadDim8Bits = 256;  // of a cache of 8 bits
constexpr int32_t widest_head_dim(int32_t k, int32_t v) { return k > v ? k : v; }
constexpr int32_t cuda_head_dim(int32_t head_dim) {
  int32_t of_kernel = 64;
  while (of_kernel < head_dim && of_kernel < kMaxCudaHeadDim) of_kernel *= 2;
  return of_kernel;
}

// CUDA: 32 KiB of K and V a tile, of one KV head or of several neighbours. One SM of an H200 reads that in 0.9 us,
// short enough to balance small batches, and long enough that the work a tile costs besides hides behind it.
constexpr int32_t kTileBytes = 32 * 1024;
constexpr int32_t cuda_tile_tokens(int32_t head_dim, int32_t heads, int32_t itemsize) {
  return kTileBytes / (2 * itemsize * head_dim * heads);
}

// CUDA: to switch items (load Q, merge the warps, write) takes a CTA about as long as a tile does.
constexpr int32_t kCudaItemCost = 1;
// ... with wgmma as four do: its partials have eight times as many rows (docs/tuning.md).
constexpr int32_t kWgmmaItemCost = 4;

// CUDA: items of several KV heads have this many, with this many query rows each at most: more rows of Q and of
// partials do not fit into shared memory.
constexpr int32_t kManyHeads = 4;
constexpr int32_t kManyHeadsRows = 8;

// CPU: 64 rows of K and V of the heads that are read together, and the next ones on their way, fit a core's L2 cache.
// 32 rows cost 5% where arithmetic is the limit (groups of 8 and more), 128 cost 15% on sequences of some hundred
// tokens.
constexpr int32_t kCpuTileTokens = 64;

// CPU: a thread switches items in a small part of the time of a tile, so nothing is charged for it.
constexpr int32_t kCpuItemCost = 0;

// Query tokens of a sequence at most: what speculative decoding verifies at once.
constexpr int32_t kMaxQueryTokens = 16;

// What a call is, as far as it is known on the host. `max_tokens`: of a sequence that are seen; `rows`: query rows of a
// KV head.
struct Shape {
  int32_t batch, max_tokens, num_kv_heads, rows, head_dim, v_head_dim;
  bool paged;
  int32_t itemsize;  // bytes of an element of the cache
  bool score_options;
  int32_t row_limit;  // query rows of an item, of packed queries and with wgmma; 0: cuda_block_rows() has a limit
  bool batch_invariant;

  // Kernels have one head_dim, for K and V.
  constexpr int32_t widest() const { return widest_head_dim(head_dim, v_head_dim); }
  constexpr bool wide() const { return widest() > 128; }
  // Needs a CUDA kernel that can do more, with fewer query rows.
  constexpr bool general() const {
    return score_options || row_limit > 0 || batch_invariant || itemsize == 1 || wide() || head_dim != v_head_dim ||
           cuda_head_dim(head_dim) != head_dim;
  }
  constexpr int32_t cuda_tile(int32_t heads) const {
    if (row_limit == kRowsWgmma) return kTokensWgmma;
    return cuda_tile_tokens(cuda_head_dim(widest()), heads, itemsize);
  }
};

// Whether the kernel with wgmma can do a call. `head_dim`: the wider one.
constexpr bool fits_wgmma(int32_t head_dim, int32_t itemsize, bool batch_invariant) {
  return head_dim <= 128 && itemsize == 2 && !batch_invariant;
}

// Packed queries: whether sequences have so many of them on average that wgmma is worth while. Items of 16 rows read K
// and V as fast as memory gives them, and a tile takes wgmma as long as 64 rows do, longer than to read it.
constexpr bool many_packed_rows(int64_t tokens, int64_t group, int64_t batch) {
  return tokens * group > kMostRowsGeneral * batch;
}
// ... their Shape::row_limit. `wgmma`: the GPU and the build have it, and it is worth while.
constexpr int32_t packed_row_limit(bool cuda, bool wgmma, int32_t head_dim, int32_t itemsize, bool batch_invariant) {
  if (!cuda) return kMaxBlockRows;
  if (wgmma && fits_wgmma(head_dim, itemsize, batch_invariant)) return kRowsWgmma;
  return head_dim > 128 ? kMostRowsWide : kMostRowsGeneral;
}
// Query tokens of a block (query_blocks.h) at most, so that its rows of a KV head are an item's.
constexpr int32_t block_tokens(int32_t group, int32_t row_limit) { return group < row_limit ? row_limit / group : 1; }

// The query rows of a KV head in as few items as possible, of equal size.
struct RowBlocks {
  int32_t row_blocks, block_rows;

  constexpr static RowBlocks of(int32_t rows, int32_t most_rows) {
    const int32_t blocks = ceil_div(rows, most_rows);
    return {blocks, ceil_div(rows, blocks)};
  }
};

// Bytes of K and V, if all sequences are as long as they can be.
constexpr double cuda_bytes(const Shape& shape) {
  const double row_bytes = double(shape.itemsize) * (double(shape.head_dim) + shape.v_head_dim);
  return row_bytes * shape.batch * shape.max_tokens * shape.num_kv_heads;
}

// CUDA: to merge partials of many rows takes long, and to read little K and V again from L2 does not. 8 tokens of
// llama8b take 6.7 us in items of 8 rows and 8.7 in items of 32 where that is 4 MB, of 67 MB 26 in items of 16 and 24
// in items of 32 (docs/tuning.md).
constexpr int32_t cuda_block_rows(const Shape& shape) {
  const double bytes = cuda_bytes(shape);
  if (shape.row_limit > 0) return shape.row_limit;
  if (shape.wide()) return kMostRowsWide;
  if (shape.batch_invariant) return kMostRowsGeneral;  // the cache is another one in another batch
  if (shape.general()) return bytes <= 8e6 ? 8 : kMostRowsGeneral;
  return bytes <= 8e6 ? 8 : (bytes <= 20e6 ? 16 : kMaxBlockRows);
}

// CUDA: in a cache [batch, tokens, heads, dim], neighbouring heads of a token are neighbours in memory, and DRAM gives
// them faster together than one after the other. A team of workers does that (cuda_team_size). But where even a team
// reads a small part of a token's heads, an item has several of them: 2% of the time at 256 bytes a head, 4% at 128
// (docs/tuning.md), unless that leaves so few items that merging what is cut costs more, some 4 us. Up to
// kHeadsForATeam heads a team does better, but not in a paged cache, where items of one head cost up to 12%, nor for
// many sequences of two tiles at most, of which to switch items takes longer than to read them.
constexpr int32_t kHeadsForATeam = 12;
constexpr int32_t cuda_heads(const Shape& shape, int32_t workers) {
  const bool one_head = shape.wide() || shape.row_limit > 0 || shape.batch_invariant;  // whatever the batch
  if (shape.num_kv_heads % kManyHeads != 0 || shape.rows > kManyHeadsRows || one_head) return 1;
  const int64_t items = int64_t{shape.batch} * (shape.num_kv_heads / kManyHeads);
  const bool few_cuts = 10 * items >= 9 * workers;
  if (shape.num_kv_heads <= kHeadsForATeam && !shape.paged) {
    const bool short_sequences = shape.max_tokens <= 2 * shape.cuda_tile(1);
    return few_cuts && short_sequences ? kManyHeads : 1;
  }
  constexpr double kMergeBytes = 18e6;  // read in 4 us
  const double gained_bytes = cuda_bytes(shape) / 100 * (shape.widest() <= 64 ? 4 : 2);
  return few_cuts || (gained_bytes > kMergeBytes && 20 * items >= workers) ? kManyHeads : 1;
}

// CUDA: the items of a sequence lie side by side in memory too, and may be more blocks of the same KV head's rows. So
// they are read at the same time, by a team of workers: up to 6% of the time (docs/tuning.md). Not if more than a 64th
// of the workers would not fit into teams; a team of more than kMaxTeam gains nothing, nor does one that reads more
// than kTeamBytes of a token's K in items of several heads.
constexpr int32_t kMaxTeam = 16;
constexpr int32_t kTeamBytes = 2048;
constexpr int32_t kMaxTeams = 65535;  // the second dimension of a grid
constexpr int32_t cuda_most_in_team(int32_t heads, int64_t head_bytes) {
  if (heads == 1) return kMaxTeam;
  const int64_t fit = kTeamBytes / (heads * head_bytes);
  return fit > kMaxTeam ? kMaxTeam : static_cast<int32_t>(fit);
}
constexpr int32_t cuda_team_size(int64_t items_per_seq, int32_t workers, int32_t most) {
  for (int32_t size = most; size > 1; --size) {
    if (items_per_seq % size == 0 && size <= workers && workers % size <= workers / 64) return size;
  }
  return 1;
}

// CUDA: bytes of K and V that a worker has asked for and that are still on their way. More only wait in the
// memory system, and the members of a team, which read neighbouring heads, get further apart (docs/tuning.md).
constexpr int64_t kBytesInFlight = 2 * kTileBytes;
// Of a batch-invariant call, which has more spans and so more pauses between their tiles.
constexpr int64_t kBytesInFlightInvariant = 3 * kTileBytes;
constexpr int32_t kLineBytes = 128;  // of L2
// Rounded to whole tiles. A row that begins or ends inside a line brings the rest of that too, so that its tile counts
// as one of rows that are as long as the kernel's.
constexpr int32_t cuda_tiles_in_flight(const Shape& shape, int32_t heads) {
  const int64_t k_bytes = int64_t{shape.itemsize} * shape.head_dim,
                v_bytes = int64_t{shape.itemsize} * shape.v_head_dim;
  const bool whole_lines = k_bytes % kLineBytes == 0 && v_bytes % kLineBytes == 0;
  const int64_t of_kernel = int64_t{2} * shape.itemsize * cuda_head_dim(shape.widest());
  const int64_t tile_bytes = (whole_lines ? k_bytes + v_bytes : of_kernel) * heads * shape.cuda_tile(heads);
  const int64_t bytes = shape.batch_invariant ? kBytesInFlightInvariant : kBytesInFlight;
  const int64_t tiles = (bytes + tile_bytes / 2) / tile_bytes;
  return tiles > 1 ? static_cast<int32_t>(tiles) : 1;
}

// CUDA: whether queries that are not packed go to the kernel with wgmma, if there is one. Where their rows are too many
// for one item of the others, each of whose items reads K and V again: of 268 MB, 16 tokens of llama8b take 109 us in
// two items and 75 in one. But every piece of an item leaves a partial of all these rows. That costs more than it saves
// if many workers share an item, or read little: 16 tokens of 8k of 70b/tp8, alone, take 12 us and would take 49. How
// much they read is not known here, only how much the cache can hold: of 16 such sequences of 1k in a larger cache, 8
// tokens take 12 us instead of 11, 16 take 18 instead of 13; of 8k, 31 instead of 41, and 35 instead of 74
// (docs/tuning.md).
constexpr int32_t kMostWorkersAnItem = 17;
constexpr double kLeastBytesWgmma = 16e6;
constexpr bool takes_wgmma(const Shape& shape, int32_t workers) {
  const bool fits = shape.row_limit == 0 && fits_wgmma(shape.widest(), shape.itemsize, shape.batch_invariant);
  const bool few_rows = shape.rows <= (shape.general() ? kMostRowsGeneral : kMaxBlockRows);
  const bool few_items = int64_t{kMostWorkersAnItem} * shape.batch * shape.num_kv_heads < workers;
  return fits && !few_rows && !few_items && cuda_bytes(shape) >= kLeastBytesWgmma;
}

struct Tiling {
  int32_t row_limit;  // Shape::row_limit
  int32_t heads;      // of an item
  RowBlocks rows;
  int32_t tile_tokens;
  int32_t tiles_in_flight;
  int32_t item_cost;
  int32_t team_size;
  int32_t partial_columns;  // of O
};
// `wgmma`: there is, in the GPU and in the build.
constexpr Tiling cuda_tiling(Shape shape, int32_t workers, bool wgmma) {
  if (wgmma && takes_wgmma(shape, workers)) shape.row_limit = kRowsWgmma;
  const int32_t heads = cuda_heads(shape, workers);
  const auto rows = RowBlocks::of(shape.rows, cuda_block_rows(shape));
  const int64_t items = int64_t{shape.num_kv_heads} / heads * rows.row_blocks;
  const int32_t team_size =
      cuda_team_size(items, workers, cuda_most_in_team(heads, int64_t{shape.itemsize} * shape.head_dim));
  return {shape.row_limit,
          heads,
          rows,
          shape.cuda_tile(heads),
          cuda_tiles_in_flight(shape, heads),
          shape.row_limit == kRowsWgmma ? kWgmmaItemCost : kCudaItemCost,
          team_size,
          cuda_head_dim(shape.widest())};
}
constexpr Tiling cpu_tiling(const Shape& shape) {
  return {shape.row_limit, 1, RowBlocks::of(shape.rows, kMaxBlockRows), kCpuTileTokens, 1, kCpuItemCost, 1,
          shape.v_head_dim};
}

inline Shape shape_of(const DecodeParams& p) {
  return {p.batch,         p.seen_tokens, p.num_kv_heads,   p.rows,
          p.head_dim,      p.v_head_dim,  p.paged(),        element_size(p.cache_dtype),
          p.score_options, p.row_limit,   p.batch_invariant};
}

inline void apply(const Tiling& tiling, int32_t workers, DecodeParams& p) {
  p.row_limit = tiling.row_limit;
  p.heads = tiling.heads;
  p.row_blocks = tiling.rows.row_blocks;
  p.block_rows = tiling.rows.block_rows;
  p.tile_tokens = tiling.tile_tokens;
  p.tiles_in_flight = tiling.tiles_in_flight;
  p.item_cost = tiling.item_cost;
  p.team_size = tiling.team_size;
  p.teams = workers / tiling.team_size;
  p.workers = p.teams * tiling.team_size;
  p.partial_floats =
      static_cast<int32_t>(int64_t{p.heads} * p.block_rows * (int64_t{tiling.partial_columns} + kPartialRowExtra));
  // check_line_fits() refuses what does not fit.
  p.items_per_team = static_cast<int32_t>(int64_t{p.num_kv_heads} / tiling.heads * p.row_blocks / tiling.team_size);
  if (p.batch_invariant) {
    const int32_t longest = quotient(p.seen_tokens, p.tile_tokens) + 1;  // tiles, rounded up without overflow
    p.fixed_pieces = FixedPieces::of(p.items_per_team, p.teams, longest);
  }
}

}  // namespace leanattn::tile_table
