// The compile-time shape of a decode kernel, and its shared memory. Schedule-visible sizes are in tile_table.h.
#pragma once

#include <cutlass/numeric_types.h>

#include <cute/tensor.hpp>

#include "item_rows.cuh"
#include "plan.h"
#include "tile_table.h"
#include "widen.cuh"

namespace leanattn {

// What the producer tells the warps that compute, beside a tile.
struct alignas(16) TileNote {
  int32_t visible;  // tokens of the sequence from the tile's first one on
  int32_t flags;
  int32_t first_row;                      // of the item
  int32_t causal_tokens;                  // CausalRows::tokens of the item
  static constexpr int32_t kLast = 1;     // of its span
  static constexpr int32_t kEnd = 2;      // the last of the CTA's share
  static constexpr int32_t kNothing = 4;  // no tile at all: the share is empty
};

// Of a span's item. A kernel that cannot do more needs the sequence and the head alone.
struct SpanOrigin {
  QueryBlock block;
  int32_t kv_head;  // the first
};

// What a span is about.
struct SpanItem {
  ItemRows rows;
  SpanOrigin origin;
  int32_t causal_tokens;

  template <typename Traits>
  __device__ __forceinline__ static SpanItem of(const DecodeParams& p, const Span& span) {
    const auto rows = ItemRows::of(p, span.seq, span.item);
    if constexpr (Traits::kGeneral) {
      const QueryBlock block = p.query_block(span.seq);
      return {p.packed() ? rows.of_block(p, block) : rows, {block, rows.kv_head}, p.causal_tokens_of(block)};
    }
    return {rows, {{span.seq}, rows.kv_head}, p.causal_tokens};
  }
};

// Shared memory beside the ring's tiles and queries (tile_ring.cuh), whatever computes.
struct RingMemory {
  static constexpr int kMaxStages = 6;

  uint64_t full[kMaxStages], empty[kMaxStages], task_there[kMaxStages];
  TileNote notes[kMaxStages];
  SpanTask tasks[kMaxStages];
  ItemRows first_rows;  // of the share's first span, for who loads its queries early
  // Stage 3, of a cut span that does not end the share, the first, and of one that does: each once a call.
  uint64_t tickets_there[2];
  Merges merges[2];
  // With score options or scales: what the item of each slot is of.
  SpanOrigin origins[kMaxStages];
  // Of a batch-invariant call.
  CutPieces pieces[kMaxStages];
  // No piece but the last of an item fits into the ring (producer_ahead.cuh).
  static_assert(FixedPieces::kLeastTiles > kMaxStages);
};

// How large shared memory is, with as many stages as fit.
template <typename Traits>
struct SharedMemorySize {
  static constexpr int kFixed = sizeof(typename Traits::SharedMemory) + Traits::kFixedQueryBytes;
  static constexpr int kMinStages = 2;  // the least that overlaps a load with work
  static_assert(Traits::kStageBytes % alignof(typename Traits::SharedMemory) == 0);

  static constexpr int bytes(int num_stages) { return kFixed + num_stages * Traits::kStageBytes; }
  static constexpr int stages(int shared_memory_bytes) {
    const int fit = (shared_memory_bytes - kFixed) / Traits::kStageBytes;
    return fit > RingMemory::kMaxStages ? RingMemory::kMaxStages : fit;
  }
};

// What the arithmetic of a kernel is, whatever brings its tiles.
//
// The MMA is m16n8k16 with tokens (of Q K^T) or columns of head_dim (of P V) as its 16 rows and the query rows as its 8
// columns: a group of at most eight fills it without padding to sixteen, which is half the MMAs, exponentials and
// accumulator registers of the other way round.
//
// K and V are in shared memory as the cache has them, in units of 16 bits: an element, or two of 8 bits.
template <typename Element_, int kHeadDim_, int kRows_, int kHeads_, typename Cached_>
struct TileTraits {
  using Element = Element_;  // of Q and out: cutlass::half_t or cutlass::bfloat16_t
  using Cached = Cached_;    // of the cache: the same, or one of 8 bits (widen.cuh)
  static constexpr int kItemsize = std::is_same_v<Cached, Element> ? 2 : 1;
  // What its elements are multiplied with is of a KV head, or of a token and a head (token_scales.cuh).
  static constexpr bool kTokenScales = std::is_same_v<Cached, Int8>, kHeadScales = kItemsize == 1 && !kTokenScales;
  using Operand = std::conditional_t<kItemsize == 1, cutlass::half_t, Element>;  // of the MMA
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kRows = kRows_;    // query rows of a KV head in an item, padded: 8, 16 or 32
  static constexpr int kHeads = kHeads_;  // KV heads of an item

