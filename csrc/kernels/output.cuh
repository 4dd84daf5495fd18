// Stage 4: normalise, cast, and store the output and its log-sum-exp.
#pragma once

#include <cutlass/numeric_conversion.h>
#include <math_constants.h>

#include "item_rows.cuh"
#include "plan.h"
#include "softmax_state.cuh"
#include "traits.cuh"

namespace leanattn {

// Natural log of the sum of exponentials; m is in log2 units.
__device__ __forceinline__ float log_sum_exp(float m, float l) { return CUDART_LN2_F * (m + __log2f(l)); }

// A row of the output.
template <typename Traits>
struct OutputRow {
  using Element = typename Traits::Element;
  Element* to;   // [v_head_dim]
  float factor;  // of un-normalised O

  // `ml`: of the row, which is one of `kv_head`. Whoever has column 0 stores the log-sum-exp.
  __device__ __forceinline__ static OutputRow of(const DecodeParams& p, int32_t query, int32_t kv_head,
                                                 const QueryRow& row, int column, float2 ml) {
    float factor = 1.f;
    if constexpr (Traits::kGeneral) {
      if (p.scores.sinks != nullptr) factor = add_sink(p.scores.sinks[row.head] * kLog2E, ml);
    }
    factor *= ml.y == 0.f ? 0.f : ptx::reciprocal_approx(ml.y);  // no visible weight: 0, not 0 / 0
    if constexpr (Traits::kHeadScales) factor *= p.v_scales[kv_head] / Traits::Cached::kUnit;
    if (p.lse != nullptr && column == 0) p.lse[p.lse_strides.offset(query, row)] = log_sum_exp(ml.x, ml.y);
    return {static_cast<Element*>(p.out) + p.out_strides.offset(query, row), factor};
  }
  // Four neighbouring columns.
  __device__ __forceinline__ void store(const DecodeParams& p, int column, const float4& o) const {
    if constexpr (Traits::kGeneral) {
      if (column >= p.v_head_dim) return;
    }
    const cutlass::Array<float, 4> normalised{o.x * factor, o.y * factor, o.z * factor, o.w * factor};
    const auto cast = cutlass::NumericArrayConverter<Element, float, 4>{}(normalised);
    *reinterpret_cast<uint2*>(to + column) = reinterpret_cast<const uint2&>(cast);
  }

 private:
  // Takes a score (log2 units) of a token without a value into the softmax of a row; returns what O shrinks by.
  __device__ __forceinline__ static float add_sink(float sink, float2& ml) {
    const float m = fmaxf(ml.x, sink), factor = rescale_factor(ml.x, m);
    ml = {m, ml.y * factor + rescale_factor(sink, m)};
    return factor;
  }
};

// Empty sequences are on no worker's share of the line; each worker serves every workers-th sequence.
template <typename Traits>
__device__ __forceinline__ void write_empty_outputs(const DecodeParams& p, int32_t worker) {
  const TileLine line = over_planned_lengths(p, line_of<Traits>(p), item_kind_of<Traits>(p));
  for (int32_t seq = worker; seq < p.batch; seq += p.workers) {
    if (line.tokens(seq) > 0) continue;
    const QueryBlock block = Traits::kGeneral ? p.query_block(seq) : QueryBlock{seq, seq, p.q_len};
    const int32_t heads = p.num_kv_heads * p.group, columns = block.tokens * heads * Traits::kHeadDim;
#pragma unroll 1  // seldom run, and in the way of what is
    for (int i = int(threadIdx.x) * 4; i < columns; i += Traits::kComputeThreads * 4) {
      const int32_t column = i % Traits::kHeadDim, row = i / Traits::kHeadDim, head = row % heads;
      OutputRow<Traits>::of(p, block.query, head / p.group, {row / heads, head}, column, {kNoMaximum, 0.f})
          .store(p, column, {});
    }
  }
}

}  // namespace leanattn
