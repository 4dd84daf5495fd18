// Stage 4: normalise, cast, store O and the log-sum-exp.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "bundle.h"
#include "kernels/params.h"
#include "kernels/plan.h"
#include "tile_kernels.h"

namespace leanattn::cpu {

inline char* output_row(const DecodeParams& p, int32_t seq, const QueryRow& row) {  // [head_dim]
  return static_cast<char*>(p.out) + p.out_strides.offset(seq, row) * element_size(p.dtype);
}

inline void write_output(const DecodeParams& p, const TileKernels& kernels, const Bundle& bundle,
                         const SoftmaxRows& rows) {
  constexpr double kLn2 = 0.6931471805599453;
  const int32_t seq = bundle.span.seq;
  for (int32_t r = 0; r < bundle.all_rows(); ++r) {
    const QueryRow row = bundle.query_row(p, r);
    const float m = rows.ml[2 * r], l = rows.ml[2 * r + 1];
    const float factor = l == 0 ? 0 : 1 / l;  // l is 0 if every score was -inf: a row that attends to nothing
    kernels.store_row(rows.out + r * p.head_dim, factor, p.head_dim, output_row(p, seq, row));
    if (p.lse != nullptr) p.lse[p.lse_offset(seq, row)] = static_cast<float>(m * kLn2 + std::log(double{l}));
  }
}

// Sequences without tokens have no tile. They are dealt out to the workers in turn: output 0, log-sum-exp -inf.
inline void write_empty_outputs(const DecodeParams& p, int32_t worker) {
  const int32_t query_heads = p.num_kv_heads * p.group;
  const TileLine line = over_planned_lengths(p, p.line());
  for (int32_t seq = worker; seq < p.batch; seq += p.workers) {
    if (line.tokens(seq) > 0) continue;
    for (int32_t i = 0; i < p.q_len * query_heads; ++i) {
      const QueryRow row{i / query_heads, i % query_heads};
      std::memset(output_row(p, seq, row), 0, p.head_dim * element_size(p.dtype));
      if (p.lse != nullptr) p.lse[p.lse_offset(seq, row)] = -std::numeric_limits<float>::infinity();
    }
  }
}

}  // namespace leanattn::cpu
