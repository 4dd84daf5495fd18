// Launches the wgmma body; included by its instantiation files.
#pragma once

#include "launch.cuh"
#include "wgmma_traits.cuh"

namespace leanattn {

template <typename Element, int kHeadDim>
cudaError_t launch_wgmma(const DecodeParams& params, const DeviceLimits& device, cudaStream_t stream) {
  return launch_decode<WgmmaTraits<Element, kHeadDim>>(params, device, stream);
}

template <typename Element, int kHeadDim>
constexpr DecodeKernel wgmma_kernel() {
  constexpr DType dtype = std::is_same_v<Element, cutlass::half_t> ? DType::kFloat16 : DType::kBFloat16;
  return {dtype, kHeadDim, KernelKind::kWgmma, launch_wgmma<Element, kHeadDim>};
}

}  // namespace leanattn
