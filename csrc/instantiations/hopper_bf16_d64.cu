#include "kernels/launch_hopper.cuh"
#include "manifest.h"

namespace leanattn {
const DecodeKernel hopper_bf16_d64{Body::kHopper, DType::kBFloat16, 64, launch_hopper<cutlass::bfloat16_t, 64>};
}
