// The tensor maps that tell Hopper's copy engine where K and V are.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "params.h"

namespace leanattn {

// Describes a cache [batch, max_tokens, num_kv_heads, head_dim] to the engine as [batch, num_kv_heads, head_dim / 64,
// max_tokens, 64], in boxes of [1, 1, head_dim / 64, box_tokens, 64] with 128-byte swizzle. False if it can't be
// described: an expanded dimension (stride 0), or a stride of 2^40 bytes and more.
bool encode_cache_map(CUtensorMap& map, const void* cache, const CacheStrides& strides, const DecodeParams& params,
                      int32_t box_tokens);

}  // namespace leanattn
