// How the bindings start a kernel: no template and no CuTe here. Errors are returned; nothing exits.
#pragma once

#include <cuda_runtime_api.h>

#include "params.h"

namespace leanattn {

struct AppendParams;

constexpr int kMaxDevices = 64;

struct DeviceLimits {
  int ordinal;  // less than kMaxDevices
  int sm_count;
  int shared_memory_bytes;  // that one CTA may ask for
  bool wgmma;               // there is, in the GPU and in the build
};

// What a kernel can do; one that can do more has more instructions to fetch.
enum class KernelKind : int32_t {
  kPlain,    // a contiguous cache
  kPaged,    // a paged one
  kGeneral,  // either, with ScoreOptions, and of any head_dim
  kE4M3,     // the same, of float8, up to a head_dim of 256
  kE5M2,
  kInt8,   // the same, of int8
  kWgmma,  // as kGeneral, for many query rows, up to a head_dim of 128; not on every GPU
};
constexpr bool is_8_bit(KernelKind kind) {
  return kind == KernelKind::kE4M3 || kind == KernelKind::kE5M2 || kind == KernelKind::kInt8;
}
// Has all that kPlain and kPaged have not.
constexpr bool is_general(KernelKind kind) { return kind == KernelKind::kGeneral || is_8_bit(kind); }

struct DecodeKernel {
  DType dtype;
  int32_t head_dim;
  KernelKind kind;
  cudaError_t (*launch)(const DecodeParams& params, const DeviceLimits& device, cudaStream_t stream);
};

// Makes the blocks of packed queries, one at least.
cudaError_t launch_pack(const PackedQueries& packed, const QueryBlocks& result, cudaStream_t stream);

// Makes params.plan from params.line().
cudaError_t launch_plan(const DecodeParams& params, cudaStream_t stream);

// Of 16-bit elements; batch, new_tokens and num_kv_heads at least 1.
cudaError_t launch_append(const AppendParams& params, const DeviceLimits& device, cudaStream_t stream);

// Every kernel that is built: each file of instantiations/ defines one of these, and is linked in, so it is found. The
// list is made as the library is loaded, and does not change after that.
class RegisteredKernel {
 public:
  explicit RegisteredKernel(const DecodeKernel& kernel) : kernel_(kernel), next_(first_) { first_ = this; }
  RegisteredKernel(const RegisteredKernel&) = delete;
  RegisteredKernel& operator=(const RegisteredKernel&) = delete;

  // The kernel of that kind for a dtype and head dim, or null.
  static const DecodeKernel* find(DType dtype, int32_t head_dim, KernelKind kind) {
    for (const RegisteredKernel* at = first_; at != nullptr; at = at->next_) {
      const DecodeKernel& kernel = at->kernel_;
      if (kernel.dtype == dtype && kernel.head_dim == head_dim && kernel.kind == kind) return &kernel;
    }
    return nullptr;
  }

 private:
  static inline constinit const RegisteredKernel* first_ = nullptr;

  DecodeKernel kernel_;
  const RegisteredKernel* next_;
};

}  // namespace leanattn
