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

const TileKernels& tile_kernels(DType dtype) {
  const IsaKernels& isa = isa_kernels();
  switch (dtype) {
    case DType::kFloat16: return isa.float16;
    case DType::kBFloat16: return isa.bfloat16;
    case DType::kFloat32: return isa.float32;
  }
  throw std::invalid_argument("leanattn: q: unknown dtype");
}

}  // namespace leanattn::cpu
