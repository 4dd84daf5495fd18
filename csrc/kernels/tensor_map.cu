#include "tensor_map.h"

namespace leanattn {
namespace {

// The driver's function, without linking the driver library, which a machine without a GPU does not have.
decltype(&cuTensorMapEncodeTiled) find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  constexpr unsigned kSince = 12000;  // CUDA 12.0
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kSince, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

}  // namespace

bool encode_cache_map(CUtensorMap& map, const void* cache, const CacheStrides& strides, const DecodeParams& params,
                      int32_t box_tokens) {
  static const auto encode = find_encode();
  if (encode == nullptr) return false;
  constexpr int kRank = 5, kColumns = 64, kElementBytes = 2;
  constexpr cuuint64_t kRowBytes = kColumns * kElementBytes;
  const auto halves = cuuint32_t(params.head_dim / kColumns);
  const cuuint64_t sizes[kRank] = {kColumns, cuuint64_t(params.max_tokens), halves, cuuint64_t(params.num_kv_heads),
                                   cuuint64_t(params.batch)};
  // A dimension of size 1 has stride 0 here (params.h); the engine wants a number, and never uses it.
  const auto bytes = [&](int64_t stride, int32_t size) {
    return size > 1 ? cuuint64_t(stride) * kElementBytes : kRowBytes * halves;
  };
  const cuuint64_t stride_bytes[kRank - 1] = {bytes(strides.token, params.max_tokens), kRowBytes,
                                              bytes(strides.head, params.num_kv_heads),
                                              bytes(strides.batch, params.batch)};
  for (const cuuint64_t stride : stride_bytes) {
    if (stride == 0 || stride >= cuuint64_t{1} << 40) return false;
  }
  const cuuint32_t box[kRank] = {kColumns, cuuint32_t(box_tokens), halves, 1, 1};
  const cuuint32_t steps[kRank] = {1, 1, 1, 1, 1};
  // 16-bit integers: nothing is computed with the elements, and out of bounds becomes zero all the same. Fetching more
  // than a box asks for into L2 (promotion) costs bandwidth (docs/tuning.md).
  return encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, kRank, const_cast<void*>(cache), sizes, stride_bytes, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace leanattn
