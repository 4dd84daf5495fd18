// Launches the Hopper body; included by its instantiation files.
#pragma once

#include "hopper_traits.cuh"
#include "launch.cuh"
#include "tensor_map.h"

namespace leanattn {

template <typename Element, int kHeadDim>
cudaError_t launch_hopper(const DecodeParams& params, const DeviceLimits& device, cudaStream_t stream) {
  return with_rows(params.block_rows, [&](auto rows) {
    using Traits = HopperTraits<Element, kHeadDim, rows>;
    TmaSource source;
    if (!encode_cache_map(source.k, params.k, params.k_strides, params, Traits::kWarpTokens) ||
        !encode_cache_map(source.v, params.v, params.v_strides, params, Traits::kWarpTokens)) {
      return cudaErrorNotSupported;
    }
    return launch_decode<Traits>(params, source, device, stream);
  });
}

}  // namespace leanattn
