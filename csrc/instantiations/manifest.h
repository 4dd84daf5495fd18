// Every kernel that is built, one line each; portable_<dtype>_d<head_dim>.cu defines it.
#pragma once

#include "kernels/launch.h"

namespace leanattn {

extern const DecodeKernel portable_bf16_d64;
extern const DecodeKernel portable_bf16_d128;
extern const DecodeKernel portable_f16_d64;
extern const DecodeKernel portable_f16_d128;

}  // namespace leanattn
