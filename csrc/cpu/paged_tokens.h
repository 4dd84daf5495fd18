// Where tokens of a sequence are: in a paged cache, page by page; and their scales, in an int8 cache.
#pragma once

#include "tile_kernels.h"

namespace leanattn::cpu {

// As PageTable::clamped, which is none of a SIMD policy's functions (tile_kernels.h).
template <class Simd>
int64_t page_of(const SpanTask& task, int32_t index) {
  const auto page = static_cast<uint32_t>(task.pages[index]), last = static_cast<uint32_t>(task.num_pages - 1);
  return page < last ? page : last;
}

// Calls body(t, page, token in the page) for t = 0..tokens - 1, the tokens from `begin` of the span on.
template <class Simd, class Body>
void for_paged_tokens(const SpanTask& task, int32_t begin, int32_t tokens, Body&& body) {
  const int32_t first = task.first_token + begin;
  int32_t index = first / task.page_size, in_page = first % task.page_size;
  for (int32_t t = 0; t < tokens; ++index, in_page = 0) {
    const int64_t page = page_of<Simd>(task, index);
    for (; t < tokens && in_page < task.page_size; ++t, ++in_page) body(t, page, in_page);
  }
}

// The scales of a head's tokens from `begin` of the span on: to [tokens].
template <class Simd, bool paged>
void load_scales(const SpanTask& task, const TokenScales& scales, int32_t begin, int32_t tokens, int32_t head,
                 float* to) {
  const PageStrides& strides = scales.strides;
  const float* of_head = scales.values + head * strides.head;
  if constexpr (paged) {
    for_paged_tokens<Simd>(task, begin, tokens, [&](int32_t t, int64_t page, int32_t in_page) {
      to[t] = of_head[page * strides.page + in_page * strides.token];
    });
  } else {
    const float* first = of_head + (task.first_token + int64_t{begin}) * strides.token;
    for (int32_t t = 0; t < tokens; ++t) to[t] = first[t * strides.token];
  }
}

}  // namespace leanattn::cpu
