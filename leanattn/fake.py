"""What the ops return, without data: shapes for torch.compile, torch.export and meta tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from leanattn import _ops  # noqa: F401  (a fake can only be given to an op that is there)
from leanattn.checks import check_fit, lse_shape


@torch.library.register_fake("leanattn::decode")  # type: ignore[untyped-decorator]
def _(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    softmax_scale: float | None = None,
    num_workers: int = 0,
    fresh_tokens: int | None = None,
) -> Tensor:
    check_fit(q, k_cache, v_cache, cache_seqlens)
    return q.new_empty(q.shape)


@torch.library.register_fake("leanattn::decode_lse")  # type: ignore[untyped-decorator]
def _(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    softmax_scale: float | None = None,
    num_workers: int = 0,
    fresh_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    check_fit(q, k_cache, v_cache, cache_seqlens)
    return q.new_empty(q.shape), q.new_empty(lse_shape(q), dtype=torch.float32)


@torch.library.register_fake("leanattn::decode_out")  # type: ignore[untyped-decorator]
def _(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    out: Tensor,
    *,
    lse: Tensor | None = None,
    softmax_scale: float | None = None,
    num_workers: int = 0,
    fresh_tokens: int | None = None,
) -> None:
    check_fit(q, k_cache, v_cache, cache_seqlens, out, lse)


@torch.library.register_fake("leanattn::_decode_debug")  # type: ignore[untyped-decorator]
def _(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    out: Tensor,
    lse: Tensor | None,
    workspace: Tensor,
    *,
    softmax_scale: float | None = None,
    num_workers: int = 0,
    delay_seed: int = 0,
    max_stages: int = 0,
    fresh_tokens: int | None = None,
    fixed_splits: int = 0,
) -> None:
    check_fit(q, k_cache, v_cache, cache_seqlens, out, lse)
