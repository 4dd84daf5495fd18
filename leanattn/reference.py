"""Decode attention written down plainly: slow, and what all else is checked against."""

from __future__ import annotations

import itertools
from typing import Any

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
    tree_mask: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """The attention that :func:`leanattn.decode` computes, by its definition and with plain torch operations.

    In float64 it is the reference. In the dtype of ``q`` it is the yardstick: the error of the same
    computation with every step rounded to that dtype; :func:`leanattn.decode` is held to at most twice it.

    Args:
        q, k_cache, v_cache, cache_seqlens, softmax_scale, causal, block_table, window_size, softcap, sinks,
            alibi_slopes, cache_leftpad, k_scale, v_scale, tree_mask, cu_seqlens_q: as for
            :func:`leanattn.decode`. Rows of packed queries that no sequence has are 0, their lse -inf.
        dtype: of every step, and of the result.

    Returns:
        ``(out, lse)`` in ``dtype``, in the shapes that :func:`leanattn.decode` returns.
    """
    if cu_seqlens_q is not None:
        of_sequences = {"alibi_slopes": alibi_slopes, "cache_leftpad": cache_leftpad}
        options = {
            "softmax_scale": softmax_scale,
            "causal": causal,
            "window_size": window_size,
            "softcap": softcap,
            "sinks": sinks,
            "dtype": dtype,
        }
        scales = {"k_scale": k_scale, "v_scale": v_scale}
        if k_cache.dtype == torch.int8 and block_table is None:
            of_sequences |= scales
        else:
            options |= scales
        call = (q, k_cache, v_cache, cache_seqlens)
        return _packed_reference(call, cu_seqlens_q, tree_mask, block_table, of_sequences, options)
    queries = q if q.dim() == 4 else q[:, None]  # [batch, q_len, num_q_heads, head_dim]
    batch, q_len, num_q_heads, head_dim = queries.shape
    num_kv_heads, v_head_dim = k_cache.shape[2], v_cache.shape[3]
    group = num_q_heads // num_kv_heads
    max_tokens = max_tokens_of(k_cache, block_table)
    scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
    out = torch.zeros((batch, q_len, num_q_heads, v_head_dim), dtype=dtype, device=q.device)
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
        if tree_mask is not None:
            bits = (tree_mask[seq][:, :, None] >> torch.arange(32, device=q.device)) & 1
            hidden = bits.flatten(1)[:, :q_len] == 0  # [q_len, new tokens that there is a bit for]
            there = hidden[:, max(q_len - tokens, 0) :]  # the first ones may lie ahead of the sequence
            begin = max(tokens - q_len, 0)
            unseen = unseen.clone()
            unseen[:, begin : begin + there.shape[1]] |= there
        k, v = (
            # What no query sees may be anything, NaN included.
            _numbers_of(cache, scale_of_cache, seq, tokens, block_table, dtype)
            .masked_fill(unseen.all(dim=0)[:, None, None], 0.0)
            .transpose(0, 1)
            for cache, scale_of_cache in ((k_cache, k_scale), (v_cache, v_scale))
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
        # [num_kv_heads, group * q_len, v_head_dim]
        values = weights.view(num_kv_heads, group * q_len, tokens) @ v
        out[seq] = values.view(num_q_heads, q_len, v_head_dim).transpose(0, 1)
    return (out, lse) if q.dim() == 4 else (out[:, 0], lse[:, :, 0])


def _packed_reference(
    call: tuple[Tensor, Tensor, Tensor, Tensor],
    cu_seqlens_q: Tensor,
    tree_mask: Tensor | None,
    block_table: Tensor | None,
    of_sequences: dict[str, Tensor | None],
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Sequence by sequence, each a batch of one."""
    q, k_cache, v_cache, cache_seqlens = call
    dtype = options["dtype"]
    out = torch.zeros((*q.shape[:-1], v_cache.shape[-1]), dtype=dtype, device=q.device)
    lse = torch.full((q.shape[1], q.shape[0]), -torch.inf, dtype=dtype, device=q.device)
    offsets = cu_seqlens_q.tolist()
    for seq, (begin, end) in enumerate(itertools.pairwise(offsets)):
        if begin == end:
            continue
        one, queries = slice(seq, seq + 1), slice(begin, end)
        k, v = (k_cache, v_cache) if block_table is not None else (k_cache[one], v_cache[one])
        its_own: dict[str, Any] = {
            name: tensor if tensor is None or (name == "alibi_slopes" and tensor.dim() == 1) else tensor[one]
            for name, tensor in of_sequences.items()
        }
        its_own["block_table"] = None if block_table is None else block_table[one]
        its_own["tree_mask"] = None if tree_mask is None else tree_mask[None, queries]
        one_out, one_lse = decode_reference(q[None, queries], k, v, cache_seqlens[one], **its_own, **options)
        out[queries], lse[:, queries] = one_out[0], one_lse[0]
    return out, lse


def _numbers_of(
    cache: Tensor,
    scale: Tensor | None,
    seq: int,
    tokens: int,
    block_table: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """K or V of a sequence, [tokens, num_kv_heads, head_dim or v_head_dim]."""
    elements = _tokens_of(cache, seq, tokens, block_table).to(dtype)
    if scale is None:
        return elements
    # [1] or [num_kv_heads], of an int8 cache [tokens, num_kv_heads].
    scales = scale if scale.dim() == 1 else _tokens_of(scale, seq, tokens, block_table)
    return elements * scales.to(dtype)[..., None]


def _tokens_of(cache: Tensor, seq: int, tokens: int, block_table: Tensor | None) -> Tensor:
    """What a cache, or its scales, hold of a sequence, [tokens, num_kv_heads, ...]."""
    if block_table is None:
        return cache[seq, :tokens]
    page_size = cache.shape[1]
    pages = block_table[seq, : -(-tokens // page_size)].long()
    return cache[pages].flatten(0, 1)[:tokens]
