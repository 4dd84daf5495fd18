// The query rows of an item, into shared memory by cp.async.
#pragma once

#include "copy.cuh"
#include "item_rows.cuh"
#include "traits.cuh"

namespace leanattn {

// This thread's part of a copy by the whole CTA. `query`: [kRows, head_dim], QueryLayout, in shared memory.
// Rows that the item does not have become zero.
template <typename Traits>
__device__ __forceinline__ void load_query_rows(const DecodeParams& p, const ItemRows& rows,
                                                typename Traits::Element* query) {
  using Element = typename Traits::Element;
  constexpr int kChunk = 16 / int(sizeof(Element));
  constexpr int kChunksPerRow = Traits::kHeadDim / kChunk;
  constexpr int kPasses = Traits::kRows * kChunksPerRow / Traits::kThreads;
  static_assert(kPasses * Traits::kThreads == Traits::kRows * kChunksPerRow);

  const Element* q = static_cast<const Element*>(p.q) + rows.seq * p.q_strides.batch;
  const typename Traits::QueryLayout layout;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int i = pass * Traits::kThreads + int(threadIdx.x);
    const int row = i / kChunksPerRow, column = i % kChunksPerRow * kChunk;
    const Element* from = q + (rows.first_head + row) * p.q_strides.head + column;
    Element* to = query + layout(row, column);
    copy_or_zero(to, from, row < rows.count);
  }
}

}  // namespace leanattn
