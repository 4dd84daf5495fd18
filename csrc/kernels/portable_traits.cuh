// The decode kernel of sm_80 and up.
#pragma once

#include "loader_cp_async.cuh"

namespace leanattn {

template <typename Element, int kHeadDim, int kRows, int kHeads, bool kPaged_>
struct PortableTraits : TileTraits<Element, kHeadDim, kRows, kHeads> {
  using Base = TileTraits<Element, kHeadDim, kRows, kHeads>;
  using Loader = CpAsyncLoader<PortableTraits>;
  static constexpr bool kPaged = kPaged_;  // a kernel of its own: what the other has to fetch stays as it is
  static constexpr int kThreads = Base::kComputeThreads + Loader::kProducerThreads;

  // With more than three tiles in flight an SM, the memory system of an H200 only queues them, and serves the SMs less
  // evenly (docs/tuning.md).
  static constexpr int kMostInFlight = 3;
  // What any GPU from sm_80 on gives a CTA (sm_86, sm_89, sm_120) must do.
  static constexpr int kLeastSharedMemory = 99 * 1024;
  static_assert(Base::shared_memory_bytes(Base::kMinStages) <= kLeastSharedMemory);
};

}  // namespace leanattn
