"""How a call is divided: workers from the machine, items and tiles from the shapes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leanattn import _ops  # noqa: F401  (registers the ops used below)
from leanattn.checks import (
    check_bool,
    check_causal,
    check_plan_arguments,
    check_tensor,
    check_window,
    max_tokens_of,
    q_len_of,
)
from leanattn.score_options import NO_WINDOW, ScoreOptions
from leanattn.support import has_wgmma

if TYPE_CHECKING:
    from leanattn.schedule import Schedule

# What the ops take for "as many as the device has".
ALL_WORKERS = 0


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def num_workers(device: torch.device, sm_margin: int = 0) -> int:
    """Workers of a call that leaves ``sm_margin`` SMs of the device (on a CPU: threads) to others.

    One worker an SM: one CTA with a deep ring of loads reads as fast as an SM can, and every further worker
    is two more partials at most to merge.

    Raises:
        TypeError: ``sm_margin`` is no integer.
        ValueError: ``sm_margin`` leaves no worker.
    """
    if not isinstance(sm_margin, int):
        raise TypeError(f"sm_margin: {type(sm_margin).__name__}, expected int")
    available = _sm_count(device) if device.type == "cuda" else torch.get_num_threads()
    if not 0 <= sm_margin < available:
        raise ValueError(f"sm_margin: {sm_margin}, expected 0..{available - 1} on {device}")
    return available - sm_margin


@cache
def _sm_count(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def plan(
    q: Tensor,
    k_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    out: Tensor | None = None,
    sm_margin: int = 0,
    block_table: Tensor | None = None,
    causal: bool = True,
    window_size: tuple[int, int] = NO_WINDOW,
    softcap: float = 0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    tree_mask: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    batch_invariant: bool = False,
    v_head_dim: int | None = None,
) -> Tensor:
    """The shares of all workers, found once for all calls of :func:`leanattn.decode` with these lengths.

    Without a plan, each worker of each call sums the lengths of the batch to find its share. With one it
    reads the share. That pays where many calls have the same lengths, as the layers of a model in a decode
    step: docs/tuning.md says how much.

    Everything happens on the device and in the order of the stream, so a plan may be made in a CUDA graph, or
    written in place with ``out`` before a replay. A plan also takes the time to look for better cuts: where
    every item can be cut into even pieces, a worker a piece, no worker has parts of two items.

    A plan is not to be edited: workers that disagree about who does what leave memory in a state in which
    later calls fail. And a call with ``fresh_tokens`` must not stand directly behind what writes its plan.

    Args:
        q, k_cache: as in the calls; only their shapes count, q_len among them, and bytes of an element.
        cache_seqlens: [batch] int32, contiguous, on the device of the calls.
        out: where to write the plan: one that this function made for as many sequences.
        sm_margin: as in the calls.
        block_table: as in the calls; only its shape counts.
        causal, window_size: as in the calls.
        softcap, sinks, alibi_slopes, tree_mask: as in the calls; only whether there are any counts.
        cache_leftpad, cu_seqlens_q: as in the calls, which must have the same numbers in them.
        batch_invariant: as in the calls.
        v_head_dim: the last dimension of ``v_cache`` in the calls, if it is not that of ``k_cache``.

    Returns:
        The plan, int32, on the device of ``cache_seqlens``. It holds a copy of the lengths and
        paddings, with ``cu_seqlens_q`` of those of its blocks of queries.

    Raises:
        TypeError: a dtype, or something that is no tensor or number.
        ValueError: a shape or device; ``sm_margin`` too large; a window out of range; ``v_head_dim`` below 1,
            or on a GPU above what is supported.
    """
    check_plan_arguments(q, k_cache, cache_seqlens, out, block_table, cu_seqlens_q)
    check_causal(causal)
    check_bool("batch_invariant", batch_invariant)
    if v_head_dim is not None and not isinstance(v_head_dim, int):
        raise TypeError(f"v_head_dim: {type(v_head_dim).__name__}, expected int or None")
    check_window(window_size)
    left, right = window_size
    options = ScoreOptions(
        softcap=softcap, sinks=sinks, alibi_slopes=alibi_slopes, tree_mask=tree_mask
    ).used()
    if cache_leftpad is not None:
        check_tensor("cache_leftpad", cache_leftpad, torch.int32, q.device, [tuple(cache_seqlens.shape)])
    shapes = {
        "max_tokens": max_tokens_of(k_cache, block_table),
        "num_q_heads": q.shape[-2],
        "num_kv_heads": k_cache.shape[2],
        "head_dim": q.shape[-1],
        "q_len": q_len_of(q) if cu_seqlens_q is None else q.shape[0],
        "num_workers": ALL_WORKERS if sm_margin == 0 else num_workers(cache_seqlens.device, sm_margin),
        "page_size": 0 if block_table is None else k_cache.shape[1],
        "window_left": left,
        "score_options": bool(options),
        "itemsize": k_cache.element_size(),
        "window_right": 0 if causal else right,
        "cu_seqlens_q": cu_seqlens_q,
        "cache_leftpad": cache_leftpad,
        "batch_invariant": batch_invariant,
        "v_head_dim": v_head_dim,
    }
    if out is None:
        made: Tensor = torch.ops.leanattn.plan(cache_seqlens, **shapes)
        return made
    torch.ops.leanattn.plan_out(cache_seqlens, out, **shapes)
    return out


def plan_schedule(
    cache_seqlens: Sequence[int],
    *,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    max_tokens: int,
    device: torch.device,
    q_len: int = 1,
    v_head_dim: int | None = None,
    workers: int = ALL_WORKERS,
    paged: bool = False,
    itemsize: int = 2,
    score_options: bool = False,
    batch_invariant: bool = False,
) -> Schedule:
    """The schedule that the teams of a decode call of these shapes follow on ``device``.

    Args:
        cache_seqlens: KV tokens of each sequence, on the host.
        num_q_heads, num_kv_heads, head_dim, max_tokens: as in the shapes of ``q`` and ``k_cache``.
        device: ``cpu`` or ``cuda``.
        q_len: query tokens of each sequence.
        v_head_dim: of ``v_cache``; head_dim if None.
        workers: CTAs or threads; :data:`ALL_WORKERS` for those that the call would take.
        paged: whether the call has a ``block_table``.
        itemsize: bytes of an element of ``k_cache``.
        score_options: whether the call has a window, padding, soft cap, sinks, slopes or a tree's mask, or
            queries that see some but not all of the new tokens after their own. (With a window, max_tokens is
            at most what it shows, left + q_len.)
        batch_invariant: as in the call.
    """
    # decode itself does without the schedule on the host, so it must not need the module at import.
    from leanattn import schedule

    rows = num_q_heads // num_kv_heads * q_len
    workers = workers or num_workers(device)
    tiling = schedule.tiling(
        device.type,
        batch=len(cache_seqlens),
        max_tokens=max_tokens,
        num_kv_heads=num_kv_heads,
        rows=rows,
        head_dim=head_dim,
        v_head_dim=v_head_dim,
        workers=workers,
        paged=paged,
        itemsize=itemsize,
        score_options=score_options,
        batch_invariant=batch_invariant,
        wgmma=has_wgmma(device),
    )
    return schedule.Schedule(
        seqlens=tuple(cache_seqlens),
        items_per_seq=num_kv_heads // tiling.heads * tiling.row_blocks // tiling.team_size,
        tile_tokens=tiling.tile_tokens,
        max_tokens=max_tokens,
        workers=workers // tiling.team_size,
        item_cost=tiling.item_cost,
        batch_invariant=batch_invariant,
    )
