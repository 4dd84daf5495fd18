// The elements of an 8-bit cache, as types: how four of them become float16, which holds all numbers of each.
#pragma once

#include <cuda_fp16.h>

#include "ptx.cuh"

namespace leanattn {

// Pairs of float16: of the even and of the odd ones of four bytes.
struct WidenedBytes {
  uint32_t even, odd;
};

struct E4M3 {
  // What widen() makes of a number is this times it: below sm_89 there is no instruction for it, and its bits moved by
  // one are a float16 2^-8 times as large. There NaN becomes 480.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
  static constexpr float kUnit = 0x1p-8f;
#else
  static constexpr float kUnit = 1;
#endif

  __device__ __forceinline__ static WidenedBytes widen(uint32_t bytes) {
#if __CUDA_ARCH__ >= 890
    return {ptx::float16_of_e4m3<0>(__byte_perm(bytes, 0, 0x3120)),
            ptx::float16_of_e4m3<1>(__byte_perm(bytes, 0, 0x3120))};
#else
    const auto moved = [](uint32_t upper) { return ((upper >> 1) & 0x3F803F80) | (upper & 0x80008000); };
    return {moved(bytes << 8), moved(bytes)};
#endif
  }
};

struct E5M2 {
  static constexpr float kUnit = 1;

  // Each is the upper half of a float16.
  __device__ __forceinline__ static WidenedBytes widen(uint32_t bytes) {
    return {__byte_perm(bytes, 0, 0x2404), bytes & 0xFF00FF00};
  }
};

struct Int8 {
  static constexpr float kUnit = 1;

  // A float16 from 1024 on has whole numbers as its last bits. So x + 128, which is x with its first bit turned, below
  // the upper byte of 1024 is 1152 + x, and the difference is exact.
  __device__ __forceinline__ static WidenedBytes widen(uint32_t bytes) {
    constexpr uint32_t k1024 = 0x64646464, k1152 = 0x64806480;
    const uint32_t biased = bytes ^ 0x80808080;
    return {minus(__byte_perm(biased, k1024, 0x4240), k1152), minus(__byte_perm(biased, k1024, 0x4341), k1152)};
  }

 private:
  __device__ __forceinline__ static uint32_t minus(uint32_t pair, uint32_t other) {
    const __half2 difference = __hsub2(reinterpret_cast<const __half2&>(pair), reinterpret_cast<const __half2&>(other));
    return reinterpret_cast<const uint32_t&>(difference);
  }
};

}  // namespace leanattn
