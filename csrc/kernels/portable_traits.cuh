// The decode kernel of sm_80 and up.
#pragma once

#include "launch.h"
#include "loader_cp_async.cuh"
#include "tile_span.cuh"
#include "warp_merge.cuh"

namespace leanattn {

// What the cache of such a kernel holds.
template <typename Element, KernelKind kKind>
using CachedOf = std::conditional_t<kKind == KernelKind::kE4M3, E4M3,
                                    std::conditional_t<kKind == KernelKind::kE5M2, E5M2,
                                                       std::conditional_t<kKind == KernelKind::kInt8, Int8, Element>>>;

template <typename Element, int kHeadDim, int kRows, int kHeads, KernelKind kKind>
struct PortableTraits : TileTraits<Element, kHeadDim, kRows, kHeads, CachedOf<Element, kKind>> {
  using Base = TileTraits<Element, kHeadDim, kRows, kHeads, CachedOf<Element, kKind>>;
  using Loader = CpAsyncLoader<PortableTraits>;
  using Loop = TileLoop<PortableTraits>;
  static constexpr bool kPaged = kKind != KernelKind::kPlain;
  static constexpr bool kGeneral = is_general(kKind);
  static constexpr bool kFixedPieces = kGeneral;  // of batch-invariant calls
  static constexpr bool kManyRows = kRows > 8;    // merge_parts.h
  static constexpr bool kNeedsSm90a = false, kWgmma = false;
  static constexpr int kThreads = Base::kComputeThreads + Loader::kProducerThreads;

  // What any GPU from sm_80 on gives a CTA (sm_86, sm_89, sm_120) must do.
  static constexpr int kLeastSharedMemory = 99 * 1024;
};

}  // namespace leanattn
