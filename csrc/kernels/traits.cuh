// The compile-time shape of the portable decode kernel (sm_80 and up), and its shared memory.
// Schedule-visible sizes are in tile_table.h.
#pragma once

#include <cutlass/numeric_types.h>

#include <cute/tensor.hpp>

#include "tile_table.h"

namespace leanattn {

// Rows that the host block merges at a time: their sums are 16 registers a thread at head_dim 128.
constexpr int kHostRows = 16;

template <typename Element_, int kHeadDim_, int kRows_>
struct PortableTraits {
  using Element = Element_;  // cutlass::half_t or cutlass::bfloat16_t
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kRows = kRows_;  // query rows of an item, padded to the M of the MMA: 16 or 32

  // Four warps, one a scheduler: each reads its own tokens of every tile into its own ring and keeps its own m, l, O,
  // so the tile loop has no CTA barrier.
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kTileTokens = tile_table::cuda_tile_tokens(kHeadDim);
  static constexpr int kWarpTokens = kTileTokens / kWarps;

  // 16 rows of Q fit into registers (32 of them at head_dim 128); 32 rows beside 128 registers of O do not.
  static constexpr bool kQueryInRegisters = kRows <= 16;

  static_assert(kWarpTokens % 16 == 0, "a warp's tokens are the K of the P x V MMA");
  static_assert(kRows % 16 == 0, "rows are the M of the MMA");

  using MmaAtom =
      std::conditional_t<std::is_same_v<Element, cutlass::half_t>, cute::MMA_Atom<cute::SM80_16x8x16_F32F16F16F32_TN>,
                         cute::MMA_Atom<cute::SM80_16x8x16_F32BF16BF16F32_TN>>;
  // One warp; N and K of 16 let one ldmatrix.x4 feed two MMAs.
  using TiledMma = cute::TiledMMA<MmaAtom, cute::Layout<cute::Shape<cute::_1, cute::_1, cute::_1>>,
                                  cute::Tile<cute::Int<kRows>, cute::_16, cute::_16>>;

  // Rows of 128 bytes, 16-byte chunks XORed with the row: conflict-free for cp.async and for ldmatrix.
  using SwizzledRows = decltype(cute::composition(
      cute::Swizzle<3, 3, 3>{}, cute::Layout<cute::Shape<cute::_8, cute::_64>, cute::Stride<cute::_64, cute::_1>>{}));
  using KvLayout = decltype(cute::tile_to_shape(
      SwizzledRows{}, cute::Shape<cute::Int<kWarpTokens>, cute::Int<kHeadDim>>{}));  // [tokens, head_dim]
  using QueryLayout = decltype(cute::tile_to_shape(
      SwizzledRows{}, cute::Shape<cute::Int<kRows>, cute::Int<kHeadDim>>{}));  // [rows, head_dim]

  // A tile's load is spread over the steps of Q K^T, one for every 16 columns of head_dim.
  static constexpr int kLoadSteps = kHeadDim / 16;

  static constexpr int kStageElements = 2 * kWarpTokens * kHeadDim;                  // K and V of a warp's tokens
  static constexpr int kRingBytes = kWarps * kStageElements * int(sizeof(Element));  // of a stage
  static constexpr int kQueryElements = kRows * kHeadDim;
  static constexpr int kStageBytes = kRingBytes + kQueryElements * int(sizeof(Element));

  // Everything but the ring, [warp, stage, K|V, kWarpTokens, head_dim], and its queries, [stage, kRows, head_dim],
  // which follow.
  struct SharedMemory {
    // The warps' O are summed through shared memory, eight rows of every warp at a time: all rows at once would cost a
    // stage of the ring. The eight floats beside head_dim let the rows fall into different banks.
    static constexpr int kMergeRows = 8;
    static constexpr int kMergeStride = kHeadDim + 8;

    alignas(16) float merge[kWarps][kMergeRows][kMergeStride];
    float2 warp_ml[kWarps][kRows];      // m (log2 units) and l of every warp
    float2 span_ml[kRows];              // ... and of all warps together
    float2 item_ml[kHostRows];          // stage 3: ... and of all partials of an item
    int32_t scan[kWarps];               // stage 1: units of each warp's sequences
    int32_t located_seq, located_line;  // stage 1: where the CTA's share begins
    uint32_t ticket;                    // stage 3
  };
  static constexpr int kFixedBytes = (int(sizeof(SharedMemory)) + 127) / 128 * 128;

  // Two stages are the least that overlaps a load with work. With more than three tiles in flight an SM, the memory
  // system of an H200 only queues them, and serves the SMs less evenly (docs/tuning.md).
  static constexpr int kMinStages = 2;
  static constexpr int kMaxStages = 4;
  static constexpr int stages(int shared_memory_bytes) {
    const int fit = (shared_memory_bytes - kFixedBytes) / kStageBytes;
    return fit > kMaxStages ? kMaxStages : fit;
  }
  // What any GPU from sm_80 on gives a CTA (sm_86, sm_89, sm_120) must do.
  static constexpr int kLeastSharedMemory = 99 * 1024;
  static constexpr int shared_memory_bytes(int num_stages) { return kFixedBytes + num_stages * kStageBytes; }
  static_assert(kFixedBytes + kMinStages * kStageBytes <= kLeastSharedMemory);
};

}  // namespace leanattn
