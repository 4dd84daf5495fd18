// Launches the portable body; included by its instantiation files.
#pragma once

#include "launch.cuh"
#include "portable_traits.cuh"

namespace leanattn {

template <typename Element, int kHeadDim, bool kPaged>
cudaError_t launch_portable(const DecodeParams& params, const DeviceLimits& device, cudaStream_t stream) {
  return with_rows_and_heads(params, [&](auto rows, auto heads) {
    return launch_decode<PortableTraits<Element, kHeadDim, rows, heads, kPaged>>(params, device, stream);
  });
}

template <typename Element, int kHeadDim, bool kPaged>
constexpr DecodeKernel portable_kernel() {
  constexpr DType dtype = std::is_same_v<Element, cutlass::half_t> ? DType::kFloat16 : DType::kBFloat16;
  return {dtype, kHeadDim, kPaged, launch_portable<Element, kHeadDim, kPaged>};
}

}  // namespace leanattn
