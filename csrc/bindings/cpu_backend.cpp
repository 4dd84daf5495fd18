// The CPU backend: workers over the threads of torch.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "arguments.h"
#include "backend.h"
#include "cpu/decode_cpu.h"
#include "cpu/dispatch.h"
#include "cpu/seen_tokens.h"
#include "errors.h"
#include "kernels/tile_table.h"

namespace leanattn {
namespace {

int32_t default_workers() {
  return std::min(static_cast<int32_t>(torch::stable::get_num_threads()), tile_table::kMaxWorkers);
}

void set_schedule(DecodeParams& params) {
  const int32_t workers = params.workers > 0 ? params.workers : default_workers();
  apply(tile_table::cpu_tiling(tile_table::shape_of(params)), workers, params);
}

}  // namespace

void plan_cpu(DecodeParams params) {
  set_schedule(params);
  check_line_fits(params);
  cpu::make_plan(params);
}

void run_cpu(DecodeParams params, const RunOptions& options) {
  check_argument(params.head_dim >= 8 && params.head_dim <= cpu::kMaxHeadDim && params.head_dim % 8 == 0,
                 "q: the CPU backend expects a head_dim that is a multiple of 8, 8..", cpu::kMaxHeadDim, ", got ",
                 params.head_dim);
  set_schedule(params);
  params.debug = options.debug;
  apply_fixed_splits(params, std::numeric_limits<int32_t>::max());
  check_line_fits(params);
  const cpu::TileKernels& kernels = cpu::tile_kernels(params.dtype);
  const cpu::SeenTokens seen(params);
  seen.apply(params);

  // Everything that can fail is done before the workers start.
  std::unique_ptr<float[]> own;
  if (options.workspace == nullptr) own = std::make_unique_for_overwrite<float[]>(workspace_elements(params));
  const Device device{aoti_torch_device_type_cpu(), 0};
  bind_workspace(params, own ? own.get() : checked_workspace(*options.workspace, params, device));
  std::vector<uint32_t> tickets(params.workers, 0);
  params.workspace.tickets = tickets.data();

  // Inside another parallel region torch runs this as a plain loop; no worker waits for another, so that is right too.
  torch::stable::parallel_for(0, params.workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) cpu::run_worker(params, kernels, static_cast<int32_t>(worker));
  });
}

}  // namespace leanattn
