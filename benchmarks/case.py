"""The tensors of one shape, and the reference that every implementation is compared with."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.method import copies_for
from benchmarks.shapes import Shape


@dataclass
class Case:
    shape: Shape
    q: Tensor  # shape.q_shape
    seqlens: Tensor  # [batch] int32
    k: list[Tensor]  # per copy [batch, tokens that it can hold, kv heads, head_dim]
    v: list[Tensor]  # as k

    @staticmethod
    def random(
        shape: Shape,
        dtype: torch.dtype,
        device: str,
        copies: int | None = None,
        max_tokens: int | None = None,
    ) -> "Case":
        """Normally distributed Q, K and V, NaN beyond the lengths. The copies of the cache differ; without a
        number there are as many as keep them out of the GPU's cache. They can hold `max_tokens` of a
        sequence, or as many as the longest has.
        """
        heads = shape.heads
        cache = (shape.batch, max_tokens or shape.max_tokens, heads.kv, heads.dim)
        copies = copies or copies_for(shape.kv_bytes(dtype.itemsize))
        case = Case(
            shape,
            torch.randn(shape.q_shape, dtype=dtype, device=device),
            torch.tensor(shape.lengths, dtype=torch.int32, device=device),
            [torch.empty(cache, dtype=dtype, device=device) for _ in range(copies)],
            [torch.empty(cache, dtype=dtype, device=device) for _ in range(copies)],
        )
        for cache_tensor in case.k + case.v:
            for sequence, tokens in zip(cache_tensor, shape.lengths, strict=True):
                sequence[:tokens].normal_()
        case.fill_beyond_lengths(math.nan)
        return case

    def fill_beyond_lengths(self, value: float) -> None:
        for cache_tensor in self.k + self.v:
            for sequence, tokens in zip(cache_tensor, self.shape.lengths, strict=True):
                sequence[tokens:].fill_(value)


def reference(case: Case) -> Tensor:
    """Attention over the first copy of the cache, in float64: each query sees its own token and those before.

    Returns the shape of case.q.
    """
    heads, q_len = case.shape.heads, case.shape.q_len
    # [query, newest key]: which of the newest tokens come after that of the query
    later = torch.ones(q_len, q_len, dtype=torch.bool, device=case.q.device).triu(1)
    rows = []
    for b, tokens in enumerate(case.shape.lengths):
        q = case.q[b].double().view(q_len, heads.kv, -1, heads.dim)
        q = q.transpose(0, 1).flatten(1, 2)  # [kv heads, q_len x group, head_dim]
        k = case.k[0][b, :tokens].double().permute(1, 2, 0)  # [kv heads, head_dim, tokens]
        scores = q @ k / math.sqrt(heads.dim)
        del k  # 8.6 GB at the largest shape
        scores.unflatten(1, (q_len, -1))[..., -q_len:].masked_fill_(later[:, None], -math.inf)
        v = case.v[0][b, :tokens].double().transpose(0, 1)  # [kv heads, tokens, head_dim]
        out = torch.softmax(scores, dim=-1) @ v  # [kv heads, q_len x group, head_dim]
        rows.append(out.unflatten(1, (q_len, -1)).transpose(0, 1).reshape(case.q.shape[1:]))
    return torch.stack(rows)


def row_error(out: Tensor, expected: Tensor) -> float:
    """Largest ||out - expected|| / ||expected|| over the rows; NaN if any element is."""
    difference = out.double().reshape(expected.shape) - expected
    return float((difference.norm(dim=-1) / expected.norm(dim=-1)).max())
