// Launches the portable body; included by its instantiation files.
#pragma once

#include "launch.cuh"
#include "portable_traits.cuh"

namespace leanattn {

template <typename Element, int kHeadDim, KernelKind kKind>
cudaError_t launch_portable(const DecodeParams& params, const DeviceLimits& device, cudaStream_t stream) {
  constexpr int kMostRows = kHeadDim > 128      ? tile_table::kMostRowsWide
                            : is_general(kKind) ? tile_table::kMostRowsGeneral
                                                : tile_table::kMaxBlockRows;
  return with_rows_and_heads<kMostRows>(params, [&](auto rows, auto heads) {
    using Traits = PortableTraits<Element, kHeadDim, rows, heads, kKind>;
    using Size = SharedMemorySize<Traits>;
    static_assert(Size::bytes(Size::kMinStages) <= Traits::kLeastSharedMemory);
    return launch_decode<Traits>(params, device, stream);
  });
}

template <typename Element, int kHeadDim, KernelKind kKind>
constexpr DecodeKernel portable_kernel() {
  constexpr DType dtype = std::is_same_v<Element, cutlass::half_t> ? DType::kFloat16 : DType::kBFloat16;
  return {dtype, kHeadDim, kKind, launch_portable<Element, kHeadDim, kKind>};
}

}  // namespace leanattn
