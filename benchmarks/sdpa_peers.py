"""torch's scaled_dot_product_attention with one of its backends."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.case import Case
    from benchmarks.timing import Call


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
