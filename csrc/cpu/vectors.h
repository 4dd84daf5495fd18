// Loops over rows and blocks with the sizes known to the compiler.
#pragma once

#include "tile_kernels.h"

namespace leanattn::cpu {

// Calls body(first element, width) for the vectors of a row of `count` elements.
template <class Simd, class Body>
[[gnu::always_inline]] inline void for_vectors(int32_t count, Body&& body) {
  int32_t d = 0;
  for (; d + Simd::kLanes <= count; d += Simd::kLanes) body(d, typename Simd::Whole{});
  if constexpr (Simd::kLanes > 8) {
    if (d < count) body(d, typename Simd::Half{});
  }
}

// Calls body(0) ... body(n - 1), unrolled: a block of sums is indexed by constants and stays in registers.
template <int32_t n, class Body>
[[gnu::always_inline]] inline void unrolled(Body&& body) {
#pragma GCC unroll 16
  for (int32_t i = 0; i < n; ++i) body(i);
}

// Calls body<kMax>(first) for blocks of kMax out of `count`, then body<rest>(first) for what is left.
template <int32_t kMax, class Body>
void for_blocks(int32_t count, Body&& body, int32_t first = 0) {
  for (; count >= kMax; count -= kMax, first += kMax) body.template operator()<kMax>(first);
  if constexpr (kMax > 1) {
    if (count > 0) for_blocks<kMax - 1>(count, body, first);
  }
}

}  // namespace leanattn::cpu
