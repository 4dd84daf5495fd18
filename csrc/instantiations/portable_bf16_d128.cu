#include "kernels/launch_portable.cuh"
#include "manifest.h"

namespace leanattn {
const DecodeKernel portable_bf16_d128{DType::kBFloat16, 128, false, launch_portable<cutlass::bfloat16_t, 128, false>};
}
