#include "kernels/launch_portable.cuh"
#include "manifest.h"

namespace leanattn {
const DecodeKernel portable_f16_d64{DType::kFloat16, 64, false, launch_portable<cutlass::half_t, 64, false>};
}
