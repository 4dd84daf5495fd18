// Powers of two, one of each of a thread's rows.
#pragma once

#include <cstdint>

namespace leanattn {

// By its exponent, as a float has it: 127 of 1.
__device__ __forceinline__ float power_of_two(uint32_t exponent) { return __uint_as_float(exponent << 23); }

// A byte a row, of four at most: as floats they would be registers that 16 rows do not leave.
template <int kRows>
class PackedPowers {
  uint32_t exponents_;

 public:
  __device__ __forceinline__ void set_all(uint32_t exponent) { exponents_ = exponent * 0x01010101; }
  // From floats.
  __device__ __forceinline__ void pack(const float (&powers)[kRows]) {
    exponents_ = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) exponents_ |= __float_as_uint(powers[r]) >> 23 << 8 * r;
  }
  __device__ __forceinline__ void lower(int r, uint32_t steps) { exponents_ -= steps << 8 * r; }
  __device__ __forceinline__ uint32_t exponent(int r) const { return exponents_ >> 8 * r & 0xFF; }
  __device__ __forceinline__ float operator[](int r) const { return power_of_two(exponent(r)); }
};

}  // namespace leanattn
