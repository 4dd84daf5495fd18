// The sizes that the schedule needs, one place for each number. Integers only, no CUDA header:
// the bindings, the CPU backend and leanattn._schedule read them too.
#pragma once

#include "params.h"

namespace leanattn::tile_table {

// Query rows of one item at most. 32 rows x head_dim 128 of float32 O are 128 registers a thread when one warp
// holds them; 64 would not fit. A larger group becomes several query blocks, which read K and V again (mostly from L2).
constexpr int32_t kMaxBlockRows = 32;

// Workers at most; the size of a block of tickets. Far above any SM count, small enough to hand out freely (4 KiB).
constexpr int32_t kMaxWorkers = 1024;

// CUDA: 32 KiB of 16-bit K and V a tile. One SM of an H200 reads that in 0.9 us, short enough to balance small
// batches, and long enough that the work a tile costs besides reading hides behind it.
constexpr int32_t cuda_tile_tokens(int32_t head_dim) { return head_dim <= 64 ? 128 : 64; }

// CUDA: to switch items (load Q, merge the warps, write) takes a CTA about as long as a tile does.
constexpr int32_t kCudaItemCost = 1;

// CPU: 64 rows of K and V of the heads that are read together, and the next ones on their way, fit a core's L2 cache.
// 32 rows cost 5% where arithmetic is the limit (groups of 8 and more), 128 cost 15% on sequences of some hundred
// tokens.
constexpr int32_t kCpuTileTokens = 64;

// CPU: a thread switches items in a small part of the time of a tile, so nothing is charged for it.
constexpr int32_t kCpuItemCost = 0;

// A group of query rows in as few items as possible, of equal size.
struct RowBlocks {
  int32_t row_blocks, block_rows;
};
constexpr RowBlocks row_blocks(int32_t group) {
  const int32_t blocks = ceil_div(group, kMaxBlockRows);
  return {blocks, ceil_div(group, blocks)};
}

}  // namespace leanattn::tile_table
