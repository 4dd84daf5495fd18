// The decode kernel of Hopper (sm_90a).
#pragma once

#include "loader_tma.cuh"

namespace leanattn {

template <typename Element, int kHeadDim, int kRows>
struct HopperTraits : TileTraits<Element, kHeadDim, kRows> {
  using Base = TileTraits<Element, kHeadDim, kRows>;
  using Source = TmaSource;
  using Loader = TmaLoader<HopperTraits>;
  static constexpr int kThreads = Base::kComputeThreads + Loader::kProducerThreads;
  static constexpr int kMostInFlight = 3;
  static constexpr int kMostStages = Base::kMaxStages;
};

}  // namespace leanattn
