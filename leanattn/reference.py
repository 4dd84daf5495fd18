"""Decode attention written down plainly: slow, and what all else is checked against."""

from __future__ import annotations

import torch
from torch import Tensor

from leanattn.checks import max_tokens_of


def decode_reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = True,
    block_table: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """The attention that :func:`leanattn.decode` computes, by its definition and with plain torch operations.

    In float64 it is the reference. In the dtype of ``q`` it is the yardstick: the error of the same
    computation with every step rounded to that dtype; :func:`leanattn.decode` is held to at most twice it.

    Args:
        q, k_cache, v_cache, cache_seqlens, softmax_scale, causal, block_table: as for
            :func:`leanattn.decode`.
        dtype: of every step, and of the result.

    Returns:
        ``(out, lse)`` in ``dtype``, in the shapes that :func:`leanattn.decode` returns.
    """
    queries = q if q.dim() == 4 else q[:, None]  # [batch, q_len, num_q_heads, head_dim]
    batch, q_len, num_q_heads, head_dim = queries.shape
    num_kv_heads = k_cache.shape[2]
    max_tokens = max_tokens_of(k_cache, block_table)
    scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
    out = torch.zeros(queries.shape, dtype=dtype, device=q.device)
    lse = torch.full((batch, num_q_heads, q_len), -torch.inf, dtype=dtype, device=q.device)

    for seq, length in enumerate(cache_seqlens.tolist()):
        tokens = min(max(length, 0), max_tokens)
        if tokens == 0:
            continue
        k, v = (
            _tokens_of(cache, seq, tokens, block_table).to(dtype).transpose(0, 1)
            for cache in (k_cache, v_cache)
        )
        rows = queries[seq].to(dtype).transpose(0, 1)  # [num_q_heads, q_len, head_dim]
        rows = rows.reshape(num_kv_heads, -1, head_dim)  # [num_kv_heads, group * q_len, head_dim]
        scores = (rows @ k.transpose(1, 2) * scale).view(num_q_heads, q_len, tokens)
        if causal:
            own = torch.arange(tokens - q_len, tokens, device=q.device)  # the token of each query
            unseen = torch.arange(tokens, device=q.device) > own[:, None]  # [q_len, tokens]
            scores = scores.masked_fill(unseen, -torch.inf)
        lse[seq] = torch.logsumexp(scores, dim=-1)
        weights = torch.softmax(scores, dim=-1)
        if causal:  # a query that sees no token: softmax makes 0 / 0 of it
            weights = weights.masked_fill(unseen.all(dim=1)[:, None], 0.0)
        values = weights.view(num_kv_heads, -1, tokens) @ v  # [num_kv_heads, group * q_len, head_dim]
        out[seq] = values.view(num_q_heads, q_len, head_dim).transpose(0, 1)
    return (out, lse) if q.dim() == 4 else (out[:, 0], lse[:, :, 0])


def _tokens_of(cache: Tensor, seq: int, tokens: int, block_table: Tensor | None) -> Tensor:
    """K or V of a sequence, [tokens, num_kv_heads, head_dim]."""
    if block_table is None:
        return cache[seq, :tokens]
    page_size = cache.shape[1]
    pages = block_table[seq, : -(-tokens // page_size)].long()
    return cache[pages].flatten(0, 1)[:tokens]
