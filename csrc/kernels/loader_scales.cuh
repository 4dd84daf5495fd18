// Brings the scales of a tile's tokens, of an int8 cache, K's or V's, by cp.async. Each lane copies those of the tokens
// that it looks up in a paged cache (loader_cp_async.cuh).
#pragma once

#include "copy.cuh"
#include "params.h"

namespace leanattn {

// Of a producer warp with kTokens tokens of each tile.
template <typename Traits, int kTokens>
class ScaleLoader {
  static constexpr int kTokensOfLane = (kTokens + 31) / 32;

 public:
  __device__ __forceinline__ explicit ScaleLoader(const TokenScales& scales) : scales_(scales) {}

  // At a span's first tile: `token` is this lane's first one. In a paged cache `batch` and `token` are 0.
  __device__ __forceinline__ void begin_span(int32_t batch, int32_t kv_head, int32_t token) {
    const CacheStrides& strides = scales_.strides;
    from_ = scales_.values + batch * strides.batch + kv_head * strides.head + token * strides.token;
  }
  // In a paged cache, the place of this lane's i-th token of the tile to load.
  __device__ __forceinline__ void locate(int i, int32_t page, int32_t token) {
    place_[i] = page * scales_.strides.batch + token * scales_.strides.token;
  }
  // Asks for the scales of the warp's tokens, of which `visible` belong to the sequence, and moves on. `to`: [kTokens].
  // The others become zeros, as their elements do.
  template <bool kPagedCache>
  __device__ __forceinline__ void load(float* to, int32_t visible) {
    const int lane = int(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < kTokensOfLane; ++i) {
      const int token = lane + 32 * i;
      if (token >= kTokens) break;
      const float* from = from_ + (kPagedCache ? place_[i] : 32 * i * scales_.strides.token);
      copy_float_or_zero(to + token, from, token < visible);
    }
    if constexpr (!kPagedCache) from_ += Traits::kTileTokens * scales_.strides.token;
  }

 private:
  const TokenScales& scales_;     // [batch, max_tokens, num_kv_heads], or of pages (params.h)
  const float* from_ = nullptr;   // this lane's first token of the next tile; if paged, of page 0
  int64_t place_[kTokensOfLane];  // if paged, from there on
};

}  // namespace leanattn
