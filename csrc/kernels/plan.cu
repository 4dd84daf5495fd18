// Makes a plan (plan.h): a warp finds the share of one worker, as a decode call without a plan would.
#include "launch.h"
#include "worker_share.cuh"

namespace leanattn {
namespace {

constexpr int kWarps = 4;  // of a CTA

__global__ void plan_kernel(const __grid_constant__ TileLine line, const int32_t workers, int32_t* memory) {
  const Plan plan{memory};
  const int32_t thread = blockIdx.x * blockDim.x + threadIdx.x, worker = thread / 32;
  if (worker < workers) {
    const WorkerShare share = locate_worker_share(line, workers, worker);
    if (thread % 32 == 0) plan.share(worker) = PlannedShare::of(share.spans);
    if (thread == 0) plan.header() = PlanHeader::of(line, workers, share.shares);
  }
  for (int32_t seq = thread; seq < line.batch; seq += gridDim.x * blockDim.x) plan.lengths()[seq] = line.seqlens[seq];
}

}  // namespace

cudaError_t launch_plan(const DecodeParams& params, cudaStream_t stream) {
  plan_kernel<<<ceil_div(params.workers, kWarps), 32 * kWarps, 0, stream>>>(params.line(), params.workers, params.plan);
  return cudaGetLastError();
}

}  // namespace leanattn
