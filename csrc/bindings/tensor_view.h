// What the checks need of a tensor, asked for once: every question goes through the C interface of the stable ABI, and
// all the answers together would otherwise cost a call more than its launch.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "allocate.h"

namespace leanattn {

struct TensorView {
  torch::headeronly::IntHeaderOnlyArrayRef sizes, strides;  // strides in elements
  torch::headeronly::ScalarType dtype;
  Device device;
  void* data;

  static TensorView of(const torch::stable::Tensor& tensor) {
    return {tensor.sizes(), tensor.strides(), tensor.scalar_type(), Device::of(tensor), tensor.data_ptr()};
  }

  int64_t dim() const { return static_cast<int64_t>(sizes.size()); }
  int64_t size(int64_t i) const { return sizes[i]; }
  int64_t stride(int64_t i) const { return strides[i]; }
  int64_t numel() const {
    int64_t count = 1;
    for (const int64_t size : sizes) count *= size;
    return count;
  }
  // The shape of another one, but for one dimension.
  bool fits(const TensorView& other, int64_t but_for) const {
    if (dim() != other.dim()) return false;
    for (int64_t i = 0; i < dim(); ++i) {
      if (i != but_for && size(i) != other.size(i)) return false;
    }
    return true;
  }
  bool is_contiguous() const {
    if (numel() == 0) return true;
    int64_t expected = 1;
    for (int64_t i = dim() - 1; i >= 0; --i) {
      if (sizes[i] != 1 && strides[i] != expected) return false;
      expected *= sizes[i];
    }
    return true;
  }
};

}  // namespace leanattn
