// Every kernel that is built, one line each; <name>.cu defines it.
#pragma once

#include "kernels/launch.h"

namespace leanattn {

extern const DecodeKernel plain_bf16_d64;
extern const DecodeKernel plain_bf16_d128;
extern const DecodeKernel plain_f16_d64;
extern const DecodeKernel plain_f16_d128;
extern const DecodeKernel paged_bf16_d64;
extern const DecodeKernel paged_bf16_d128;
extern const DecodeKernel paged_f16_d64;
extern const DecodeKernel paged_f16_d128;
extern const DecodeKernel general_bf16_d64;
extern const DecodeKernel general_bf16_d128;
extern const DecodeKernel general_f16_d64;
extern const DecodeKernel general_f16_d128;
extern const DecodeKernel e4m3_bf16_d64;
extern const DecodeKernel e4m3_bf16_d128;
extern const DecodeKernel e4m3_f16_d64;
extern const DecodeKernel e4m3_f16_d128;
extern const DecodeKernel e5m2_bf16_d64;
extern const DecodeKernel e5m2_bf16_d128;
extern const DecodeKernel e5m2_f16_d64;
extern const DecodeKernel e5m2_f16_d128;
extern const DecodeKernel general_bf16_d256;
extern const DecodeKernel general_f16_d256;
extern const DecodeKernel general_bf16_d512;
extern const DecodeKernel general_f16_d512;
extern const DecodeKernel e4m3_bf16_d256;
extern const DecodeKernel e4m3_f16_d256;
extern const DecodeKernel e5m2_bf16_d256;
extern const DecodeKernel e5m2_f16_d256;
extern const DecodeKernel wgmma_bf16_d64;
extern const DecodeKernel wgmma_bf16_d128;
extern const DecodeKernel wgmma_f16_d64;
extern const DecodeKernel wgmma_f16_d128;
extern const DecodeKernel int8_bf16_d64;
extern const DecodeKernel int8_f16_d64;
extern const DecodeKernel int8_bf16_d128;
extern const DecodeKernel int8_f16_d128;
extern const DecodeKernel int8_bf16_d256;
extern const DecodeKernel int8_f16_d256;

}  // namespace leanattn
