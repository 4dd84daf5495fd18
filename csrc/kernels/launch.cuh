// From parameters to a kernel launch; included by the instantiation files.
#pragma once

#include <mutex>

#include "decode_kernel.cuh"
#include "launch.h"

namespace leanattn {

// What a kernel needs to know of itself on a device; found out once.
struct KernelState {
  std::once_flag once;
  cudaError_t error = cudaSuccess;
  bool dependent_launch = false;  // its code waits for the kernel ahead (ptx::grid_dependency_wait)
};

template <typename Traits>
const KernelState& kernel_state(const DeviceLimits& device) {
  static KernelState states[kMaxDevices];
  KernelState& state = states[device.ordinal];
  std::call_once(state.once, [&] {
    // More than 48 KiB of shared memory must be asked for.
    state.error = cudaFuncSetAttribute(decode_kernel<Traits>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       device.shared_memory_bytes);
    if (state.error != cudaSuccess) return;
    // A newer GPU than the build knows runs the kernel from its sm_80 PTX, in which there is no wait:
    // the code decides, not the GPU.
    cudaFuncAttributes attributes;
    state.error = cudaFuncGetAttributes(&attributes, decode_kernel<Traits>);
    state.dependent_launch = state.error == cudaSuccess && attributes.ptxVersion >= 90;
  });
  return state;
}

template <typename Traits>
cudaError_t launch_decode(const DecodeParams& params, const DeviceLimits& device, cudaStream_t stream) {
  const int stages = Traits::stages(device.shared_memory_bytes);
  if (stages < Traits::kMinStages) return cudaErrorInvalidConfiguration;
  const KernelState& state = kernel_state<Traits>(device);
  if (state.error != cudaSuccess) return state.error;

  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = params.workers;
  config.blockDim = Traits::kThreads;
  config.dynamicSmemBytes = Traits::shared_memory_bytes(stages);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = state.dependent_launch ? 1 : 0;
  return cudaLaunchKernelEx(&config, decode_kernel<Traits>, params, stages);
}

template <typename Element, int kHeadDim>
cudaError_t launch_portable(const DecodeParams& params, const DeviceLimits& device, cudaStream_t stream) {
  // Most groups are at most 16 rows, and half the accumulator registers then do.
  return params.block_rows <= 16 ? launch_decode<PortableTraits<Element, kHeadDim, 16>>(params, device, stream)
                                 : launch_decode<PortableTraits<Element, kHeadDim, 32>>(params, device, stream);
}

}  // namespace leanattn
