// The CUDA backend: device limits, kernel, workspace, stream, launch.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <array>
#include <limits>
#include <mutex>
#include <optional>
#include <utility>

#include "allocate.h"
#include "arguments.h"
#include "backend.h"
#include "build_info.h"
#include "cuda_error.h"
#include "cuda_tickets.h"
#include "kernels/launch.h"
#include "kernels/tile_table.h"

// Part of libtorch's stable C interface, but declared only by CUDA builds of torch. Weak, so that a library built
// against CPU torch also loads there; it is called only with CUDA tensors.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace leanattn {
namespace {

using torch::stable::Tensor;

DeviceLimits query_limits(int32_t device) {
  DeviceLimits limits{device, 0, 0, false};
  check_cuda(cudaDeviceGetAttribute(&limits.sm_count, cudaDevAttrMultiProcessorCount, device), "SM count");
  check_cuda(cudaDeviceGetAttribute(&limits.shared_memory_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
             "shared memory size");
  int major = 0, minor = 0;
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "compute capability");
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
  check_argument(major >= 8, "q: its GPU has compute capability ", major, ".x, expected 8.0 or higher");
  limits.wgmma = major == 9 && minor == 0 && built_for_sm90a();
  return limits;
}

const DeviceLimits& device_limits(int32_t device) {
  check_argument(device >= 0 && device < kMaxDevices, "q: device index ", device, ", expected less than ", kMaxDevices);
  static std::array<std::once_flag, kMaxDevices> once;
  static std::array<DeviceLimits, kMaxDevices> limits;
  std::call_once(once[device], [&] { limits[device] = query_limits(device); });
  return limits[device];
}

cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

Tensor allocate_workspace(const DecodeParams& p, int32_t device) {
  return empty_tensor({workspace_elements(p)}, aoti_torch_dtype_float32(), {aoti_torch_device_type_cuda(), device});
}

// The memory of the blocks of packed queries, which a kernel fills; none if queries are not packed.
std::optional<Tensor> pack(const PackedQueries& packed, DecodeParams& p, int32_t device) {
  if (packed.offsets == nullptr) return std::nullopt;
  Tensor memory =
      empty_tensor({QueryBlocks::elements(packed)}, aoti_torch_dtype_int32(), {aoti_torch_device_type_cuda(), device});
  const QueryBlocks blocks = bind_blocks(p, packed, static_cast<int32_t*>(memory.data_ptr()));
  check_cuda(launch_pack(packed, blocks, current_stream(device)), "launch of the kernel that packs queries");
  return memory;
}

// Makes a device current while it lives, if it is not.
class CurrentDevice {
 public:
  explicit CurrentDevice(int32_t device) {
    int current = -1;
    check_cuda(cudaGetDevice(&current), "cudaGetDevice");
    if (current != device) guard_.emplace(device);
  }

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

void set_schedule(DecodeParams& p, const DeviceLimits& limits) {
  const int32_t workers = p.workers > 0 ? p.workers : std::min(limits.sm_count, tile_table::kMaxWorkers);
  apply(tile_table::cuda_tiling(tile_table::shape_of(p), workers, limits.wgmma), workers, p);
}

int32_t kernel_head_dim(const DecodeParams& p) {
  return tile_table::cuda_head_dim(tile_table::widest_head_dim(p.head_dim, p.v_head_dim));
}

int32_t most_head_dim(const DecodeParams& p) {
  return is_8_bit(p.cache_dtype) ? tile_table::kMaxCudaHeadDim8Bits : tile_table::kMaxCudaHeadDim;
}

void check_kernel_dtype(DType dtype, const char* name) {
  check_argument(dtype != DType::kFloat32, name, ": dtype Float has no CUDA kernel, expected float16 or bfloat16");
}

void check_head_dims(const DecodeParams& p) {
  for (const auto& [name, dim] : {std::pair{"q", p.head_dim}, {"v_cache", p.v_head_dim}}) {
    check_argument(dim % 8 == 0 && dim <= most_head_dim(p), name, ": head_dim ", dim, " has no CUDA kernel",
                   is_8_bit(p.cache_dtype) ? " for a cache of 8 bits" : "", ", expected a multiple of 8, at most ",
                   most_head_dim(p));
  }
  // What a kernel counts in 32 bits.
  const int64_t columns = int64_t{p.rows} * p.num_kv_heads * kernel_head_dim(p);
  check_argument(columns <= std::numeric_limits<int32_t>::max(), "q: ", columns,
                 " elements of a sequence, head_dim rounded up to that of a kernel, expected fewer than 2^31");
}

KernelKind kernel_kind(const DecodeParams& p) {
  if (p.cache_dtype == DType::kFloat8E4M3) return KernelKind::kE4M3;
  if (p.cache_dtype == DType::kFloat8E5M2) return KernelKind::kE5M2;
  if (p.cache_dtype == DType::kInt8) return KernelKind::kInt8;
  if (p.row_limit == tile_table::kRowsWgmma) return KernelKind::kWgmma;
  if (tile_table::shape_of(p).general()) return KernelKind::kGeneral;
  return p.paged() ? KernelKind::kPaged : KernelKind::kPlain;
}

}  // namespace

bool has_wgmma(int32_t device) { return device_limits(device).wgmma; }

void plan_cuda(const DecodeCall& call, int32_t device) {
  DecodeParams p = call.params;
  for (const auto& [name, dim] : {std::pair{"head_dim", p.head_dim}, {"v_head_dim", p.v_head_dim}}) {
    check_argument(dim <= most_head_dim(p), name, ": ", dim, ", expected at most ", most_head_dim(p));
  }
  const CurrentDevice current(device);
  const auto blocks = pack(call.packed, p, device);
  set_schedule(p, device_limits(device));
  check_line_fits(p);
  check_cuda(launch_plan(p, current_stream(device)), "launch of the plan kernel");
}

void append_cuda(const AppendParams& p, int32_t device) {
  check_kernel_dtype(p.dtype, "k");
  const CurrentDevice current(device);
  check_cuda(launch_append(p, device_limits(device), current_stream(device)), "launch of the append kernel");
}

void run_cuda(const DecodeCall& call, int32_t device, const RunOptions& options) {
  DecodeParams p = call.params;
  check_kernel_dtype(p.dtype, "q");
  check_head_dims(p);
  const CurrentDevice current(device);
  const DeviceLimits& limits = device_limits(device);
  const auto blocks = pack(call.packed, p, device);
  set_schedule(p, limits);
  const DecodeKernel* kernel = RegisteredKernel::find(p.dtype, kernel_head_dim(p), kernel_kind(p));
  check_argument(kernel != nullptr, "q: this build has no CUDA kernel of head_dim ", kernel_head_dim(p),
                 " for this dtype and these options, expected all of csrc/instantiations");
  p.debug = options.debug;
  apply_fixed_splits(p, tile_table::kMaxTeams);
  check_line_fits(p);

  const Tensor workspace = options.workspace != nullptr ? *options.workspace : allocate_workspace(p, device);
  bind_workspace(p, checked_workspace(workspace, p, {aoti_torch_device_type_cuda(), device}));

  const cudaStream_t stream = current_stream(device);
  p.workspace.tickets = lease_tickets(device, stream);
  check_cuda(kernel->launch(p, limits, stream), "launch of the decode kernel");
}

}  // namespace leanattn
