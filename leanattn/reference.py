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
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """The attention that :func:`leanattn.decode` computes, by its definition and with plain torch operations.

    In float64 it is the reference. In the dtype of ``q`` it is the yardstick: the error of the same
    computation with every step rounded to that dtype; :func:`leanattn.decode` is held to at most twice it.

    Args:
        q, k_cache, v_cache, cache_seqlens, softmax_scale, causal, block_table, window_size, softcap, sinks,
            alibi_slopes, cache_leftpad, k_scale, v_scale: as for :func:`leanattn.decode`.
        dtype: of every step, and of the result.

    Returns:
        ``(out, lse)`` in ``dtype``, in the shapes that :func:`leanattn.decode` returns.
    """
    queries = q if q.dim() == 4 else q[:, None]  # [batch, q_len, num_q_heads, head_dim]
    batch, q_len, num_q_heads, head_dim = queries.shape
    num_kv_heads = k_cache.shape[2]
    group = num_q_heads // num_kv_heads
    max_tokens = max_tokens_of(k_cache, block_table)
    scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
    out = torch.zeros(queries.shape, dtype=dtype, device=q.device)
    lse = torch.full((batch, num_q_heads, q_len), -torch.inf, dtype=dtype, device=q.device)

    for seq, length in enumerate(cache_seqlens.tolist()):
        tokens = min(max(length, 0), max_tokens)
        pad = 0 if cache_leftpad is None else min(max(int(cache_leftpad[seq]), 0), tokens)
        own = torch.arange(tokens - q_len, tokens, device=q.device)[:, None]  # the token of each query
        key = torch.arange(tokens, device=q.device)
        unseen = (key < pad).expand(q_len, -1)  # [q_len, tokens]
        left, right = window_size[0], 0 if causal else window_size[1]
        if left >= 0:
            unseen = unseen | (key < own - left)
        if right >= 0:
            unseen = unseen | (key > own + right)
        k, v = (
            # What no query sees may be anything, NaN included.
            _tokens_of(cache, seq, tokens, block_table)
            .to(dtype)
            .masked_fill(unseen.all(dim=0)[:, None, None], 0.0)
            .transpose(0, 1)
            for cache in (k_cache, v_cache)
        )
        k, v = (
            cache if factor is None else cache * factor.to(dtype)[:, None, None]
            for cache, factor in ((k, k_scale), (v, v_scale))
        )
        rows = queries[seq].to(dtype).transpose(0, 1)  # [num_q_heads, q_len, head_dim]
        rows = rows.reshape(num_kv_heads, group * q_len, head_dim)
        scores = (rows @ k.transpose(1, 2) * scale).view(num_q_heads, q_len, tokens)
        if softcap > 0:
            scores = softcap * torch.tanh(scores / softcap)
        if alibi_slopes is not None:
            slopes = (alibi_slopes if alibi_slopes.dim() == 1 else alibi_slopes[seq]).to(dtype)
            scores = scores - slopes[:, None, None] * (key - own).abs().to(dtype)
        scores = scores.masked_fill(unseen, -torch.inf)
        if sinks is not None:  # one score more, of a token without a value
            sink = sinks.to(dtype)[:, None, None].expand(-1, q_len, 1)
            scores = torch.cat([scores, sink], dim=-1)
        lse[seq] = torch.logsumexp(scores, dim=-1)
        # A query that sees no token has no weight: softmax makes 0 / 0 of it.
        weights = torch.softmax(scores, dim=-1)[..., :tokens].masked_fill(unseen, 0.0)
        # [num_kv_heads, group * q_len, head_dim]
        values = weights.view(num_kv_heads, group * q_len, tokens) @ v
        out[seq] = values.view(num_q_heads, q_len, head_dim).transpose(0, 1)
    return (out, lse) if q.dim() == 4 else (out[:, 0], lse[:, :, 0])


def _tokens_of(cache: Tensor, seq: int, tokens: int, block_table: Tensor | None) -> Tensor:
    """K or V of a sequence, [tokens, num_kv_heads, head_dim]."""
    if block_table is None:
        return cache[seq, :tokens]
    page_size = cache.shape[1]
    pages = block_table[seq, : -(-tokens // page_size)].long()
    return cache[pages].flatten(0, 1)[:tokens]
