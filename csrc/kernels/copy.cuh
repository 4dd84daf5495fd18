// cp.async of 16 bytes, from global to shared memory, past L1: what is read once is not worth a place there, and what
// another CTA wrote must not come from there.
#pragma once

#include <cute/tensor.hpp>

namespace leanattn {

template <typename T>
__device__ __forceinline__ void copy_16_bytes(T* to, const T* from) {
  cute::SM80_CP_ASYNC_CACHEGLOBAL<cute::uint128_t>::copy(*reinterpret_cast<const cute::uint128_t*>(from),
                                                         *reinterpret_cast<cute::uint128_t*>(to));
}

// Zeros, and no read, unless `exists`.
template <typename To, typename From>
__device__ __forceinline__ void copy_or_zero(To* to, const From* from, bool exists) {
  cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>::copy(*reinterpret_cast<const cute::uint128_t*>(from),
                                                               *reinterpret_cast<cute::uint128_t*>(to), exists);
}

// The same of one float. There is no such copy past L1.
__device__ __forceinline__ void copy_float_or_zero(float* to, const float* from, bool exists) {
  cute::SM80_CP_ASYNC_CACHEALWAYS_ZFILL<float>::copy(*from, *to, exists);
}

// All copies of this thread have landed.
__device__ __forceinline__ void wait_for_copies() { cute::cp_async_wait<0>(); }

}  // namespace leanattn
