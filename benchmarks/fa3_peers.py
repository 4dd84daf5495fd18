"""FlashAttention-3's decode attention, with its own choice of splits or a given number."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks.packages import import_first

if TYPE_CHECKING:
    from benchmarks.case import Case
    from benchmarks.timing import Call


def bind_fa3(case: Case, num_splits: int) -> list[Call]:
    """`num_splits` 0: its own choice."""
    fa3 = import_first("fa3_fwd_interface", "flash_attn_interface")
    heads, q_len = case.shape.heads, case.shape.q_len
    causal = q_len > 1  # its mask is aligned to the bottom right; one token sees all keys without
    # Once per step in a model, for all layers, so it is not part of a call.
    metadata = fa3.get_scheduler_metadata(
        case.shape.batch,
        q_len,
        case.shape.max_tokens,
        heads.query,
        heads.kv,
        heads.dim,
        case.seqlens,
        qkv_dtype=case.q.dtype,
        causal=causal,
        num_splits=num_splits,
    )
    q = case.q.view(case.shape.batch, q_len, heads.query, heads.dim)
    call = partial(
        fa3.flash_attn_with_kvcache,
        q,
        cache_seqlens=case.seqlens,
        causal=causal,
        scheduler_metadata=metadata,
        num_splits=num_splits,
    )
    return [partial(call, k_cache=k, v_cache=v) for k, v in zip(case.k, case.v, strict=True)]
