// Stage 4: normalise, cast, and store the output and its log-sum-exp.
#pragma once

#include <cutlass/numeric_conversion.h>
#include <math_constants.h>

#include "float8.cuh"
#include "item_rows.cuh"
#include "plan.h"
#include "softmax_state.cuh"
#include "traits.cuh"

namespace leanattn {

// Natural log of the sum of exponentials; m is in log2 units.
__device__ __forceinline__ float log_sum_exp(float m, float l) { return CUDART_LN2_F * (m + __log2f(l)); }

// Takes a score (log2 units) of a token without a value into the softmax of a row.
__device__ __forceinline__ void add_sink(float sink, float4& o, float2& ml) {
  const float m = fmaxf(ml.x, sink), factor = rescale_factor(ml.x, m);
  o = {o.x * factor, o.y * factor, o.z * factor, o.w * factor};
  ml = {m, ml.y * factor + rescale_factor(sink, m)};
}

// Four neighbouring columns of one row: un-normalised O, with the row's m and l.
template <typename Traits>
__device__ __forceinline__ void store_output(const DecodeParams& p, int32_t seq, const QueryRow& row, int column,
                                             float4 o, float2 ml) {
  using Element = typename Traits::Element;
  if constexpr (Traits::kGeneral) {
    if (p.scores.sinks != nullptr) add_sink(p.scores.sinks[row.head] * kLog2E, o, ml);
  }
  float inverse = ml.y == 0.f ? 0.f : ptx::reciprocal_approx(ml.y);  // no visible weight: 0, not 0 / 0
  if constexpr (Traits::kItemsize == 1) inverse *= p.v_scales[row.head / p.group] / Float8<Traits>::kUnit;
  if constexpr (Traits::kGeneral) {
    if (column >= p.head_dim) return;
  }
  const cutlass::Array<float, 4> normalised{o.x * inverse, o.y * inverse, o.z * inverse, o.w * inverse};
  const auto cast = cutlass::NumericArrayConverter<Element, float, 4>{}(normalised);
  Element* out = static_cast<Element*>(p.out) + p.out_strides.offset(seq, row) + column;
  *reinterpret_cast<uint2*>(out) = reinterpret_cast<const uint2&>(cast);
  if (p.lse != nullptr && column == 0) p.lse[p.lse_offset(seq, row)] = log_sum_exp(ml.x, ml.y);
}

// Empty sequences are on no worker's share of the line; each worker serves every workers-th sequence.
template <typename Traits>
__device__ __forceinline__ void write_empty_outputs(const DecodeParams& p, int32_t worker) {
  const TileLine line = over_planned_lengths(p, line_of<Traits>(p), item_kind_of<Traits>(p));
  for (int32_t seq = worker; seq < p.batch; seq += p.workers) {
    if (line.tokens(seq) > 0) continue;
    const int32_t heads = p.num_kv_heads * p.group, columns = p.q_len * heads * Traits::kHeadDim;
#pragma unroll 1  // seldom run, and in the way of what is
    for (int i = int(threadIdx.x) * 4; i < columns; i += Traits::kComputeThreads * 4) {
      const int32_t row = i / Traits::kHeadDim;
      store_output<Traits>(p, seq, {row / heads, row % heads}, i % Traits::kHeadDim, {}, {kNoMaximum, 0.f});
    }
  }
}

}  // namespace leanattn
