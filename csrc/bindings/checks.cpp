#include "checks.h"

#include <algorithm>
#include <limits>

#include "errors.h"

namespace leanattn {

using torch::headeronly::ScalarType;

// There is one CPU, whatever index its tensors carry.
bool same_device(Device a, Device b) {
  return a.type == b.type && (a.index == b.index || a.type == aoti_torch_device_type_cpu());
}

std::ostream& operator<<(std::ostream& stream, Device device) {
  if (device.type == aoti_torch_device_type_cpu()) return stream << "cpu";
  if (device.type == aoti_torch_device_type_cuda()) return stream << "cuda:" << device.index;
  return stream << "device type " << device.type << ':' << device.index;
}

int32_t to_int32(int64_t value, const char* what) {
  check_argument(value >= 0 && value <= std::numeric_limits<int32_t>::max(), what, ": ", value, " is out of range");
  return static_cast<int32_t>(value);
}

std::optional<TensorView> view_of(const torch::stable::Tensor* tensor) {
  return tensor != nullptr ? std::optional(TensorView::of(*tensor)) : std::nullopt;
}

std::ostream& operator<<(std::ostream& stream, const ShapeOf& shape) {
  stream << '[';
  for (int64_t i = 0; i < shape.tensor.dim(); ++i) stream << (i ? ", " : "") << shape.tensor.size(i);
  return stream << ']';
}

namespace {

bool is_8_bit(const TensorView& t) {
  return t.dtype == ScalarType::Float8_e4m3fn || t.dtype == ScalarType::Float8_e5m2 || t.dtype == ScalarType::Char;
}

}  // namespace

DType cache_dtype(const TensorView& cache, DType dtype) {
  switch (cache.dtype) {
    case ScalarType::Float8_e4m3fn: return DType::kFloat8E4M3;
    case ScalarType::Float8_e5m2: return DType::kFloat8E5M2;
    case ScalarType::Char: return DType::kInt8;
    default: return dtype;
  }
}

DType checked_dtype(const Anchor& anchor) {
  switch (anchor.tensor.dtype) {
    case ScalarType::Half: return DType::kFloat16;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Float: return DType::kFloat32;
    default:
      throw std::invalid_argument(concat("leanattn: ", anchor.name, ": dtype ", toString(anchor.tensor.dtype),
                                         ", expected float16, bfloat16 or float32"));
  }
}

void check_dtype(const TensorView& t, ScalarType expected, const char* name) {
  check_argument(t.dtype == expected, name, ": dtype ", toString(t.dtype), ", expected ", toString(expected));
}

void check_device_of(const Anchor& anchor, const TensorView& t, const char* name) {
  check_argument(same_device(t.device, anchor.tensor.device), name, ": device ", t.device, ", expected the device of ",
                 anchor.name, ", ", anchor.tensor.device);
}

void check_like(const Anchor& anchor, const TensorView& t, const char* name) {
  check_dtype(t, anchor.tensor.dtype, name);
  check_device_of(anchor, t, name);
}

void check_rows_aligned(const TensorView& t, const char* name) {
  const int64_t element = t.dtype == ScalarType::Float ? 4 : (is_8_bit(t) ? 1 : 2);  // every other has been refused
  const int64_t last = t.dim() - 1;
  check_argument(t.stride(last) == 1 || t.size(last) <= 1, name,
                 ": the last dimension must be contiguous, its stride is ", t.stride(last));
  if (t.numel() == 0) return;
  check_argument(reinterpret_cast<uintptr_t>(t.data) % 16 == 0, name,
                 ": the data must start at a multiple of 16 bytes");
  for (int64_t i = 0; i < last; ++i) {
    check_argument(t.size(i) == 1 || t.stride(i) * element % 16 == 0, name, ": stride ", t.stride(i), " of dimension ",
                   i, " is not a multiple of 16 bytes");
  }
}

void check_rows_apart(const TensorView& t, const char* name) {
  const int64_t columns = t.size(t.dim() - 1);
  for (int64_t dim = 0; dim + 1 < t.dim(); ++dim) {  // batch, perhaps tokens, heads
    if (t.size(dim) <= 1) continue;
    int64_t extent = columns;  // of all rows of any dimension within this one
    for (int64_t inner = 0; inner + 1 < t.dim(); ++inner) {
      const bool within = t.stride(inner) < t.stride(dim) || (t.stride(inner) == t.stride(dim) && inner < dim);
      if (within && t.size(inner) > 1) extent = std::max(extent, t.stride(inner) * t.size(inner));
    }
    check_argument(t.stride(dim) >= extent, name, ": stride ", t.stride(dim), " of dimension ", dim,
                   ", expected rows of ", columns, " elements that do not overlap");
  }
}

int64_t stride_of(const TensorView& t, int64_t dim) { return t.size(dim) > 1 ? t.stride(dim) : 0; }

CacheStrides cache_strides(const TensorView& t) { return {stride_of(t, 0), stride_of(t, 1), stride_of(t, 2)}; }
RowStrides row_strides(const TensorView& t) {
  return {stride_of(t, 0), t.dim() == 4 ? stride_of(t, 1) : 0, stride_of(t, t.dim() - 2)};
}

void CacheViews::check_shapes(const Anchor& anchor) const {
  const int64_t batch = anchor.batch(), head_dim = anchor.head_dim();
  if (block_table) {
    check_argument(block_table->dim() == 2 && block_table->size(0) == batch, "block_table: expected [", batch,
                   ", max_pages] to fit ", anchor.name, ", got ", ShapeOf{*block_table});
    check_argument(k.dim() == 4 && k.size(1) >= 1 && k.size(3) == head_dim,
                   "k_cache: expected [num_pages, page_size, num_kv_heads, ", head_dim, "] to fit ", anchor.name,
                   ", got ", ShapeOf{k});
  } else {
    check_argument(k.dim() == 4 && k.size(0) == batch && k.size(3) == head_dim, "k_cache: expected [", batch,
                   ", max_tokens, num_kv_heads, ", head_dim, "] to fit ", anchor.name, ", got ", ShapeOf{k});
  }
  check_argument(v.fits(k, 3) && v_head_dim() >= 1, "v_cache: expected the shape of k_cache, ", ShapeOf{k},
                 ", but for head_dim, got ", ShapeOf{v});
  check_argument(seqlens.dim() == 1 && seqlens.size(0) == batch, "cache_seqlens: expected [", batch, "], got ",
                 ShapeOf{seqlens});
}

void CacheViews::check_types_and_layout(const Anchor& anchor) const {
  if (is_8_bit(k)) {
    check_device_of(anchor, k, "k_cache");
    check_like({k, "k_cache"}, v, "v_cache");
  } else {
    check_like(anchor, k, "k_cache");
    check_like(anchor, v, "v_cache");
  }
  check_rows_aligned(k, "k_cache");
  check_rows_aligned(v, "v_cache");
  check_dtype(seqlens, ScalarType::Int, "cache_seqlens");
  check_device_of(anchor, seqlens, "cache_seqlens");
  check_argument(seqlens.is_contiguous(), "cache_seqlens: expected a contiguous tensor");
  if (block_table) {
    check_dtype(*block_table, ScalarType::Int, "block_table");
    check_device_of(anchor, *block_table, "block_table");
    check_argument(block_table->size(1) <= 1 || block_table->stride(1) == 1,
                   "block_table: the last dimension must be contiguous, its stride is ", block_table->stride(1));
  }
}

PageTable CacheViews::page_table() const {
  if (!block_table) return {};
  return {static_cast<const int32_t*>(block_table->data), stride_of(*block_table, 0),
          to_int32(k.size(1), "k_cache: page_size"), to_int32(k.size(0), "k_cache: num_pages")};
}

// Of a paged cache, how long a sequence can be depends on the table. Without a page there is no token.
int32_t CacheViews::max_tokens() const {
  if (!block_table) return to_int32(k.size(1), "k_cache: max_tokens");
  const int64_t max_pages = block_table->size(1), page_size = k.size(1);
  check_argument(max_pages <= std::numeric_limits<int32_t>::max() / page_size, "block_table: ", max_pages, " pages of ",
                 page_size, " tokens are 2^31 tokens or more");
  return k.size(0) == 0 ? 0 : static_cast<int32_t>(max_pages * page_size);
}

}  // namespace leanattn
