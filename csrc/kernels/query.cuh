// The query rows of an item, into shared memory by cp.async.
#pragma once

#include "output.cuh"

namespace leanattn {

// This warp's share of the copy: kRows / kWarps rows. `query`: [kRows, head_dim], QueryLayout, in shared memory.
// Rows that the item does not have become zero.
template <typename Traits>
__device__ __forceinline__ void load_query_rows(const DecodeParams& p, const ItemRows& rows,
                                                typename Traits::Element* query) {
  using Element = typename Traits::Element;
  using Copy = cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>;
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
    Copy::copy(*reinterpret_cast<const cute::uint128_t*>(from), *reinterpret_cast<cute::uint128_t*>(to),
               row < rows.count);
  }
}

}  // namespace leanattn
