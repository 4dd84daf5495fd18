// CUDA errors as C++ exceptions, which arrive in Python as RuntimeError.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>

#include "errors.h"

namespace leanattn {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears it, unless the context is lost: the next call must not report this one's error
  throw std::runtime_error(
      concat("leanattn: ", what, ": ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")"));
}

}  // namespace leanattn
