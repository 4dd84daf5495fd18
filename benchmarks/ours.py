"""leanattn bound to a case: plainly, with what a caller can add to make it faster, and as others decompose.

The decompositions run in the same kernel, with the same tiles and the same merge: what differs in time is the
decomposition itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.packages import import_first
from benchmarks.splits import split_count

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.case import Case
    from benchmarks.timing import Call

SplitsOf = Callable[["Case"], int]


def calls_with_out(case: Case, decode: Callable[[Tensor, Tensor, Tensor], object]) -> list[Call]:
    """A call for each copy of the cache, of `decode(k, v, out)`, with an output of its own."""
    import torch

    def call(k: Tensor, v: Tensor, out: Tensor) -> Tensor:
        decode(k, v, out)
        return out

    caches = zip(case.k, case.v, strict=True)
    return [partial(call, k, v, torch.full_like(case.q, math.nan)) for k, v in caches]


def bind_leanattn(case: Case, planned: bool = False, promised: bool = False, **options: Any) -> list[Call]:
    """`options`: what decode and plan both take. With a `block_table`, the caches of the case are pages."""
    import torch

    leanattn = import_first("leanattn")
    if planned:  # once per step in a model, for all layers, so it is not part of a call
        options["plan"] = leanattn.plan(case.q, case.k[0], case.seqlens, **options)
    if promised:  # what the step kernel keeps
        options["fresh_tokens"] = case.shape.q_len
    decode = partial(torch.ops.leanattn.decode_out, **options)
    return calls_with_out(case, lambda k, v, out: decode(case.q, k, v, case.seqlens, out))


def bind_fixed_split(case: Case, splits_of: SplitsOf) -> list[Call]:
    import torch

    import_first("leanattn")
    splits = splits_of(case)
    workspace = torch.empty(workspace_floats(case, splits), dtype=torch.float32, device=case.q.device)
    decode = partial(torch.ops.leanattn._decode_debug, fixed_splits=splits)
    return calls_with_out(case, lambda k, v, out: decode(case.q, k, v, case.seqlens, out, None, workspace))


def no_split(case: Case) -> int:
    """FlashAttention-2's choice: a CTA reads the whole context of an item."""
    return 1


def flash_decoding_splits(case: Case) -> int:
    """FlashDecoding's choice."""
    schedule, sizes, items = tiling_of(case)
    tiles = math.ceil(case.shape.max_tokens / sizes.tile_tokens)
    return split_count(items, tiles, sms_of(case), most_ctas=schedule.MAX_WORKERS)


def split_details(case: Case, splits_of: SplitsOf) -> dict[str, Any]:
    """For the record."""
    return {"splits": splits_of(case)}


def workspace_floats(case: Case, splits: int) -> int:
    """What the kernel needs for the partials of `splits` pieces of every item."""
    schedule, sizes, items = tiling_of(case)
    if splits == 1:
        return 0  # whole items leave no partials
    # A row of a partial: head_dim of O, m, l, and two floats of padding.
    partial_floats = sizes.heads * sizes.block_rows * (case.shape.heads.dim + 4)
    return int(schedule.partial_slots(items * splits) * partial_floats)


def tiling_of(case: Case) -> tuple[Any, Any, int]:
    """leanattn.schedule, its tiling of the case, and the items of the batch."""
    schedule, support = import_first("leanattn.schedule"), import_first("leanattn.support")
    heads = case.shape.heads
    sizes = schedule.tiling(
        case.q.device.type,
        batch=case.shape.batch,
        max_tokens=case.shape.max_tokens,
        num_kv_heads=heads.kv,
        rows=query_rows(case),
        head_dim=heads.dim,
        workers=sms_of(case),
        wgmma=support.has_wgmma(case.q.device),
    )
    return schedule, sizes, case.shape.batch * (heads.kv // sizes.heads) * sizes.row_blocks


def query_rows(case: Case) -> int:
    """Of a KV head."""
    return case.shape.q_len * (case.shape.heads.query // case.shape.heads.kv)


def sms_of(case: Case) -> int:
    """SMs of the GPU; of a CPU, the threads, which are its workers."""
    return int(import_first("leanattn.planning").num_workers(case.q.device))
