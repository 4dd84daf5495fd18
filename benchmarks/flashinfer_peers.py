"""FlashInfer's decode attention as peers: three kernels of its own, and TensorRT-LLM's XQA, which it carries.

They read a paged cache. Its pages are a view of the contiguous one, so the memory that they read is that of
every other implementation. Plans are made before the calls: a model makes one per step for all of its layers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.packages import import_first

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.case import Case
    from benchmarks.timing import Call

# XQA takes 16, 32, 64 or 128 and reads tiles of 64, so that 64 is one look-up a tile; the others take any.
PAGE_TOKENS = 64

MIB = 2**20
WORKSPACE_BYTES = 128 * MIB  # what FlashInfer's documentation recommends for partial results

# BatchAttention allocates 384 MiB for partial results whatever the shape, and its plan() raises if it is not
# enough. Per SM and KV head it takes 1152 rows of head_dim 16-bit values and a 32-bit one: 38 MiB a KV head
# with 132 SMs and head dim 128, too much from 11 KV heads on.
PERSISTENT_BYTES_PER_KV_HEAD = 40 * MIB


@dataclass(frozen=True)
class PageTable:
    """Which pages hold which sequence, in compressed rows. All lists become int32 tensors."""

    indptr: list[int]  # [batch + 1]: where in `indices` the pages of a sequence begin
    indices: list[int]  # [pages in use]
    last_page_tokens: list[int]  # [batch]: tokens in a sequence's last page, 1..PAGE_TOKENS

    def dense(self) -> list[list[int]]:
        """[batch, pages of the longest sequence], filled up with page 0, which is not read there."""
        rows = [self.indices[begin:end] for begin, end in itertools.pairwise(self.indptr)]
        width = max(len(row) for row in rows)
        return [row + [0] * (width - len(row)) for row in rows]


def page_step(max_tokens: int) -> int:
    """Tokens from the start of a page to the start of the next, in the view that `pages_of` makes.

    A sequence has to begin with a page, at a multiple of max_tokens. Where pages don't divide max_tokens,
    they overlap: one begins at every multiple of the greatest common divisor. The kernels find a token by
    the strides and read none beyond the length, so neither a copy nor a smaller page is needed.
    """
    return math.gcd(max_tokens, PAGE_TOKENS)


def pages_of(cache: Tensor) -> Tensor:
    """[batch, max_tokens, kv heads, head_dim] as [pages, PAGE_TOKENS, kv heads, head_dim], the same memory.

    A partly filled page may begin behind the last one of the view: the kernels don't ask for their number.
    """
    batch, max_tokens, kv_heads, head_dim = cache.shape
    token = kv_heads * head_dim
    step = page_step(max_tokens)
    pages = (batch * max_tokens - PAGE_TOKENS) // step + 1
    return cache.as_strided((pages, PAGE_TOKENS, kv_heads, head_dim), (step * token, token, head_dim, 1))


def page_table(lengths: tuple[int, ...], max_tokens: int) -> PageTable:
    """The pages of sequences of `lengths` tokens, at least 1 each, in the view that `pages_of` makes."""
    step = page_step(max_tokens)
    table = PageTable([0], [], [])
    for sequence, tokens in enumerate(lengths):
        first_tokens = range(0, tokens, PAGE_TOKENS)
        table.indices.extend((sequence * max_tokens + first) // step for first in first_tokens)
        table.indptr.append(len(table.indices))
        table.last_page_tokens.append(tokens - first_tokens[-1])
    return table


def table_of(case: Case) -> PageTable:
    return page_table(case.shape.lengths, max_tokens=case.k[0].shape[1])


def call_per_copy(case: Case, run: Callable[[tuple[Tensor, Tensor], Tensor], object]) -> list[Call]:
    """`run` takes the pages of K and V, and the output."""
    import torch

    def call(pages: tuple[Tensor, Tensor], out: Tensor) -> Tensor:
        run(pages, out)
        return out

    caches = zip(case.k, case.v, strict=True)
    return [partial(call, (pages_of(k), pages_of(v)), torch.full_like(case.q, math.nan)) for k, v in caches]


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
    )
    return call_per_copy(case, lambda pages, out: wrapper.run(case.q, pages, out=out))


def bind_persistent(case: Case) -> list[Call]:
    import torch

    flashinfer = import_first("flashinfer")
    heads, device = case.shape.heads, case.q.device
    table = table_of(case)
    int32 = partial(torch.tensor, dtype=torch.int32, device=device)
    wrapper = flashinfer.BatchAttention("NHD", str(device))
    if (enough := PERSISTENT_BYTES_PER_KV_HEAD * heads.kv) > wrapper.float_workspace_buffer.numel():
        wrapper.float_workspace_buffer = torch.empty(enough, dtype=torch.uint8, device=device)
    wrapper.plan(
        int32(range(case.shape.batch + 1)),  # one query token a sequence
        int32(table.indptr),
        int32(table.indices),
        case.seqlens,
        heads.query,
        heads.kv,
        heads.dim,
        heads.dim,
        PAGE_TOKENS,
        q_data_type=case.q.dtype,
        kv_data_type=case.q.dtype,
    )
    lse = torch.empty(case.q.shape[:2], device=device)  # float32; it writes one in any case
    return call_per_copy(case, lambda pages, out: wrapper.run(case.q, pages, out=out, lse=lse))


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
