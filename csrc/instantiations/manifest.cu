#include "manifest.h"

namespace leanattn {

const DecodeKernel* find_decode_kernel(DType dtype, int32_t head_dim, KernelKind kind) {
  static constexpr const DecodeKernel* kKernels[] = {
      &plain_bf16_d64,    &plain_bf16_d128,   &plain_f16_d64,    &plain_f16_d128,   &paged_bf16_d64,
      &paged_bf16_d128,   &paged_f16_d64,     &paged_f16_d128,   &general_bf16_d64, &general_bf16_d128,
      &general_f16_d64,   &general_f16_d128,  &e4m3_bf16_d64,    &e4m3_bf16_d128,   &e4m3_f16_d64,
      &e4m3_f16_d128,     &e5m2_bf16_d64,     &e5m2_bf16_d128,   &e5m2_f16_d64,     &e5m2_f16_d128,
      &general_bf16_d256, &general_f16_d256,  &e4m3_bf16_d256,   &e4m3_f16_d256,    &e5m2_bf16_d256,
      &e5m2_f16_d256,     &wgmma_bf16_d64,    &wgmma_bf16_d128,  &wgmma_f16_d64,    &wgmma_f16_d128,
      &int8_bf16_d64,     &int8_f16_d64,      &int8_bf16_d128,   &int8_f16_d128,    &int8_bf16_d256,
      &int8_f16_d256,     &general_bf16_d512, &general_f16_d512,
  };
  for (const DecodeKernel* kernel : kKernels) {
    if (kernel->dtype == dtype && kernel->head_dim == head_dim && kernel->kind == kind) return kernel;
  }
  return nullptr;
}

}  // namespace leanattn
