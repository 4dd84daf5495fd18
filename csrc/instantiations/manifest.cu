#include "manifest.h"

namespace leanattn {

const DecodeKernel* find_decode_kernel(DType dtype, int32_t head_dim, bool paged) {
  static constexpr const DecodeKernel* kKernels[] = {
      &portable_bf16_d64, &portable_bf16_d128, &portable_f16_d64, &portable_f16_d128,
      &paged_bf16_d64,    &paged_bf16_d128,    &paged_f16_d64,    &paged_f16_d128,
  };
  for (const DecodeKernel* kernel : kKernels) {
    if (kernel->dtype == dtype && kernel->head_dim == head_dim && kernel->paged == paged) return kernel;
  }
  return nullptr;
}

}  // namespace leanattn
