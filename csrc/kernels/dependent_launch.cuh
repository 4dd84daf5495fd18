// Programmatic dependent launch: kernels that may start while the one ahead of them in the stream still runs.
#pragma once

#include <mutex>
#include <utility>

#include "launch.h"

namespace leanattn {

// What a kernel needs to know of itself on a device.
struct KernelState {
  bool known = false;
  bool dependent_launch = false;  // its code waits for the kernel ahead (ptx::grid_dependency_wait)
};

// Finds it out on the first call that succeeds; an error (out of memory, say) is not for ever.
template <auto kKernel>
cudaError_t find_kernel_state(const DeviceLimits& device, KernelState& result) {
  static std::mutex mutex;
  static KernelState states[kMaxDevices];
  const std::lock_guard lock(mutex);
  KernelState& state = states[device.ordinal];
  if (!state.known) {
    // More than 48 KiB of shared memory must be asked for.
    cudaError_t error =
        cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_memory_bytes);
    if (error != cudaSuccess) return error;
    cudaFuncAttributes attributes;
    error = cudaFuncGetAttributes(&attributes, kKernel);
    if (error != cudaSuccess) return error;
    // A newer GPU than the build knows runs the kernel from its sm_80 PTX, in which there is no wait:
    // the code decides, not the GPU.
    state = {true, attributes.ptxVersion >= 90};
  }
  result = state;
  return cudaSuccess;
}

struct LaunchShape {
  dim3 grid;
  int threads;  // of a CTA
  int shared_memory_bytes = 0;
};

// `kKernel` calls ptx::grid_dependency_wait() before it touches memory that a kernel ahead may write, or reads what one
// has written.
template <auto kKernel, typename... Arguments>
cudaError_t launch_dependent(const DeviceLimits& device, const LaunchShape& shape, cudaStream_t stream,
                             Arguments&&... arguments) {
  KernelState state;
  const cudaError_t error = find_kernel_state<kKernel>(device, state);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.threads;
  config.dynamicSmemBytes = shape.shared_memory_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = state.dependent_launch ? 1 : 0;
  return cudaLaunchKernelEx(&config, kKernel, std::forward<Arguments>(arguments)...);
}

}  // namespace leanattn
