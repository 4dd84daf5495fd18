// Packed queries: from cu_seqlens_q to the blocks that the schedule knows.
#include "kernels/query_blocks.h"

#include "arguments.h"
#include "backend.h"
#include "errors.h"
#include "kernels/tile_table.h"

namespace leanattn {

int32_t row_limit_of(Device device, const DecodeParams& p, int64_t tokens, int64_t batch) {
  const bool cuda = device.type == aoti_torch_device_type_cuda();
  bool wgmma = cuda && tile_table::many_packed_rows(tokens, p.group, batch);
#ifdef LEANATTN_WITH_CUDA
  wgmma = wgmma && has_wgmma(device.index);
#endif
  return tile_table::packed_row_limit(cuda, wgmma, tile_table::widest_head_dim(p.head_dim, p.v_head_dim),
                                      element_size(p.cache_dtype), p.batch_invariant);
}

PackedQueries checked_packed_queries(const torch::stable::Tensor& cu_seqlens_q, const TensorView& seqlens,
                                     int64_t tokens, DecodeParams& p) {
  const TensorView offsets = TensorView::of(cu_seqlens_q);
  check_dtype(offsets, torch::headeronly::ScalarType::Int, "cu_seqlens_q");
  check_argument(same_device(offsets.device, seqlens.device), "cu_seqlens_q: device ", offsets.device,
                 ", expected that of cache_seqlens, ", seqlens.device);
  check_argument(offsets.dim() == 1 && offsets.size(0) == seqlens.size(0) + 1 && offsets.is_contiguous(),
                 "cu_seqlens_q: expected [batch + 1], [", seqlens.size(0) + 1, "], contiguous, got ", ShapeOf{offsets});
  PackedQueries packed;
  packed.offsets = static_cast<const int32_t*>(offsets.data);
  packed.seqlens = static_cast<const int32_t*>(seqlens.data);
  packed.leftpad = p.scores.leftpad;
  packed.seqs = to_int32(seqlens.size(0), "cache_seqlens: batch");
  packed.total = to_int32(tokens, "q: tokens");
  packed.max_tokens = p.max_tokens;
  packed.window_left = p.scores.window_left < p.max_tokens ? p.scores.window_left : -1;
  packed.window_right = p.scores.window_right;
  p.row_limit = row_limit_of(seqlens.device, p, packed.total, packed.seqs);
  packed.block_tokens = tile_table::block_tokens(p.group, p.row_limit);
  p.batch = packed.most_blocks();
  set_query_rows(p, packed.block_tokens, p.group);
  return packed;
}

QueryBlocks bind_blocks(DecodeParams& p, const PackedQueries& packed, int32_t* memory) {
  const auto blocks = QueryBlocks::in(memory, packed);
  p.query_blocks = blocks.blocks;
  p.seqlens = blocks.lengths;
  if (packed.leaves_some_unseen()) p.scores.leftpad = blocks.leftpads;
  return blocks;
}

}  // namespace leanattn
