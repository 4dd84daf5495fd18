#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace leanattn::cpu {
namespace {

struct Isa {
  const char* name;
  bool supported;
  const IsaKernels* kernels;
};

const IsaKernels& isa_kernels() {
#if defined(__x86_64__)
  static const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  static const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  static const Isa kBestFirst[] = {
#if defined(__x86_64__)
      {"avx512", avx512, &kAvx512Kernels},
      {"avx2", avx2, &kAvx2Kernels},
#endif
      {"portable", true, &kPortableKernels},
  };
  const char* forced = std::getenv("LEANATTN_CPU_ISA");
  std::string usable;
  for (const Isa& isa : kBestFirst) {
    if (!isa.supported) continue;
    if (forced == nullptr || isa.name == std::string(forced)) return *isa.kernels;
    usable += std::string(usable.empty() ? "" : ", ") + isa.name;
  }
  throw std::invalid_argument("leanattn: LEANATTN_CPU_ISA: expected one of " + usable + " on this CPU, got '" +
                              std::string(forced) + "'");
}

}  // namespace

const TileKernels& tile_kernels(DType dtype, DType cache_dtype) {
  const IsaKernels& isa = isa_kernels();
  const CacheKernels& kernels =
      dtype == DType::kFloat16 ? isa.float16 : (dtype == DType::kBFloat16 ? isa.bfloat16 : isa.float32);
  switch (cache_dtype) {
    case DType::kFloat8E4M3: return kernels.float8_e4m3;
    case DType::kFloat8E5M2: return kernels.float8_e5m2;
    case DType::kInt8: return kernels.int8;
    default: return kernels.same;
  }
}

}  // namespace leanattn::cpu
