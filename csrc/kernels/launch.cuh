// From parameters to a kernel launch.
#pragma once

#include <algorithm>
#include <mutex>
#include <type_traits>

#include "decode_kernel.cuh"
#include "launch.h"

namespace leanattn {

// What a kernel needs to know of itself on a device.
struct KernelState {
  bool known = false;
  bool dependent_launch = false;  // its code waits for the kernel ahead (ptx::grid_dependency_wait)
};

// Finds it out on the first call that succeeds; an error (out of memory, say) is not for ever.
template <typename Traits>
cudaError_t find_kernel_state(const DeviceLimits& device, KernelState& result) {
  static std::mutex mutex;
  static KernelState states[kMaxDevices];
  const std::lock_guard lock(mutex);
  KernelState& state = states[device.ordinal];
  if (!state.known) {
    // More than 48 KiB of shared memory must be asked for.
    cudaError_t error = cudaFuncSetAttribute(decode_kernel<Traits>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             device.shared_memory_bytes);
    if (error != cudaSuccess) return error;
    cudaFuncAttributes attributes;
    error = cudaFuncGetAttributes(&attributes, decode_kernel<Traits>);
    if (error != cudaSuccess) return error;
    // A newer GPU than the build knows runs the kernel from its sm_80 PTX, in which there is no wait:
    // the code decides, not the GPU.
    state = {true, attributes.ptxVersion >= 90};
  }
  result = state;
  return cudaSuccess;
}

template <typename Traits>
cudaError_t launch_decode(const DecodeParams& params, const DeviceLimits& device, cudaStream_t stream) {
  KernelState state;
  const cudaError_t error = find_kernel_state<Traits>(device, state);
  if (error != cudaSuccess) return error;
  const int fit = Traits::stages(device.shared_memory_bytes);
  const int stages = params.debug.max_stages > 0 ? std::min(params.debug.max_stages, fit) : fit;

  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(params.team_size, params.teams);
  config.blockDim = Traits::kThreads;
  config.dynamicSmemBytes = Traits::shared_memory_bytes(stages);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = state.dependent_launch ? 1 : 0;
  return cudaLaunchKernelEx(&config, decode_kernel<Traits>, params, stages);
}

// Calls launch_with(kRows, kHeads), both std::integral_constant, with as few rows of padding as there can be: each
// costs MMAs, exponentials and registers. tile_table.h says when an item has several heads.
template <typename LaunchWith>
cudaError_t with_rows_and_heads(const DecodeParams& params, const LaunchWith& launch_with) {
  static_assert(tile_table::kMaxBlockRows == 32);
  constexpr std::integral_constant<int, 1> kOneHead;
  if (params.heads > 1) {
    return launch_with(std::integral_constant<int, tile_table::kManyHeadsRows>{},
                       std::integral_constant<int, tile_table::kManyHeads>{});
  }
  if (params.block_rows <= 8) return launch_with(std::integral_constant<int, 8>{}, kOneHead);
  if (params.block_rows <= 16) return launch_with(std::integral_constant<int, 16>{}, kOneHead);
  return launch_with(std::integral_constant<int, 32>{}, kOneHead);
}

}  // namespace leanattn
