// Every kernel that is built, one line each; <body>_<dtype>_d<head_dim>.cu defines it.
#pragma once

#include "kernels/launch.h"

namespace leanattn {

extern const DecodeKernel portable_bf16_d64;
extern const DecodeKernel portable_bf16_d128;
extern const DecodeKernel portable_f16_d64;
extern const DecodeKernel portable_f16_d128;

// If the build is for sm_90a among others (build_support/sources.py).
extern const DecodeKernel hopper_bf16_d64;
extern const DecodeKernel hopper_bf16_d128;
extern const DecodeKernel hopper_f16_d64;
extern const DecodeKernel hopper_f16_d128;

}  // namespace leanattn
