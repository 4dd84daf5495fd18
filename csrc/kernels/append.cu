// Writes new keys and values into a cache and rotates queries (append.h), in one launch. A CTA works on one token, and
// a thread moves a unit of one row: a chunk of 16 bytes, or two that are rotated with each other.
//
// The kernel is short, so most of its time is waiting: for the kernel ahead, during which addresses are computed, then
// for the row and the length, then for what depends on that, the page and the factors. A token that turns out to have
// no place has only been read in vain.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstring>
#include <type_traits>

#include "append.h"
#include "dependent_launch.cuh"
#include "ptx.cuh"

namespace leanattn {
namespace {

constexpr int kThreads = 128;  // of a CTA: few, so that a small batch is spread over many SMs
static_assert(3 * kMaxAppendHeads * (kMaxAppendHeadDim / kAppendChunk) / kThreads < 65'535, "the limit of gridDim.y");

enum class Style { kCopy, kHalves, kPairs };  // without rotation; pairs (j, j + dim / 2); pairs (2j, 2j + 1)

using Bits = uint16_t;  // an element, whatever it means

// Two elements, as instructions convert them, from 32 bits and back.
__device__ __forceinline__ float2 to_floats(__half2 pair) { return __half22float2(pair); }
__device__ __forceinline__ float2 to_floats(__nv_bfloat162 pair) { return __bfloat1622float2(pair); }
__device__ __forceinline__ void round_to(__half2& pair, float2 x) { pair = __float22half2_rn(x); }
__device__ __forceinline__ void round_to(__nv_bfloat162& pair, float2 x) { pair = __float22bfloat162_rn(x); }
template <typename Pair>
__device__ __forceinline__ float2 floats_of(int32_t bits) {
  Pair pair;
  memcpy(&pair, &bits, sizeof bits);
  return to_floats(pair);
}
template <typename Pair>
__device__ __forceinline__ int32_t rounded(float2 x) {
  Pair pair;
  round_to(pair, x);
  int32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}

// kAppendChunk elements, 16 bytes.
struct Chunk {
  int32_t pairs[kAppendChunk / 2];

  __device__ __forceinline__ static Chunk load(const Bits* from) {
    const int4 v = ptx::load_now(reinterpret_cast<const int4*>(from));
    return {v.x, v.y, v.z, v.w};
  }
  __device__ __forceinline__ void store(Bits* to) const {
    *reinterpret_cast<int4*>(to) = make_int4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }
  // Divided by `scale`; what is too large becomes the largest number.
  template <typename Pair>
  __device__ __forceinline__ void store_float8(uint8_t* to, float scale, __nv_fp8_interpretation_t format) const {
    __nv_fp8x2_storage_t bytes[kAppendChunk / 2];
#pragma unroll
    for (int i = 0; i < kAppendChunk / 2; ++i) {
      const float2 x = floats_of<Pair>(pairs[i]);
      bytes[i] = __nv_cvt_float2_to_fp8x2({x.x / scale, x.y / scale}, __NV_SATFINITE, format);
    }
    static_assert(sizeof bytes == sizeof(uint2));
    uint2 words;
    memcpy(&words, bytes, sizeof words);
    *reinterpret_cast<uint2*>(to) = words;
  }
};

// `count` neighbours of the cosines or sines, as float32, from column `column` of a row.
template <typename Factor, int count>
__device__ __forceinline__ void load_factors(const void* rows, int64_t row, int32_t column, float (&to)[count]) {
  static_assert(count % 4 == 0);
#pragma unroll
  for (int i = 0; i < count; i += 4) {
    if constexpr (std::is_same_v<Factor, float>) {
      const float4 four = *reinterpret_cast<const float4*>(static_cast<const float*>(rows) + row + column + i);
      to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    } else {  // pairs
      const int2 four = *reinterpret_cast<const int2*>(static_cast<const Bits*>(rows) + row + column + i);
      const float2 first = floats_of<Factor>(four.x), second = floats_of<Factor>(four.y);
      to[i] = first.x, to[i + 1] = first.y, to[i + 2] = second.x, to[i + 3] = second.y;
    }
  }
}

__device__ __forceinline__ float2 rotated(float x, float y, float cos, float sin) {
  return {x * cos - y * sin, y * cos + x * sin};
}

// Pairs (2j, 2j + 1).
template <typename Pair>
__device__ __forceinline__ void rotate_pairs(Chunk& chunk, const float (&cos)[4], const float (&sin)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = floats_of<Pair>(chunk.pairs[i]);
    chunk.pairs[i] = rounded<Pair>(rotated(pair.x, pair.y, cos[i], sin[i]));
  }
}
// Pairs of an element of one chunk and the same of the other.
template <typename Pair>
__device__ __forceinline__ void rotate_halves(Chunk& low, Chunk& high, const float (&cos)[8], const float (&sin)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = floats_of<Pair>(low.pairs[i]), y = floats_of<Pair>(high.pairs[i]);
    const float2 even = rotated(x.x, y.x, cos[2 * i], sin[2 * i]);
    const float2 odd = rotated(x.y, y.y, cos[2 * i + 1], sin[2 * i + 1]);
    low.pairs[i] = rounded<Pair>({even.x, odd.x});
    high.pairs[i] = rounded<Pair>({even.y, odd.y});
  }
}

// What a row is divided into.
struct RowUnits {
  int32_t rotated;  // units that are rotated, the first ones
  int32_t count;    // all

