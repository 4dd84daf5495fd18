// The float32 scratch of stage 3, of the same size for every backend.
#include "backend.h"

namespace leanattn {

int64_t workspace_elements(const DecodeParams& p) { return partial_slots(p.workers) * p.partial_floats(); }

void bind_workspace(DecodeParams& p, float* memory) { p.workspace.partials = memory; }

}  // namespace leanattn
