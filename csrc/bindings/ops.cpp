// The op schemas and their registration; nothing else. LibTorch stable ABI: one binary for every torch >= 2.10.
#include <torch/csrc/stable/library.h>

#include "append.h"
#include "decode.h"

// Of the three ops that decode.
#define LEANATTN_OPTIONS                                                                                \
  "int window_left=-1, int window_right=-1, float softcap=0.0, Tensor? sinks=None, "                    \
  "Tensor? alibi_slopes=None, Tensor? cache_leftpad=None, Tensor? k_scale=None, Tensor? v_scale=None, " \
  "Tensor? tree_mask=None, Tensor? cu_seqlens_q=None, bool batch_invariant=False"

// Of the two that plan.
#define LEANATTN_PLANNED_SHAPES                                                                                        \
  "int max_tokens, int num_q_heads, int num_kv_heads, int head_dim, int q_len=1, int num_workers=0, int page_size=0, " \
  "int window_left=-1, bool score_options=False, int itemsize=2, int window_right=-1, Tensor? cu_seqlens_q=None, "     \
  "Tensor? cache_leftpad=None, bool batch_invariant=False, int? v_head_dim=None"

STABLE_TORCH_LIBRARY(leanattn, m) {
  m.def(
      "decode(Tensor q, Tensor k_cache, Tensor v_cache, Tensor cache_seqlens, *, float? softmax_scale=None, "
      "bool causal=True, int num_workers=0, int? fresh_tokens=None, Tensor? plan=None, Tensor? block_table=None, " LEANATTN_OPTIONS
      ") -> Tensor");
  m.def(
      "decode_lse(Tensor q, Tensor k_cache, Tensor v_cache, Tensor cache_seqlens, *, float? softmax_scale=None, "
      "bool causal=True, int num_workers=0, int? fresh_tokens=None, Tensor? plan=None, Tensor? block_table=None, " LEANATTN_OPTIONS
      ") -> (Tensor, Tensor)");
  m.def(
      "decode_out(Tensor q, Tensor k_cache, Tensor v_cache, Tensor cache_seqlens, Tensor(a!) out, *, "
      "Tensor(b!)? lse=None, float? softmax_scale=None, bool causal=True, int num_workers=0, "
      "int? fresh_tokens=None, Tensor? plan=None, Tensor? block_table=None, " LEANATTN_OPTIONS ") -> ()");
  m.def("plan(Tensor cache_seqlens, *, " LEANATTN_PLANNED_SHAPES ") -> Tensor");
  m.def("plan_out(Tensor cache_seqlens, Tensor(a!) plan, *, " LEANATTN_PLANNED_SHAPES ") -> ()");
  m.def(
      "append_kv(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor cache_seqlens, *, "
      "Tensor? block_table=None, Tensor(c!)? q=None, Tensor? rotary_cos=None, Tensor? rotary_sin=None, "
      "bool rotary_interleaved=False, Tensor? k_scale=None, Tensor? v_scale=None) -> ()");
  // For tests: a caller's workspace (to poison it), pseudo-random pauses before partials are published and merged, a
  // ring as short as on a GPU with little shared memory, and fixed splits instead of lean cuts.
  m.def(
      "_decode_debug(Tensor q, Tensor k_cache, Tensor v_cache, Tensor cache_seqlens, Tensor(a!) out, "
      "Tensor(b!)? lse, Tensor(c!) workspace, *, float? softmax_scale=None, bool causal=True, "
      "int num_workers=0, int delay_seed=0, "
      "int max_stages=0, int? fresh_tokens=None, Tensor? plan=None, Tensor? block_table=None, int fixed_splits=0, "
      "Tensor? k_scale=None, Tensor? v_scale=None, bool batch_invariant=False) -> ()");
}

namespace {

void register_ops(torch::stable::detail::StableLibrary& m) {
  m.impl("decode", TORCH_BOX(&leanattn::decode));
  m.impl("decode_lse", TORCH_BOX(&leanattn::decode_lse));
  m.impl("decode_out", TORCH_BOX(&leanattn::decode_out));
  m.impl("plan", TORCH_BOX(&leanattn::plan));
  m.impl("plan_out", TORCH_BOX(&leanattn::plan_out));
  m.impl("append_kv", TORCH_BOX(&leanattn::append_kv));
  m.impl("_decode_debug", TORCH_BOX(&leanattn::decode_debug));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(leanattn, CPU, m) { register_ops(m); }
#ifdef LEANATTN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(leanattn, CUDA, m) { register_ops(m); }
#endif
