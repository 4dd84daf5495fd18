// Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl.
#if defined(__x86_64__)
#include "isa_kernels.h"
#include "simd_avx512.h"

namespace leanattn::cpu {
const IsaKernels kAvx512Kernels = kIsaKernels<Avx512>;
}
#endif
