#include "append_cpu.h"

#include <cstring>
#include <type_traits>

#include "simd_portable.h"

namespace leanattn::cpu {
namespace {

// What is moved is limited by memory, so one instruction set does for every CPU.
using Simd = Portable;
using Vec = Simd::Vec;
constexpr Simd::Whole kWhole{};
static_assert(kAppendChunk == 2 * Simd::kLanes);

template <typename T>
T* element(void* rows, int64_t offset) {
  return static_cast<T*>(rows) + offset;
}
template <typename T>
const T* element(const void* rows, int64_t offset) {
  return static_cast<const T*>(rows) + offset;
}

// A row of cosines and one of sines: [rotary.dim / 2]
template <typename Factor>
struct Factors {
  const Factor *cos, *sin;

  static Factors at(const Rotary& rotary, int64_t position) {
    return {element<Factor>(rotary.cos, position * rotary.cos_stride),
            element<Factor>(rotary.sin, position * rotary.sin_stride)};
  }
  // Four pairs, from pair `j` on.
  void rotate(int32_t j, Vec& x, Vec& y) const {
    const Vec c = Simd::load(cos + j, kWhole), s = Simd::load(sin + j, kWhole), rotated = x * c - y * s;
    y = y * c + x * s;
    x = rotated;
  }
};

// Rotates the first rotary.dim elements of a row [head_dim]; `to` may be `from`.
template <typename T, typename Factor>
void rotate_row(const Rotary& rotary, const Factors<Factor>& factors, const T* from, T* to) {
  const int32_t pairs = rotary.dim / 2;
  for (int32_t j = 0; j < pairs; j += Simd::kLanes) {
    if (rotary.interleaved) {
      const Vec low = Simd::load(from + 2 * j, kWhole), high = Simd::load(from + 2 * j + Simd::kLanes, kWhole);
      Vec x = __builtin_shufflevector(low, high, 0, 2, 4, 6), y = __builtin_shufflevector(low, high, 1, 3, 5, 7);
      factors.rotate(j, x, y);
      Simd::store(to + 2 * j, __builtin_shufflevector(x, y, 0, 4, 1, 5), kWhole);
      Simd::store(to + 2 * j + Simd::kLanes, __builtin_shufflevector(x, y, 2, 6, 3, 7), kWhole);
    } else {
      Vec x = Simd::load(from + j, kWhole), y = Simd::load(from + pairs + j, kWhole);
      factors.rotate(j, x, y);
      Simd::store(to + j, x, kWhole);
      Simd::store(to + pairs + j, y, kWhole);
    }
  }
}

// `row` [columns] / scale into a cache of other elements.
template <typename T, typename Cached>
void convert_row(const T* row, float scale, int32_t columns, Cached* to) {
  for (int32_t d = 0; d < columns; d += Simd::kLanes) {
    Simd::store(to + d, Simd::load(row + d, kWhole) / Simd::set1(scale), kWhole);
  }
}

template <typename T, typename Factor, typename Cached>
void append(const AppendParams& p, int32_t seq, int32_t token) {
  const TokenPlace place = p.place(seq, token);
  if (place.fate != TokenPlace::Fate::kWritten) return;
  const auto factors = p.rotates() ? Factors<Factor>::at(p.rotary, place.position) : Factors<Factor>{};
  for (int32_t head = 0; head < p.num_kv_heads; ++head) {
    const T* k = element<T>(p.k, p.k_strides.offset(seq, {token, head}));                  // [head_dim]
    const T* v = element<T>(p.v, p.v_strides.offset(seq, {token, head}));                  // [v_head_dim]
    Cached* cached_k = element<Cached>(p.k_cache, place.offset(p.k_cache_strides, head));  // [head_dim]
    Cached* cached_v = element<Cached>(p.v_cache, place.offset(p.v_cache_strides, head));  // [v_head_dim]
    const auto write_key = [&](T* to) {
      rotate_row(p.rotary, factors, k, to);
      std::memcpy(to + p.rotary.dim, k + p.rotary.dim, (p.head_dim - p.rotary.dim) * sizeof(T));
    };
    if constexpr (std::is_same_v<T, Cached>) {
      write_key(cached_k);
      std::memcpy(cached_v, v, p.v_head_dim * sizeof(T));
    } else {
      T key[kMaxAppendHeadDim];
      write_key(key);
      convert_row(key, p.k_scales[head], p.head_dim, cached_k);
      convert_row(v, p.v_scales[head], p.v_head_dim, cached_v);
    }
  }
  for (int32_t head = 0; head < p.num_q_heads; ++head) {
    T* q = element<T>(p.q, p.q_strides.offset(seq, {token, head}));  // [head_dim]
    rotate_row(p.rotary, factors, q, q);
  }
}

template <typename T, typename Factor>
void append(const AppendParams& p, int32_t seq, int32_t token) {
  if (p.cache_dtype == DType::kFloat8E4M3) return append<T, Factor, Float8E4M3>(p, seq, token);
  if (p.cache_dtype == DType::kFloat8E5M2) return append<T, Factor, Float8E5M2>(p, seq, token);
  append<T, Factor, T>(p, seq, token);
}

template <typename T>
void append(const AppendParams& p, int32_t seq, int32_t token) {
  return p.rotary.dtype == DType::kFloat32 ? append<T, float>(p, seq, token) : append<T, T>(p, seq, token);
}

}  // namespace

void append_token(const AppendParams& p, int32_t seq, int32_t token) {
  if (p.dtype == DType::kFloat16) return append<Float16>(p, seq, token);
  if (p.dtype == DType::kBFloat16) return append<BFloat16>(p, seq, token);
  append<float>(p, seq, token);
}

}  // namespace leanattn::cpu
