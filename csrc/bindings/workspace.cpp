// The float32 scratch of stage 3, of the same size for every backend.
#include "arguments.h"
#include "backend.h"
#include "errors.h"

namespace leanattn {

int64_t workspace_elements(const DecodeParams& p) {
  if (p.debug.fixed_splits == 1) return 0;  // whole items leave no partials
  const int32_t slots = p.fixed_pieces.any() ? partial_slots(p.workers, p.fixed_pieces) : partial_slots(p.workers);
  return int64_t{slots} * p.partial_floats;
}

float* checked_workspace(const torch::stable::Tensor& workspace, const DecodeParams& p, Device device) {
  using torch::headeronly::ScalarType;
  const int64_t elements = workspace_elements(p);
  const Device came = Device::of(workspace);
  const auto past = reinterpret_cast<uintptr_t>(workspace.data_ptr()) % 16;  // rows are written 16 bytes at a time
  check_argument(workspace.scalar_type() == ScalarType::Float && workspace.is_contiguous() &&
                     same_device(came, device) && past == 0 && workspace.numel() >= elements,
                 "workspace: expected a contiguous float32 tensor on ", device,
                 ", starting at a multiple of 16 bytes, of at least ", elements, " elements, got ", workspace.numel(),
                 " elements of dtype ", toString(workspace.scalar_type()), " on ", came, ", ", past,
                 " bytes past such a multiple", workspace.is_contiguous() ? "" : ", not contiguous");
  return static_cast<float*>(workspace.data_ptr());
}

void bind_workspace(DecodeParams& p, float* memory) { p.workspace.partials = memory; }

}  // namespace leanattn
