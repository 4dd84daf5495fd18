// Every kernel that is built, one line each; <name>.cu defines it.
#pragma once

#include "kernels/launch.h"

namespace leanattn {

extern const DecodeKernel portable_bf16_d64;
extern const DecodeKernel portable_bf16_d128;
extern const DecodeKernel portable_f16_d64;
extern const DecodeKernel portable_f16_d128;
extern const DecodeKernel paged_bf16_d64;
extern const DecodeKernel paged_bf16_d128;
extern const DecodeKernel paged_f16_d64;
extern const DecodeKernel paged_f16_d128;

}  // namespace leanattn