  // Four warps compute, one a scheduler: each takes its own tokens, or its own head, of every stage and keeps its own
  // m, l, O, so the tile loop has no CTA barrier.
  static constexpr int kWarps = 4, kLoaderWarps = kWarps;
  static constexpr int kComputeThreads = 32 * kWarps;
  // A stage of the ring is a lean tile. The warps of a head take tokens that follow each other; where a row of O is too
  // long for one warp, two or four take the same tokens, and a part of the columns each (all compute the scores).
  static constexpr int kHeadWarps = kWarps / kHeads;
  static constexpr int kColumnWarps = kHeadDim > 128 ? kHeadDim / 128 : 1, kTokenWarps = kHeadWarps / kColumnWarps;
  static constexpr int kTileTokens = tile_table::cuda_tile_tokens(kHeadDim, kHeads, kItemsize);
  static constexpr int kWarpTokens = kTileTokens / kTokenWarps, kWarpColumns = kHeadDim / kColumnWarps;
  static_assert(kHeadWarps * kHeads == kWarps);
  // Whose tokens a warp that computes reads in the ring.
  __device__ __forceinline__ static int head_of_warp(int warp) { return warp / kHeadWarps; }
  __device__ __forceinline__ static int first_token_of_warp(int warp) {
    return warp % kHeadWarps / kColumnWarps * kWarpTokens;
  }

  // Q stays in shared memory where its registers, of all columns, and those of O, of a warp's, are too many: 32 rows of
  // head_dim 128 are 64 and 128.
  static constexpr bool kQueryInRegisters = kRows * kHeadDim / 64 + kRows * kWarpColumns / 32 <= 96;

  static_assert(kWarpTokens % 16 == 0, "a warp's tokens are the M of one MMA and the K of the other");
  static_assert(kRows % 8 == 0, "query rows are the N of the MMA");

  using MmaAtom =
      std::conditional_t<std::is_same_v<Operand, cutlass::half_t>, cute::MMA_Atom<cute::SM80_16x8x16_F32F16F16F32_TN>,
                         cute::MMA_Atom<cute::SM80_16x8x16_F32BF16BF16F32_TN>>;
  // One warp; N of 16, where there are as many rows, lets one ldmatrix.x4 feed two MMAs.
  static constexpr int kMmaRows = kRows == 8 ? 8 : 16;
  using TiledMma = cute::TiledMMA<MmaAtom, cute::Layout<cute::Shape<cute::_1, cute::_1, cute::_1>>,
                                  cute::Tile<cute::_16, cute::Int<kMmaRows>, cute::_16>>;

