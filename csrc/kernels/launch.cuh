// From parameters to a kernel launch.
#pragma once

#include <algorithm>
#include <type_traits>

#include "decode_kernel.cuh"
#include "dependent_launch.cuh"

namespace leanattn {

template <typename Traits>
cudaError_t launch_decode(const DecodeParams& params, const DeviceLimits& device, cudaStream_t stream) {
  using Size = SharedMemorySize<Traits>;
  const int fit = Size::stages(device.shared_memory_bytes);
  const int stages = params.debug.max_stages > 0 ? std::min(params.debug.max_stages, fit) : fit;
  const LaunchShape shape{dim3(params.team_size, params.teams), Traits::kThreads, Size::bytes(stages)};
  return launch_dependent<decode_kernel<Traits>>(device, shape, stream, params, stages);
}

// Calls launch_with(kRows, kHeads), both std::integral_constant, with as few rows of padding as there can be: each
// costs MMAs, exponentials and registers. tile_table.h says when an item has several heads, and how many rows at most.
template <int kMostRows, typename LaunchWith>
cudaError_t with_rows_and_heads(const DecodeParams& params, const LaunchWith& launch_with) {
  static_assert(kMostRows == 32 || kMostRows == 16 || kMostRows == 8);
  constexpr std::integral_constant<int, 1> kOneHead;
  constexpr std::integral_constant<int, 8> kEightRows;
  if constexpr (kMostRows == 8) {
    return launch_with(kEightRows, kOneHead);
  } else {
    if (params.heads > 1) {
      return launch_with(std::integral_constant<int, tile_table::kManyHeadsRows>{},
                         std::integral_constant<int, tile_table::kManyHeads>{});
    }
    if (params.block_rows <= 8) return launch_with(kEightRows, kOneHead);
    if constexpr (kMostRows == 32) {
      if (params.block_rows > 16) return launch_with(std::integral_constant<int, 32>{}, kOneHead);
    }
    return launch_with(std::integral_constant<int, 16>{}, kOneHead);
  }
}

}  // namespace leanattn
