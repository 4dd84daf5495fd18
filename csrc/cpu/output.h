// Stage 4: normalise, cast, store O and the log-sum-exp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "bundle.h"
#include "kernels/params.h"
#include "kernels/plan.h"
#include "softmax_state.h"
#include "tile_kernels.h"

namespace leanattn::cpu {

inline char* output_row(const DecodeParams& p, int32_t query, const QueryRow& row) {  // [v_head_dim]
  return static_cast<char*>(p.out) + p.out_strides.offset(query, row) * element_size(p.dtype);
}

constexpr double kLn2 = 0.6931471805599453;

// The end of a row's softmax.
struct RowEnd {
  float factor;  // of its un-normalised O
  float lse;     // natural log

  // `m` (log2 units) and `l` of a query row of `head`. A sink is a token more, without a value.
  static RowEnd of(const DecodeParams& p, int32_t head, float m, float l) {
    if (p.scores.sinks != nullptr) {
      const float sink = p.scores.sinks[head] * kLog2E, most = std::max(m, sink);
      if (most == kMinusInfinity) return {0, kMinusInfinity};
      const float scale = std::exp2(m - most);  // 0 if the row sees no token
      const float sum = l * scale + std::exp2(sink - most);
      return {scale / sum, log_sum_exp(most, sum)};
    }
    return {l == 0 ? 0 : 1 / l, log_sum_exp(m, l)};  // l is 0 if every score was -inf: a row that attends to nothing
  }

 private:
  static float log_sum_exp(float m, float l) { return static_cast<float>(m * kLn2 + std::log(double{l})); }
};

inline void write_output(const DecodeParams& p, const TileKernels& kernels, const Bundle& bundle,
                         const SoftmaxRows& rows) {
  const int32_t query = bundle.block.query;
  for (int32_t r = 0; r < bundle.all_rows(); ++r) {
    const QueryRow row = bundle.query_row(p, r);
    const RowEnd end = RowEnd::of(p, row.head, rows.ml[2 * r], rows.ml[2 * r + 1]);
    const float factor = end.factor * p.v_scales[row.head / p.group];
    kernels.store_row(rows.out + r * p.v_head_dim, factor, p.v_head_dim, output_row(p, query, row));
    if (p.lse != nullptr) p.lse[p.lse_strides.offset(query, row)] = end.lse;
  }
}

// Sequences without tokens have no tile. They are dealt out to the workers in turn: output 0, log-sum-exp -inf, or that
// of a sink alone.
inline void write_empty_outputs(const DecodeParams& p, int32_t worker) {
  const int32_t query_heads = p.num_kv_heads * p.group;
  const TileLine line = over_planned_lengths(p, p.line(), PlanHeader::kind_of(p.line(), p.fixed_pieces));
  for (int32_t seq = worker; seq < p.batch; seq += p.workers) {
    if (line.tokens(seq) > 0) continue;
    const QueryBlock block = p.query_block(seq);
    for (int32_t i = 0; i < block.tokens * query_heads; ++i) {
      const QueryRow row{i / query_heads, i % query_heads};
      std::memset(output_row(p, block.query, row), 0, p.v_head_dim * element_size(p.dtype));
      if (p.lse != nullptr)
        p.lse[p.lse_strides.offset(block.query, row)] = RowEnd::of(p, row.head, kMinusInfinity, 0).lse;
    }
  }
}

}  // namespace leanattn::cpu
