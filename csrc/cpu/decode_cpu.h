// One worker of a decode call on the CPU.
#pragma once

#include "kernels/params.h"
#include "tile_kernels.h"

namespace leanattn::cpu {

// Does the share of worker `worker` of params.workers, in any thread and in any order: it neither waits for another
// worker nor allocates nor throws. head_dim, v_head_dim <= kMaxHeadDim, multiples of 8; tile_tokens <=
// tile_table::kCpuTileTokens.
void run_worker(const DecodeParams& params, const TileKernels& kernels, int32_t worker);

// Fills params.plan, for params.workers workers.
void make_plan(const DecodeParams& params);

}  // namespace leanattn::cpu
