// The CPU backend: workers over the threads of torch.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "arguments.h"
#include "backend.h"
#include "cpu/append_cpu.h"
#include "cpu/decode_cpu.h"
#include "cpu/dispatch.h"
#include "errors.h"
#include "kernels/tile_table.h"

namespace leanattn {
namespace {

int32_t default_workers() {
  return std::min(static_cast<int32_t>(torch::stable::get_num_threads()), tile_table::kMaxWorkers);
}

// The memory of the blocks of packed queries, and the blocks in it; null if queries are not packed.
std::unique_ptr<int32_t[]> pack(const PackedQueries& packed, DecodeParams& params) {
  if (packed.offsets == nullptr) return nullptr;
  auto memory = std::make_unique_for_overwrite<int32_t[]>(QueryBlocks::elements(packed));
  const QueryBlocks blocks = bind_blocks(params, packed, memory.get());
  int32_t number = 0;
  for (int32_t seq = 0; seq < packed.seqs; ++seq) {
    for (int32_t i = 0; i < packed.blocks(seq) && number < params.batch; ++i) blocks.set(packed, seq, i, number++);
  }
  for (; number < params.batch; ++number) blocks.set_none(number);
  return memory;
}

void set_schedule(DecodeParams& params) {
  const int32_t workers = params.workers > 0 ? params.workers : default_workers();
  apply(tile_table::cpu_tiling(tile_table::shape_of(params)), workers, params);
}

// Elements of K, V and Q that are worth a thread: as many as in torch's own loops.
constexpr int64_t kElementsOfThread = 32'768;

// Every token of an append call is padding or has a place. Nothing has been written yet.
void check_places(const AppendParams& p) {
  using Fate = TokenPlace::Fate;
  for (int32_t seq = 0; seq < p.batch; ++seq) {
    for (int32_t token = 0; token < p.new_tokens; ++token) {
      const TokenPlace place = p.place(seq, token);
      check_argument(place.fate != Fate::kBeyondCache, "cache_seqlens: ", p.seqlens[seq], " tokens of sequence ", seq,
                     ", expected at most ", p.max_tokens, ", what its cache holds");
      check_argument(place.fate != Fate::kBeyondRotary, "cache_seqlens: ", p.seqlens[seq], " tokens of sequence ", seq,
                     ", expected at most ", p.rotary.max_positions, ", the positions that rotary_cos has");
      check_argument(place.fate != Fate::kNoPage, "block_table: page ", place.row, " for token ", place.position,
                     " of sequence ", seq, ", expected 0..", p.page_table.num_pages - 1);
    }
  }
}

}  // namespace

void plan_cpu(const DecodeCall& call) {
  DecodeParams params = call.params;
  const auto blocks = pack(call.packed, params);
  set_schedule(params);
  check_line_fits(params);
  cpu::make_plan(params);
}

void append_cpu(const AppendParams& p) {
  check_places(p);
  const int64_t elements =  // of a token
      int64_t{p.num_kv_heads + p.num_q_heads} * p.head_dim + int64_t{p.num_kv_heads} * p.v_head_dim;
  const int64_t grain = std::max<int64_t>(1, kElementsOfThread / elements);
  torch::stable::parallel_for(0, int64_t{p.batch} * p.new_tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      cpu::append_token(p, static_cast<int32_t>(i / p.new_tokens), static_cast<int32_t>(i % p.new_tokens));
    }
  });
}

void run_cpu(const DecodeCall& call, const RunOptions& options) {
  DecodeParams params = call.params;
  for (const auto& [name, dim] : {std::pair{"q", params.head_dim}, {"v_cache", params.v_head_dim}}) {
    check_argument(dim >= 8 && dim <= cpu::kMaxHeadDim && dim % 8 == 0, name,
                   ": the CPU backend expects a head_dim that is a multiple of 8, 8..", cpu::kMaxHeadDim, ", got ",
                   dim);
  }
  const auto blocks = pack(call.packed, params);
  set_schedule(params);
  params.debug = options.debug;
  apply_fixed_splits(params, std::numeric_limits<int32_t>::max());
  check_line_fits(params);
  const cpu::TileKernels& kernels = cpu::tile_kernels(params.dtype, params.cache_dtype);

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
