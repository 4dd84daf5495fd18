// Instantiates the kernels of one SIMD policy; only isa_*.cpp include it.
#pragma once

#include "softmax_state.h"
#include "tile_loop.h"
#include "vectors.h"

namespace leanattn::cpu {

template <class Simd, class T, class Cached>
void attend(const SpanTask& task, const SpanTask* next, const SpanScratch& scratch, const SoftmaxRows& result) {
  TileLoop<Simd, T, Cached>(task, next, scratch).run(result);
}

template <class Simd, class T>
void store_row(const float* out, float factor, int32_t v_head_dim, void* destination) {
  T* row = static_cast<T*>(destination);  // [v_head_dim]
  for_vectors<Simd>(v_head_dim, [&](int32_t d, auto width) {
    Simd::store(row + d, Simd::load(out + d, width) * Simd::set1(factor), width);
  });
}

template <class Simd, class T, class Cached>
constexpr TileKernels kTileKernels{attend<Simd, T, Cached>, merge<Simd>, store_row<Simd, T>};

template <class Simd, class T>
constexpr CacheKernels kCacheKernels{kTileKernels<Simd, T, T>, kTileKernels<Simd, T, Float8E4M3>,
                                     kTileKernels<Simd, T, Float8E5M2>, kTileKernels<Simd, T, Int8>};

template <class Simd>
constexpr IsaKernels kIsaKernels{kCacheKernels<Simd, Float16>, kCacheKernels<Simd, BFloat16>,
                                 kCacheKernels<Simd, float>};

}  // namespace leanattn::cpu
