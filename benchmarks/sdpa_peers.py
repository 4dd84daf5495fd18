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
    from torch.nn.attention.bias import causal_lower_right

    backend = getattr(SDPBackend, backend_name)
    attention = torch.nn.functional.scaled_dot_product_attention
    shape, heads = case.shape, case.shape.heads
    q = case.q.view(shape.batch, shape.q_len, heads.query, heads.dim).transpose(1, 2)
    mask = causal_lower_right(shape.q_len, shape.max_tokens) if shape.q_len > 1 else None

    def call(k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            out = attention(q, k, v, attn_mask=mask, enable_gqa=heads.query != heads.kv)
        return out.transpose(1, 2)  # [batch, q_len, query heads, head_dim]

    # [batch, kv heads, tokens, head_dim], a view of the same memory
    return [partial(call, k.transpose(1, 2), v.transpose(1, 2)) for k, v in zip(case.k, case.v, strict=True)]
