"""Joins attention over disjoint parts of a context."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge_states(outs: Tensor | Sequence[Tensor], lses: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over a whole context from attention over disjoint parts of it, such as prefix and suffix.

    Softmax re-scaling: with ``lse_i`` the logarithm of part i's softmax denominator, the whole has
    ``lse = log(sum_i exp(lse_i))`` and ``out = sum_i exp(lse_i - lse) * out_i``. This is associative, so
    parts can be merged in any grouping; the lean decomposition rests on it (LeanAttention, arXiv 2405.10480).

    Args:
        outs: [n, ..., head_dim], or a sequence of n tensors [..., head_dim]: outputs of the n >= 1 parts.
        lses: [n, ...] float32, or a sequence of n tensors [...]: their log-sum-exp, natural logarithm, as
            ``leanattn.decode(..., return_lse=True)`` returns it; -inf for a part without tokens, whose output
            is then not read. For a 4-D ``q`` transpose it first: ``lse.transpose(-1, -2)``.

    Returns:
        ``(out, lse)``: out [..., head_dim] in the dtype of ``outs``, computed in float32; lse [...] float32.
        Where all parts are empty, out is 0 and lse -inf.

    Raises:
        TypeError: ``lses`` is not float32.
        ValueError: there is no part, or the shapes do not fit.
    """
    outs = outs if isinstance(outs, Tensor) else _stacked("outs", outs)
    lses = lses if isinstance(lses, Tensor) else _stacked("lses", lses)
    if lses.dtype != torch.float32:
        raise TypeError(f"lses: dtype {lses.dtype}, expected torch.float32")
    if outs.dim() < 2 or outs.shape[0] == 0:
        raise ValueError(f"outs: shape {list(outs.shape)}, expected [n, ..., head_dim] with n >= 1")
    if lses.shape != outs.shape[:-1]:
        expected = f"{list(outs.shape[:-1])}, that of outs without head_dim"
        raise ValueError(f"lses: shape {list(lses.shape)}, expected {expected}")

    lse = torch.logsumexp(lses, dim=0)  # [...]
    empty = lses == -torch.inf
    # An empty part has no weight; where all are empty, -inf - -inf would be NaN.
    weights = torch.exp(lses - lse).masked_fill(empty, 0.0)[..., None]  # [n, ..., 1]
    values = outs.float().masked_fill(empty[..., None], 0.0)  # [n, ..., head_dim]
    return (weights * values).sum(dim=0).to(outs.dtype), lse


def _stacked(name: str, tensors: Sequence[Tensor]) -> Tensor:
    if len(tensors) == 0:
        raise ValueError(f"{name}: no tensors, expected one for each part")
    shapes = [list(tensor.shape) for tensor in tensors]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"{name}: shapes {shapes}, expected all the same")
    return torch.stack(list(tensors))
