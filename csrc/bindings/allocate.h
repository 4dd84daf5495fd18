// New contiguous tensors. torch::stable's new_empty and empty look their op up by name on every call, which costs a
// decode step microseconds; the C interface below them does not.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <vector>

namespace leanattn {

struct Device {
  int32_t type;  // aoti_torch_device_type_*
  int32_t index;

  static Device of(const torch::stable::Tensor& tensor) {
    Device device{0, tensor.get_device_index()};
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &device.type));
    return device;
  }
};

// Uninitialised; `dtype` is one of aoti_torch_dtype_*.
inline torch::stable::Tensor empty_tensor(const std::vector<int64_t>& shape, int32_t dtype, Device device) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= shape[i] > 0 ? shape[i] : 1;
  }
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(),
                                                         strides.data(), dtype, device.type, device.index, &handle));
  return torch::stable::Tensor(handle);
}

}  // namespace leanattn
