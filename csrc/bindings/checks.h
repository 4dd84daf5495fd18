// Checks of tensors that several ops make; each throws std::invalid_argument, naming the argument.
#pragma once

#include <cstdint>
#include <optional>
#include <ostream>

#include "kernels/params.h"
#include "tensor_view.h"

namespace leanattn {

constexpr double kLog2E = 1.4426950408889634;  // scores are kept in log2 units

bool same_device(Device a, Device b);
// As in torch: cpu, cuda:0.
std::ostream& operator<<(std::ostream& stream, Device device);

// `value` as an int32_t; throws unless it is one and not negative.
int32_t to_int32(int64_t value, const char* what);

inline const torch::stable::Tensor* or_null(const std::optional<torch::stable::Tensor>& tensor) {
  return tensor ? &*tensor : nullptr;
}
std::optional<TensorView> view_of(const torch::stable::Tensor* tensor);

// A shape in a message: a call that passes the checks never pays for the text.
struct ShapeOf {
  const TensorView& tensor;

  friend std::ostream& operator<<(std::ostream& stream, const ShapeOf& shape);
};

// The tensor whose batch, head_dim, dtype and device the others of a call must fit, and its name.
struct Anchor {
  const TensorView& tensor;
  const char* name;
  std::optional<int64_t> sequences = std::nullopt;  // if they are not the tensor's first dimension

  int64_t batch() const { return sequences.value_or(tensor.size(0)); }
  int64_t head_dim() const { return tensor.size(tensor.dim() - 1); }
};

DType checked_dtype(const Anchor& anchor);
// Of a cache that check_types_and_layout() has passed, for queries of `dtype`.
DType cache_dtype(const TensorView& cache, DType dtype);
void check_dtype(const TensorView& t, torch::headeronly::ScalarType expected, const char* name);
void check_device_of(const Anchor& anchor, const TensorView& t, const char* name);
void check_like(const Anchor& anchor, const TensorView& t, const char* name);  // dtype and device

// Vector loads of 16 bytes need every row to start at a multiple of 16 bytes. Only for the dtypes of checked_dtype().
void check_rows_aligned(const TensorView& t, const char* name);
// Workers write their rows at the same time: the rows of one dimension must end before the next of another begins.
void check_rows_apart(const TensorView& t, const char* name);

// 0 where there is no second row: such a stride may be any number, and kernels form addresses of rows that do not
// exist.
int64_t stride_of(const TensorView& t, int64_t dim);
CacheStrides cache_strides(const TensorView& t);  // [batch or num_pages, tokens, heads, head_dim]
RowStrides row_strides(const TensorView& t);      // [batch, heads, head_dim] or [batch, tokens, heads, head_dim]

// The KV cache of a call.
struct CacheViews {
  TensorView k, v;                        // [batch, max_tokens, num_kv_heads, head_dim], or with a block_table
                                          // [num_pages, page_size, num_kv_heads, head_dim]; v has its own head_dim
  TensorView seqlens;                     // [batch] int32
  std::optional<TensorView> block_table;  // [batch, max_pages] int32

  int64_t v_head_dim() const { return v.size(3); }
  void check_shapes(const Anchor& anchor) const;
  void check_types_and_layout(const Anchor& anchor) const;
  PageTable page_table() const;
  int32_t max_tokens() const;  // that a sequence can have
};

// Factors of a float8 cache, or null: [1] or [num_kv_heads] float32.
HeadScales checked_head_scales(const torch::stable::Tensor* tensor, DType cache_dtype, const CacheViews& cache,
                               const Anchor& anchor, const char* name);
// Factors of an int8 cache: float32 of the cache's shape but for head_dim, any strides. Of others there are none.
TokenScales checked_token_scales(const torch::stable::Tensor* tensor, DType cache_dtype, const CacheViews& cache,
                                 const Anchor& anchor, const char* name);

}  // namespace leanattn
