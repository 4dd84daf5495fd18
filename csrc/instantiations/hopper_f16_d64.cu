#include "kernels/launch_hopper.cuh"
#include "manifest.h"

namespace leanattn {
const DecodeKernel hopper_f16_d64{Body::kHopper, DType::kFloat16, 64, launch_hopper<cutlass::half_t, 64>};
}