  LEANATTN_HOST_DEVICE static RowUnits of_value(const AppendParams& p) { return {0, p.v_head_dim / kAppendChunk}; }
  template <Style style>
  LEANATTN_HOST_DEVICE static RowUnits of_query(const AppendParams& p) {
    const int32_t units = style == Style::kCopy ? 0 : p.rotary.dim / (style == Style::kPairs ? 1 : 2) / kAppendChunk;
    return {units, units};
  }
  template <Style style>
  LEANATTN_HOST_DEVICE static RowUnits of_key(const AppendParams& p) {
    const int32_t rotated = of_query<style>(p).rotated, kept = p.head_dim - (style == Style::kCopy ? 0 : p.rotary.dim);
    return {rotated, rotated + kept / kAppendChunk};
  }
};

// One unit of a token: where it comes from, and where it goes.
struct Unit {
  const Bits* from;             // row [(v_)head_dim]
  void* to;                     // the cache, or the row
  const CacheStrides* strides;  // of the cache; null: none
  const HeadScales* scales;     // of the cache
  int32_t head, index;
  int32_t rotated;  // units of its row

  __device__ __forceinline__ bool rotates() const { return index < rotated; }

  // Unit i of the token; of i beyond count(), nothing is to be used.
  template <Style style>
  __device__ __forceinline__ static Unit find(const AppendParams& p, int32_t seq, int32_t token, int32_t i) {
    const auto at = [&](RowUnits row, const void* rows, const RowStrides& strides) {
      const int32_t head = quotient(i, row.count);
      const Bits* from = static_cast<const Bits*>(rows) + strides.offset(seq, {token, head});
      return Unit{from, const_cast<Bits*>(from), nullptr, nullptr, head, i - head * row.count, row.rotated};
    };
    const auto into = [](void* cache, const CacheStrides& strides, const HeadScales& scales, Unit unit) {
      unit.to = cache;
      unit.strides = &strides;
      unit.scales = &scales;
      return unit;
    };
    const RowUnits key = RowUnits::of_key<style>(p), value = RowUnits::of_value(p);
    const int32_t keys = p.num_kv_heads * key.count, values = p.num_kv_heads * value.count;
    if (i < keys) return into(p.k_cache, p.k_cache_strides, p.k_scales, at(key, p.k, p.k_strides));
    i -= keys;
    if (style == Style::kCopy || i < values)
      return into(p.v_cache, p.v_cache_strides, p.v_scales, at(value, p.v, p.v_strides));
    i -= values;
    return at(RowUnits::of_query<style>(p), p.q, p.q_strides);
  }
  template <Style style>
  LEANATTN_HOST_DEVICE static int32_t count(const AppendParams& p) {
    return p.num_kv_heads * (RowUnits::of_key<style>(p).count + RowUnits::of_value(p).count) +
           p.num_q_heads * RowUnits::of_query<style>(p).count;
  }
};

// `Pair`: two elements; `Factor`: float, or two cosines or sines; the cache is of float8 or has such elements too.
template <typename Pair, typename Factor, Style style, bool kFloat8>
__global__ void __launch_bounds__(kThreads) append_kernel(const __grid_constant__ AppendParams p) {
  const auto token_of_batch = static_cast<int32_t>(blockIdx.x),
             i = static_cast<int32_t>(blockIdx.y * kThreads + threadIdx.x);
  const int32_t seq = quotient(token_of_batch, p.new_tokens), token = token_of_batch - seq * p.new_tokens;
  const Unit unit = Unit::find<style>(p, seq, token, i);
  // Of halves, the chunk at `index` is rotated with the one `rotated` units on; behind both are those that are not.
  constexpr bool kHalves = style == Style::kHalves;
  const bool two = kHalves && unit.rotates();
  const int32_t partner = (unit.index + unit.rotated) * kAppendChunk;
  const int32_t first = kHalves && !two ? partner : unit.index * kAppendChunk;

  // Until the kernel ahead has finished, memory belongs to it: it may have yet to write rows, lengths and table, or to
  // read the cache.
  ptx::grid_dependency_wait();
  // Then the next one may start at once. If it is decode, with the promise that all but the new tokens stand
  // (fresh_tokens), it reads those while these are written here. Not before the wait: the promise is about this kernel
  // alone, and one further ahead may be what writes the lengths.
  ptx::grid_launch_dependents();
  if (i >= Unit::count<style>(p)) return;
  Chunk low = Chunk::load(unit.from + first), high;
  if (two) high = Chunk::load(unit.from + partner);

  const TokenPlace place = p.place(seq, token);
  if (place.fate != TokenPlace::Fate::kWritten) return;
  if constexpr (style != Style::kCopy) {
    if (unit.rotates()) {
      constexpr int kFactors = kHalves ? kAppendChunk : kAppendChunk / 2;
      float cos[kFactors], sin[kFactors];
      load_factors<Factor>(p.rotary.cos, place.position * p.rotary.cos_stride, unit.index * kFactors, cos);
      load_factors<Factor>(p.rotary.sin, place.position * p.rotary.sin_stride, unit.index * kFactors, sin);
      if constexpr (kHalves) {
        rotate_halves<Pair>(low, high, cos, sin);
      } else {
        rotate_pairs<Pair>(low, cos, sin);
      }
    }
  }
  const int64_t row = unit.strides != nullptr ? place.offset(*unit.strides, unit.head) : 0;
  if (kFloat8 && unit.strides != nullptr) {
    uint8_t* to = static_cast<uint8_t*>(unit.to) + row;
    const float scale = (*unit.scales)[unit.head];
    const auto format = p.cache_dtype == DType::kFloat8E4M3 ? __NV_E4M3 : __NV_E5M2;
    low.store_float8<Pair>(to + first, scale, format);
    if (two) high.store_float8<Pair>(to + partner, scale, format);
    return;
  }
  Bits* to = static_cast<Bits*>(unit.to) + row;
  low.store(to + first);
  if (two) high.store(to + partner);
}

template <typename Pair, typename Factor, Style style, bool kFloat8>
cudaError_t launch(const AppendParams& p, const DeviceLimits& device, cudaStream_t stream) {
  const LaunchShape shape{dim3(p.batch * p.new_tokens, ceil_div(Unit::count<style>(p), kThreads)), kThreads};
  return launch_dependent<append_kernel<Pair, Factor, style, kFloat8>>(device, shape, stream, p);
}

template <typename Pair, bool kFloat8>
cudaError_t launch_rotating(const AppendParams& p, const DeviceLimits& device, cudaStream_t stream) {
  if (p.rotary.dtype == DType::kFloat32) {
    return p.rotary.interleaved ? launch<Pair, float, Style::kPairs, kFloat8>(p, device, stream)
                                : launch<Pair, float, Style::kHalves, kFloat8>(p, device, stream);
  }
  return p.rotary.interleaved ? launch<Pair, Pair, Style::kPairs, kFloat8>(p, device, stream)
                              : launch<Pair, Pair, Style::kHalves, kFloat8>(p, device, stream);
}

template <typename Pair>
cudaError_t launch_of(const AppendParams& p, const DeviceLimits& device, cudaStream_t stream) {
  if (!is_float8(p.cache_dtype)) return launch_rotating<Pair, false>(p, device, stream);
  return p.rotates() ? launch_rotating<Pair, true>(p, device, stream)
                     : launch<Pair, float, Style::kCopy, true>(p, device, stream);
}

}  // namespace

cudaError_t launch_append(const AppendParams& p, const DeviceLimits& device, cudaStream_t stream) {
  // To copy is the same whatever 16 bits mean.
  if (!p.rotates() && !is_float8(p.cache_dtype)) {
    return launch<__half2, float, Style::kCopy, false>(p, device, stream);
  }
  return p.dtype == DType::kFloat16 ? launch_of<__half2>(p, device, stream)
                                    : launch_of<__nv_bfloat162>(p, device, stream);
}

}  // namespace leanattn
