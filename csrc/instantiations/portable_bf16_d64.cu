#include "kernels/launch_portable.cuh"
#include "manifest.h"

namespace leanattn {
const DecodeKernel portable_bf16_d64{DType::kBFloat16, 64, false, launch_portable<cutlass::bfloat16_t, 64, false>};
}
