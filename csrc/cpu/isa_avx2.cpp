// Compiled with -mavx2 -mfma -mf16c.
#if defined(__x86_64__)
#include "isa_kernels.h"
#include "simd_avx2.h"

namespace leanattn::cpu {
const IsaKernels kAvx2Kernels = kIsaKernels<Avx2>;
}
#endif