  // A row of K or V, and how much of one follows each other: 128 bytes, 16-byte chunks XORed with the row, or 64, XORed
  // with half of it. Conflict-free for cp.async and for ldmatrix.
  static constexpr int kUnits = kHeadDim * kItemsize / 2, kRowUnits = kUnits < 64 ? kUnits : 64;
  using SwizzledRows = decltype(cute::composition(
      cute::Swizzle<kRowUnits == 64 ? 3 : 2, 3, 3>{},
      cute::Layout<cute::Shape<cute::_8, cute::Int<kRowUnits>>, cute::Stride<cute::Int<kRowUnits>, cute::_1>>{}));
  static_assert(kRowUnits == 64 || kRowUnits == 32);
  // A warp's part of K or V of a tile, [tokens, units]. In columns of kRowUnits, then of tokens.
  using KvLayout =
      decltype(cute::tile_to_shape(SwizzledRows{}, cute::Shape<cute::Int<kWarpTokens>, cute::Int<kUnits>>{}));
  // The columns of V that a warp takes; they follow each other in KvLayout.
  using ValueLayout = decltype(cute::tile_to_shape(
      SwizzledRows{}, cute::Shape<cute::Int<kWarpTokens>, cute::Int<kUnits / kColumnWarps>>{}));
  static_assert(kUnits / kColumnWarps % kRowUnits == 0);
  // [rows, head_dim], each row by itself (a copy of its own): 16 bytes more than it takes let rows fall into different
  // banks.
  static constexpr int kQueryStride = kHeadDim + 8;
  using QueryLayout =
      cute::Layout<cute::Shape<cute::Int<kRows>, cute::Int<kHeadDim>>, cute::Stride<cute::Int<kQueryStride>, cute::_1>>;

  static constexpr int kWarpElements = kWarpTokens * kUnits;  // K, or V, of a warp's tokens
  static constexpr int kStageElements =
      2 * kHeads * kTokenWarps * kWarpElements;                         // [token warp, K|V, kWarpTokens, kUnits]
  static constexpr int kQueryElements = kHeads * kRows * kQueryStride;  // [head, row]
  static constexpr int kStageScales = kTokenScales ? 2 * kHeads * kTileTokens : 0;  // [token warp, K|V, kWarpTokens]
  static constexpr int kFixedQueryBytes = 0;  // there are as many slots of queries as stages
  static constexpr int kStageBytes =
      (kStageElements + kQueryElements) * int(sizeof(Element)) + kStageScales * int(sizeof(float));

  // Everything but the ring, [stage, token warp, K|V, kWarpTokens, kUnits], its queries, [stage, head, row,
  // kQueryStride], and its scales, [stage, token warp, K|V, kWarpTokens], which come first.
  struct SharedMemory : RingMemory {
    // The warps' O are summed through shared memory, eight rows of every warp at a time: all rows at once would cost a
    // stage of the ring. With four floats beside its columns a warp's stores of its accumulators hit every bank once,
    // of 8 bits twice.
    static constexpr int kMergeRows = 8;
    // ... and half of the columns, where all, beside scales and the queries of several heads, would take what the least
    // GPU has for its second stage.
    static constexpr int kMergeColumns = kTokenScales && kHeads > 1 ? kWarpColumns / 2 : kWarpColumns;
    static constexpr int kMergeStride = kMergeColumns + 4;

    alignas(16) float merge[kWarps][kMergeRows][kMergeStride];
    float2 warp_ml[kWarps][kMergeRows];  // m (log2 units) and l of every warp
  };
};

// The pieces of a call, as far as its kernel knows of them.
template <typename Traits>
__device__ __forceinline__ FixedPieces fixed_pieces_of(const DecodeParams& params) {
  if constexpr (Traits::kFixedPieces) return params.fixed_pieces;
  return {};
}

// Of the plan that serves a call.
template <typename Traits>
__device__ __forceinline__ int32_t item_kind_of(const DecodeParams& params) {
  if constexpr (Traits::kGeneral) return PlanHeader::kind_of(params.line(), params.fixed_pieces);
  return params.item_cost;
}

// The line of a call, as far as its kernel knows of it.
template <typename Traits>
__device__ __forceinline__ TileLine line_of(const DecodeParams& params) {
  TileLine line = params.line();
  if constexpr (!Traits::kGeneral) {
    line.leftpad = nullptr;
    line.block_tokens = 0;
  }
  return line;
}

}  // namespace leanattn
