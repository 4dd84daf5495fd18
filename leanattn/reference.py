"""Decode attention written down plainly: slow, and what all else is checked against."""

from __future__ import annotations

import torch
from torch import Tensor


def decode_reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    softmax_scale: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """The attention that :func:`leanattn.decode` computes, by its definition and with plain torch operations.

    In float64 it is the reference. In the dtype of ``q`` it is the yardstick: the error of the same
    computation with every step rounded to that dtype; :func:`leanattn.decode` is held to at most twice it.

    Args:
        q, k_cache, v_cache, cache_seqlens, softmax_scale: as for :func:`leanattn.decode`.
        dtype: of every step, and of the result.

    Returns:
        ``(out, lse)`` in ``dtype``, in the shapes that :func:`leanattn.decode` returns.
    """
    heads = q if q.dim() == 3 else q[:, 0]  # [batch, num_q_heads, head_dim]
    batch, num_q_heads, head_dim = heads.shape
    max_tokens, num_kv_heads = k_cache.shape[1:3]
    scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
    out = torch.zeros(batch, num_q_heads, head_dim, dtype=dtype, device=q.device)
    lse = torch.full((batch, num_q_heads), -torch.inf, dtype=dtype, device=q.device)

    for seq, length in enumerate(cache_seqlens.tolist()):
        tokens = min(max(length, 0), max_tokens)
        if tokens == 0:
            continue
        rows = heads[seq].to(dtype).reshape(num_kv_heads, -1, head_dim)  # [num_kv_heads, group, head_dim]
        k = k_cache[seq, :tokens].to(dtype).transpose(0, 1)  # [num_kv_heads, tokens, head_dim]
        v = v_cache[seq, :tokens].to(dtype).transpose(0, 1)
        scores = rows @ k.transpose(1, 2) * scale  # [num_kv_heads, group, tokens]
        out[seq] = (torch.softmax(scores, dim=-1) @ v).flatten(0, 1)
        lse[seq] = torch.logsumexp(scores, dim=-1).flatten()
    return (out, lse) if q.dim() == 3 else (out[:, None], lse[:, :, None])
