"""The implementations that are compared. Bound to a case, each is a list of calls, one per copy of the cache.

torch and the packages are imported inside the functions: the supervising process needs the names only, and a
package that can't be imported fails alone.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.shapes import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.case import Case
    from benchmarks.timing import Call

READ_LIMIT = "read_limit"
LEANATTN = "leanattn"
NO_SPLIT = "fa3_no_split"


class Missing(Exception):
    """An implementation that is not installed here; the message says what was looked for."""


@dataclass(frozen=True)
class Implementation:
    name: str
    what: str
    bind: Callable[[Case], list[Call]]
    ragged: bool = True  # serves sequences of different lengths

    def unsupported(self, shape: Shape) -> str | None:
        """Why it can't run `shape`, None if it can."""
        return "uniform lengths only" if shape.ragged and not self.ragged else None


def import_first(*modules: str) -> Any:
    """The first of `modules` that can be imported; Missing, with each one's reason, if none can."""
    reasons = []
    for module in modules:
        try:
            return importlib.import_module(module)
        except (ImportError, OSError) as error:  # OSError: a shared library that does not load
            reasons.append(f"{module}: {error}")
    raise Missing("; ".join(reasons))


def bind_leanattn(case: Case) -> list[Call]:
    import torch

    import_first("leanattn")

    def call(k: Tensor, v: Tensor, out: Tensor) -> Tensor:
        torch.ops.leanattn.decode_out(case.q, k, v, case.seqlens, out)
        return out

    caches = zip(case.k, case.v, strict=True)
    return [partial(call, k, v, torch.full_like(case.q, math.nan)) for k, v in caches]


def bind_sdpa(case: Case, backend_name: str) -> list[Call]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend = getattr(SDPBackend, backend_name)
    attention = torch.nn.functional.scaled_dot_product_attention
    q = case.q.unsqueeze(2)  # [batch, query heads, 1, head_dim]

    def call(k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])

    # [batch, kv heads, tokens, head_dim], a view of the same memory
    return [partial(call, k.transpose(1, 2), v.transpose(1, 2)) for k, v in zip(case.k, case.v, strict=True)]


def bind_fa3(case: Case, num_splits: int) -> list[Call]:
    fa3 = import_first("fa3_fwd_interface", "flash_attn_interface")
    heads = case.shape.heads
    # Once per step in a model, for all layers, so it is not part of a call.
    metadata = fa3.get_scheduler_metadata(
        case.shape.batch,
        1,  # query tokens
        case.shape.max_tokens,
        heads.query,
        heads.kv,
        heads.dim,
        case.seqlens,
        qkv_dtype=case.q.dtype,
        num_splits=num_splits,
    )
    q = case.q.unsqueeze(1)  # [batch, 1, query heads, head_dim]
    call = partial(
        fa3.flash_attn_with_kvcache,
        q,
        cache_seqlens=case.seqlens,
        scheduler_metadata=metadata,
        num_splits=num_splits,
    )
    return [partial(call, k_cache=k, v_cache=v) for k, v in zip(case.k, case.v, strict=True)]


IMPLEMENTATIONS = {
    implementation.name: implementation
    for implementation in (
        Implementation(LEANATTN, "torch.ops.leanattn.decode_out", bind_leanattn),
        Implementation(
            "sdpa_cudnn",
            "torch scaled_dot_product_attention, cuDNN backend",
            partial(bind_sdpa, backend_name="CUDNN_ATTENTION"),
            ragged=False,
        ),
        Implementation(
            "sdpa_flash",
            "torch scaled_dot_product_attention, flash backend",
            partial(bind_sdpa, backend_name="FLASH_ATTENTION"),
            ragged=False,
        ),
        Implementation(
            "fa3",
            "FlashAttention-3 flash_attn_with_kvcache, its choice of splits, precomputed scheduler metadata",
            partial(bind_fa3, num_splits=0),
        ),
        Implementation(
            NO_SPLIT,
            "FlashAttention-3 with num_splits=1: one CTA reads the whole context of a KV head",
            partial(bind_fa3, num_splits=1),
        ),
    )
}
PEER_NAMES = tuple(name for name in IMPLEMENTATIONS if name != LEANATTN)
