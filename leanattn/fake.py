"""What the ops return, without data: shapes for torch.compile, torch.export and meta tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from leanattn import _ops  # noqa: F401  (a fake can only be given to an op that is there)
from leanattn.append_checks import check_append_fit
from leanattn.checks import check_fit, check_options, check_plan, check_scales, lse_shape, out_shape
from leanattn.score_options import ScoreOptions
from leanattn.support import has_wgmma


def _check_call(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    scales: tuple[Tensor | None, Tensor | None],
    plan: Tensor | None,
    block_table: Tensor | None,
    cu_seqlens_q: Tensor | None,
    options: tuple[Any, ...],
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> None:
    check_fit(q, k_cache, v_cache, cache_seqlens, out, lse, block_table, cu_seqlens_q)
    check_plan(plan, q.device)
    check_scales(k_cache, *scales)
    check_options(ScoreOptions(*options), q, cache_seqlens.shape[0], packed=cu_seqlens_q is not None)


@torch.library.register_fake("leanattn::decode")  # type: ignore[untyped-decorator]
def _(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = True,
    num_workers: int = 0,
    fresh_tokens: int | None = None,
    plan: Tensor | None = None,
    block_table: Tensor | None = None,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    tree_mask: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    batch_invariant: bool = False,
) -> Tensor:
    options = ((window_left, window_right), softcap, sinks, alibi_slopes, cache_leftpad, tree_mask)
    caches, scales = (k_cache, v_cache, cache_seqlens), (k_scale, v_scale)
    _check_call(q, *caches, scales, plan, block_table, cu_seqlens_q, options)
    return q.new_empty(out_shape(q, v_cache))


@torch.library.register_fake("leanattn::decode_lse")  # type: ignore[untyped-decorator]
def _(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = True,
    num_workers: int = 0,
    fresh_tokens: int | None = None,
    plan: Tensor | None = None,
    block_table: Tensor | None = None,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    tree_mask: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor]:
    options = ((window_left, window_right), softcap, sinks, alibi_slopes, cache_leftpad, tree_mask)
    caches, scales = (k_cache, v_cache, cache_seqlens), (k_scale, v_scale)
    _check_call(q, *caches, scales, plan, block_table, cu_seqlens_q, options)
    lse = q.new_empty(lse_shape(q, packed=cu_seqlens_q is not None), dtype=torch.float32)
    return q.new_empty(out_shape(q, v_cache)), lse


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
    causal: bool = True,
    num_workers: int = 0,
    fresh_tokens: int | None = None,
    plan: Tensor | None = None,
    block_table: Tensor | None = None,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    tree_mask: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    batch_invariant: bool = False,
) -> None:
    options = ((window_left, window_right), softcap, sinks, alibi_slopes, cache_leftpad, tree_mask)
    caches, scales = (k_cache, v_cache, cache_seqlens), (k_scale, v_scale)
    _check_call(q, *caches, scales, plan, block_table, cu_seqlens_q, options, out, lse)


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
    causal: bool = True,
    num_workers: int = 0,
    delay_seed: int = 0,
    max_stages: int = 0,
    fresh_tokens: int | None = None,
    plan: Tensor | None = None,
    block_table: Tensor | None = None,
    fixed_splits: int = 0,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    batch_invariant: bool = False,
) -> None:
    check_fit(q, k_cache, v_cache, cache_seqlens, out, lse, block_table)
    check_plan(plan, q.device)
    check_scales(k_cache, k_scale, v_scale)


@torch.library.register_fake("leanattn::plan")  # type: ignore[untyped-decorator]
def _(
    cache_seqlens: Tensor,
    *,
    max_tokens: int,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_len: int = 1,
    num_workers: int = 0,
    page_size: int = 0,
    window_left: int = -1,
    score_options: bool = False,
    itemsize: int = 2,
    window_right: int = -1,
    cu_seqlens_q: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    batch_invariant: bool = False,
    v_head_dim: int | None = None,
) -> Tensor:
    # Not at import: decode itself does without the module.
    from leanattn.schedule import (
        block_tokens,
        many_packed_rows,
        most_query_blocks,
        packed_row_limit,
        plan_elements,
    )

    sequences = cache_seqlens.shape[0]
    if cu_seqlens_q is not None:
        device, group = cache_seqlens.device, num_q_heads // num_kv_heads
        rows = packed_row_limit(
            device.type,
            # In this order: a compiler has to know the sizes only where they matter.
            wgmma=not batch_invariant and has_wgmma(device) and many_packed_rows(q_len, group, sequences),
            head_dim=head_dim,
            v_head_dim=v_head_dim,
            itemsize=itemsize,
            batch_invariant=batch_invariant,
        )
        tokens = block_tokens(group, rows)
        sequences = most_query_blocks(q_len, sequences, tokens)
    # A sum, so that a batch of any size stays one; a length and a padding each.
    return cache_seqlens.new_empty((plan_elements(0) + 2 * sequences,), dtype=torch.int32)


@torch.library.register_fake("leanattn::plan_out")  # type: ignore[untyped-decorator]
def _(
    cache_seqlens: Tensor,
    plan: Tensor,
    *,
    max_tokens: int,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_len: int = 1,
    num_workers: int = 0,
    page_size: int = 0,
    window_left: int = -1,
    score_options: bool = False,
    itemsize: int = 2,
    window_right: int = -1,
    cu_seqlens_q: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    batch_invariant: bool = False,
    v_head_dim: int | None = None,
) -> None:
    return None


@torch.library.register_fake("leanattn::append_kv")  # type: ignore[untyped-decorator]
def _(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    block_table: Tensor | None = None,
    q: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    rotary_interleaved: bool = False,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    check_append_fit(k, v, k_cache, v_cache, cache_seqlens, block_table, q, rotary_cos, rotary_sin)
    check_scales(k_cache, k_scale, v_scale, "k")
