"""FlashInfer's decode attention as peers: three kernels of its own, and TensorRT-LLM's XQA, which it carries.

They read a paged cache (pages.py). Plans are made before the calls: a model makes one per step for all of its
layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.packages import import_first
from benchmarks.pages import PAGE_TOKENS, pages_of, table_of

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.case import Case
    from benchmarks.timing import Call

MIB = 2**20
WORKSPACE_BYTES = 128 * MIB  # what FlashInfer's documentation recommends for partial results

# BatchAttention allocates 384 MiB for partial results whatever the shape, and its plan() raises if it is not
# enough. Per SM and KV head it takes 1152 rows of head_dim 16-bit values and a 32-bit one: 38 MiB a KV head
# with 132 SMs and head dim 128, too much from 11 KV heads on.
PERSISTENT_BYTES_PER_KV_HEAD = 40 * MIB


def packed_q(case: Case) -> Tensor:
    """[batch x q_len, query heads, head_dim], the same memory."""
    return case.q.view(-1, *case.q.shape[-2:])


def call_per_copy(case: Case, run: Callable[[tuple[Tensor, Tensor], Tensor], object]) -> list[Call]:
    """`run` takes the pages of K and V, and the output, which is like packed_q(case)."""
    import torch

    def call(pages: tuple[Tensor, Tensor], out: Tensor) -> Tensor:
        run(pages, out)
        return out

    q, caches = packed_q(case), zip(case.k, case.v, strict=True)
    return [partial(call, (pages_of(k), pages_of(v)), torch.full_like(q, math.nan)) for k, v in caches]


def bind_decode(case: Case, tensor_cores: bool, graph_mode: bool = False) -> list[Call]:
    """`graph_mode` is for plans that change between replays of a graph: as many CTAs as any lengths can need,
    and always a merge. Without it the plan launches what the lengths at hand need."""
    import torch

    flashinfer = import_first("flashinfer")
    heads, device = case.shape.heads, case.q.device
    table = table_of(case)
    int32 = partial(torch.tensor, dtype=torch.int32, device=device)
    indptr, indices, last_page_tokens = map(int32, (table.indptr, table.indices, table.last_page_tokens))
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device),
        "NHD",
        use_cuda_graph=graph_mode,
        use_tensor_cores=tensor_cores,
        paged_kv_indptr_buffer=indptr.clone() if graph_mode else None,
        paged_kv_indices_buffer=indices.clone() if graph_mode else None,
        paged_kv_last_page_len_buffer=last_page_tokens.clone() if graph_mode else None,
    )
    wrapper.plan(
        indptr,
        indices,
        last_page_tokens,
        heads.query,
        heads.kv,
        heads.dim,
        PAGE_TOKENS,
        q_data_type=case.q.dtype,
        kv_data_type=case.q.dtype,
        q_len_per_req=case.shape.q_len,  # several: under a causal mask aligned to the bottom right
    )
    q = packed_q(case)
    return call_per_copy(case, lambda pages, out: wrapper.run(q, pages, out=out))


def bind_persistent(case: Case) -> list[Call]:
    import torch

    flashinfer = import_first("flashinfer")
    heads, device = case.shape.heads, case.q.device
    q, table = packed_q(case), table_of(case)
    int32 = partial(torch.tensor, dtype=torch.int32, device=device)
    wrapper = flashinfer.BatchAttention("NHD", str(device))
    if (enough := PERSISTENT_BYTES_PER_KV_HEAD * heads.kv) > wrapper.float_workspace_buffer.numel():
        wrapper.float_workspace_buffer = torch.empty(enough, dtype=torch.uint8, device=device)
    wrapper.plan(
        int32(range(0, len(q) + 1, case.shape.q_len)),  # where the queries of a sequence begin
        int32(table.indptr),
        int32(table.indices),
        case.seqlens,
        heads.query,
        heads.kv,
        heads.dim,
        heads.dim,
        PAGE_TOKENS,
        causal=case.shape.q_len > 1,  # aligned to the bottom right
        q_data_type=case.q.dtype,
        kv_data_type=case.q.dtype,
    )
    lse = torch.empty(q.shape[:2], device=device)  # float32; it writes one in any case
    return call_per_copy(case, lambda pages, out: wrapper.run(q, pages, out=out, lse=lse))


def bind_xqa(case: Case) -> list[Call]:
    import torch

    xqa = import_first("flashinfer").decode.xqa_batch_decode_with_kv_cache
    device = case.q.device
    table = torch.tensor(table_of(case).dense(), dtype=torch.int32, device=device)
    run = partial(
        xqa,
        case.q,
        workspace_buffer=torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device),
        block_tables=table,  # [batch, pages of the longest sequence]
        seq_lens=case.seqlens,
        max_seq_len=table.shape[1] * PAGE_TOKENS,
        bmm1_scale=1.0 / math.sqrt(case.shape.heads.dim),
        bmm2_scale=1.0,
        kv_layout="NHD",
    )
    return call_per_copy(case, lambda pages, out: run(kv_cache=pages, out=out))


# Why these serve one query token a sequence only.
ONE_QUERY_TOKEN = {
    "fi_cudacore": "several query tokens only with tensor cores",
    "xqa": "one query token only: its kernel for several is not bound here",
}

# name: what it is, and the function that binds it to a case
FLASHINFER_PEERS: dict[str, tuple[str, Callable[[Case], list[Call]]]] = {
    "fi_tc": (
        "FlashInfer BatchDecodeWithPagedKVCacheWrapper, tensor cores, planned beforehand",
        partial(bind_decode, tensor_cores=True),
    ),
    "fi_cudacore": (
        "FlashInfer BatchDecodeWithPagedKVCacheWrapper, CUDA cores, planned beforehand",
        partial(bind_decode, tensor_cores=False),
    ),
    "fi_persist": ("FlashInfer BatchAttention, planned beforehand", bind_persistent),
    "xqa": ("TensorRT-LLM XQA through FlashInfer xqa_batch_decode_with_kv_cache", bind_xqa),
}
