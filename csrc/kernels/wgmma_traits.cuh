// The decode kernel of many query rows on sm_90a: of packed queries, and of others that tile_table.h sends to it.
#pragma once

#include "launch.h"
#include "loader_cp_async.cuh"
#include "wgmma_span.cuh"

namespace leanattn {

template <typename Element_, int kHeadDim_>
struct WgmmaTraits {
  using Element = Element_;  // of Q, K, V and out: cutlass::half_t or cutlass::bfloat16_t
  using Loader = CpAsyncLoader<WgmmaTraits>;
  using Loop = WgmmaLoop<WgmmaTraits>;
  static constexpr int kItemsize = 2;  // bytes of an element of the cache
  static constexpr bool kTokenScales = false, kHeadScales = false;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kRows = tile_table::kRowsWgmma, kHeads = 1;
  static constexpr bool kPaged = true, kGeneral = true, kNeedsSm90a = true, kWgmma = true;
  static constexpr bool kFixedPieces = false;  // no registers for them
  static constexpr bool kManyRows = true;      // merge_parts.h

  // Two warpgroups compute, 64 query rows each: while one works on weights, the other has the tensor cores.
  static constexpr int kWarps = kRows / 16, kLoaderWarps = 4;
  static constexpr int kComputeThreads = 32 * kWarps;
  static constexpr int kThreads = kComputeThreads + 32 * kLoaderWarps;
  // Of a thread; 384 threads start with 168 each, all that there are.
  static constexpr int kComputeRegisters = 192, kLoaderRegisters = 120;
  static_assert(kComputeRegisters * kComputeThreads + kLoaderRegisters * (kThreads - kComputeThreads) <=
                168 * kThreads);
  // All of them take all tokens of a tile; each loader warp brings a quarter of them.
  static constexpr int kTileTokens = tile_table::kTokensWgmma;
  static constexpr int kWarpTokens = kTileTokens, kTokenWarps = 1, kColumnWarps = kLoaderWarps;
  __device__ __forceinline__ static int head_of_warp(int) { return 0; }
  __device__ __forceinline__ static int first_token_of_warp(int) { return 0; }

  // What wgmma reads: rows of 64 columns, eight to an atom of 1 KiB, swizzled; in columns of 64, then of rows.
  static constexpr int kUnits = kHeadDim;
  using RowsAtom = cute::GMMA::Layout_K_SW128_Atom<Element>;
  using ColumnsAtom = cute::GMMA::Layout_MN_SW128_Atom<Element>;
  template <int kCount>
  using RowsLayout = decltype(cute::tile_to_shape(RowsAtom{}, cute::Shape<cute::Int<kCount>, cute::Int<kHeadDim>>{}));
  using MmaKeyLayout = RowsLayout<kTileTokens>;
  using MmaQueryLayout = RowsLayout<kRows>;
  // The same for who writes elements: CuTe gives those above to pointers, which swizzle bytes.
  template <typename Layout>
  using OfElements = decltype(cute::as_position_independent_swizzle_layout(Layout{}));
  using KvLayout = OfElements<MmaKeyLayout>;
  using QueryLayout = OfElements<MmaQueryLayout>;
  // V as [head_dim, tokens], in the same memory.
  using MmaValueLayout = decltype(cute::tile_to_shape(
      ColumnsAtom{}, cute::Shape<cute::Int<kHeadDim>, cute::Int<kTileTokens>>{}, cute::Step<cute::_2, cute::_1>{}));

  static constexpr int kWarpElements = kTileTokens * kUnits;  // K, or V, of a tile
  static constexpr int kStageElements = 2 * kWarpElements;    // [K|V, kTileTokens, kUnits]
  static constexpr int kQueryElements = kRows * kHeadDim;     // [row]
  static constexpr int kStageScales = 0;
  static constexpr int kStageBytes = kStageElements * int(sizeof(Element));
  // The queries of a span are as large as a tile. So there are slots for two spans only, the one that is computed and
  // the next (tile_ring.cuh).
  static constexpr int kFixedQueryBytes = 2 * kQueryElements * int(sizeof(Element));
  using SharedMemory = RingMemory;
};

}  // namespace leanattn
