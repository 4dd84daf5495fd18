"""The lean decomposition: which worker does which lean tiles, and which partials it leaves.

Every (sequence, KV head, query block) is an output tile, an *item*, cut into lean tiles of ``tile_tokens`` KV
tokens. All lean tiles of the batch, in the order sequence, item, token, form one line, and every worker (a
CTA on a GPU, a thread on a CPU) takes an equal share of it, wherever the cuts fall. On the line, an item may
also have some units of its own before its tiles, for what it costs besides; a unit is the cost of a tile. The
worker that finishes last with an item that was cut merges its partials.

This module only reads what ``csrc/kernels/schedule.h`` computes; the kernels and the CPU backend compile that
same header, so a picture or a test made with this module shows what they do.

Source: LeanAttention, arXiv 2405.10480, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

try:
    from leanattn import _schedule
except ImportError as error:
    raise ImportError("leanattn._schedule is not built: run `make build` or `pip install .`") from error

MAX_WORKERS = _schedule.MAX_WORKERS
"""The largest number of workers of a call."""

Shares = _schedule.Shares
"""``Shares(total_units, workers)``: the cut of the line, by worker and by unit."""


class Span(NamedTuple):
    """A run of consecutive lean tiles of one item, done by one worker."""

    worker: int
    seq: int
    item: int
    """Within the sequence: KV head x query blocks + query block."""
    tile_begin: int
    """First tile, within the item."""
    tile_end: int
    """One past the last tile, within the item."""
    item_tiles: int
    """Tiles of the whole item."""
    item_line: int
    """Place of the item's first tile on the line."""
    slot: int | None
    """Where its partial lies in the workspace; None if the span is the whole item and leaves no partial."""
    first_worker: int
    """The first of the workers that share the item."""
    partials: int
    """Number of spans of the item: of workers that share it, each has one, but in a batch-invariant call."""


class CutItem(NamedTuple):
    """An item of several spans."""

    seq: int
    item: int
    first_worker: int
    slots: tuple[int, ...]
    """Slots of its partials in token order, the order of the merge."""


@dataclass(frozen=True)
class Schedule:
    """A ragged batch, cut into equal shares or even pieces.

    Args:
        seqlens: KV tokens of each sequence; clamped to ``[0, max_tokens]``, as in a kernel.
        items_per_seq: output tiles of a sequence, KV heads x query blocks.
        tile_tokens: KV tokens of a lean tile.
        max_tokens: capacity of the cache, tokens.
        workers: 1 to :data:`MAX_WORKERS`.
        item_cost: units of an item besides its tiles.
        planned: as :func:`leanattn.plan` cuts the batch; else as a call without a plan does.
        batch_invariant: every item in pieces that do not depend on the rest of the batch
            (``csrc/kernels/fixed_pieces.h``), a span each.

    Raises:
        ValueError: an argument is out of range, or the line has 2^31 units or more.
    """

    seqlens: Sequence[int]
    items_per_seq: int
    tile_tokens: int
    max_tokens: int
    workers: int
    item_cost: int = 0
    planned: bool = False
    batch_invariant: bool = False

    def __post_init__(self) -> None:
        # Made at once, so that a bad argument is refused here rather than at the first use.
        _ = self._native

    @cached_property
    def _native(self) -> _schedule.Schedule:
        return _schedule.Schedule(
            self.seqlens,
            self.items_per_seq,
            self.tile_tokens,
            self.max_tokens,
            self.workers,
            self.item_cost,
            self.planned,
            self.batch_invariant,
        )

    @property
    def total_tiles(self) -> int:
        """Lean tiles of the batch."""
        return self._native.total_tiles

    @property
    def total_units(self) -> int:
        """Length of the line: the lean tiles, and ``item_cost`` for each item that has any."""
        return self._native.total_units

    @property
    def piece_tiles(self) -> int:
        """Lean tiles of a worker at most, where all items are cut into even pieces, a worker a piece
        (``csrc/kernels/cuts.h``); 0 where the line is cut into equal shares."""
        return self._native.piece_tiles

    @property
    def fixed_pieces(self) -> int:
        """Pieces of an item at most, in a batch-invariant call; else 0."""
        return self._native.fixed_pieces

    @property
    def partial_slots(self) -> int:
        """Partials that the workspace has room for, whatever the batch and the lengths."""
        return self._native.partial_slots

    @property
    def whole_items(self) -> bool:
        """A plan cuts no item: the cuts of the line are moved to the nearest borders of items."""
        return self._native.whole_items

    @property
    def line_item_cost(self) -> int:
        """``item_cost``, or more where all sequences are equally long: each item is then made longer on the
        line until even pieces of it are shares."""
        return self._native.line_item_cost

    @property
    def shares(self) -> Shares:
        """Equal shares of the line, to one unit, of some or all workers: of a short line with few items, not
        all have one. Of equally long sequences, whole items or pieces of one. ``piece_tiles`` and
        ``whole_items`` say if a plan cuts otherwise. Of a batch-invariant call, before their ends are moved
        to borders of pieces."""
        return self._native.shares

    def worker_tiles(self) -> list[int]:
        """Lean tiles of each worker; they differ by what items cost besides."""
        tiles = [0] * self.workers
        for span in self.spans():
            tiles[span.worker] += span.tile_end - span.tile_begin
        return tiles

    def worker_spans(self, worker: int) -> list[Span]:
        """The spans of one worker, in the order in which it does them."""
        return [Span._make(row) for row in self._native.worker_spans(worker)]

    def spans(self) -> list[Span]:
        """The spans of all workers: the whole line, in its order."""
        return [Span._make(row) for row in self._native.spans()]

    def cut_items(self) -> list[CutItem]:
        """The items that are cut, in the order of the line."""
        return [CutItem._make(row) for row in self._native.cut_items()]


class Tiling(NamedTuple):
    """The sizes with which a device cuts a batch, and reads it."""

    heads: int
    """KV heads of an item: several, which are read together, where that is faster."""
    row_blocks: int
    """Items that the query rows of a KV head make."""
    block_rows: int
    """Query rows of a KV head in an item at most."""
    tile_tokens: int
    """KV tokens of a lean tile."""
    tiles_in_flight: int
    """Tiles that a CTA keeps on their way from memory; a thread of a CPU, 1."""
    item_cost: int
    """Units of an item besides its tiles."""
    team_size: int
    """Workers that have the same tokens, each of its own item: a :class:`Schedule` is about such teams, and
    about every ``team_size``-th item."""


def tiling(
    device_type: str,
    *,
    batch: int,
    max_tokens: int,
    num_kv_heads: int,
    rows: int,
    head_dim: int,
    workers: int,
    v_head_dim: int | None = None,
    paged: bool = False,
    itemsize: int = 2,
    score_options: bool = False,
    row_limit: int = 0,
    batch_invariant: bool = False,
    wgmma: bool = False,
) -> Tiling:
    """What a call of these shapes does on a device of type ``"cpu"`` or ``"cuda"``.

    Args:
        batch, max_tokens, num_kv_heads, head_dim: as in the shape of ``k_cache``; max_tokens at most what a
            window shows, left + q_len.
        rows: query rows of a KV head: query heads that share it x query tokens of a sequence.
        workers: CTAs or threads.
        v_head_dim: of ``v_cache``; head_dim if None.
        paged: whether the call has a ``block_table``.
        itemsize: bytes of an element of ``k_cache``.
        score_options: whether the call has a window, padding, soft cap, sinks, slopes or a tree's mask, or
            queries that see some but not all of the new tokens after their own.
        row_limit: what :func:`packed_row_limit` says if it has ``cu_seqlens_q``. Then batch is the number of
            blocks of queries, and rows are those of :func:`block_tokens` query tokens.
        batch_invariant: as in the call; batch and max_tokens then change nothing.
        wgmma: what :func:`leanattn.support.has_wgmma` says of a GPU.
    """
    shape = (batch, max_tokens, num_kv_heads, rows, head_dim, v_head_dim or head_dim)
    return Tiling(
        *_schedule.tiling(
            device_type, *shape, workers, paged, itemsize, score_options, row_limit, batch_invariant, wgmma
        )
    )


class QueryBlock(NamedTuple):
    """Query tokens of a sequence that the schedule takes for a sequence (``csrc/kernels/query_blocks.h``)."""

    seq: int
    query: int
    """Its first row of ``q``."""
    tokens: int
    """Query tokens."""
    first: int
    """Its first query token, among those of its sequence."""
    length: int
    """KV tokens that its last query sees, and those ahead of them: its length on the line."""
    tail: int
    """Tokens of the length from its first query's own on."""
    unseen: int
    """Tokens at the beginning of the sequence that none of its queries sees: they have no tiles."""


def query_blocks(
    cu_seqlens_q: Sequence[int],
    cache_seqlens: Sequence[int],
    *,
    max_tokens: int,
    block_tokens: int,
    window_left: int = -1,
    window_right: int = 0,
    cache_leftpad: Sequence[int] = (),
) -> list[QueryBlock]:
    """The blocks of packed queries, in the order of the line.

    Args:
        cu_seqlens_q, cache_seqlens: as for :func:`leanattn.decode`, on the host.
        max_tokens: of a sequence.
        block_tokens: query tokens of a block at most.
        window_left, window_right: tokens ahead of its own and after it that a query sees; -1 for all, and
            window_right 0 with a causal mask.
        cache_leftpad: as for :func:`leanattn.decode`, on the host; empty for none.
    """
    window = (window_left, window_right)
    rows = _schedule.query_blocks(
        list(cu_seqlens_q), list(cache_seqlens), max_tokens, *window, list(cache_leftpad), block_tokens
    )
    return [QueryBlock._make(row) for row in rows]


def packed_row_limit(
    device_type: str,
    *,
    wgmma: bool,
    head_dim: int,
    v_head_dim: int | None = None,
    itemsize: int = 2,
    batch_invariant: bool = False,
) -> int:
    """Query rows of an item of packed queries at most.

    Args:
        device_type, head_dim, v_head_dim, itemsize, batch_invariant: as for :func:`tiling`.
        wgmma: :func:`leanattn.support.has_wgmma` and :func:`many_packed_rows`.
    """
    widest = max(head_dim, v_head_dim or head_dim)
    return _schedule.packed_row_limit(device_type, wgmma, widest, itemsize, batch_invariant)


def many_packed_rows(tokens: int, group: int, batch: int) -> bool:
    """Whether wgmma is worth while for ``tokens`` packed query tokens of ``batch`` sequences.

    As in ``tile_table.h``, but for sizes that a compiler does not know as well.
    """
    return tokens * group > _schedule.MOST_ROWS_GENERAL * batch


def block_tokens(group: int, row_limit: int) -> int:
    """Query tokens of a block at most, where ``group`` query heads share a KV head."""
    return _schedule.block_tokens(group, row_limit)


def most_query_blocks(tokens: int, batch: int, block_tokens: int) -> int:
    """Blocks that ``tokens`` packed query tokens of ``batch`` sequences make at most."""
    return min(tokens, tokens // block_tokens + batch)


def partial_slots(workers: int) -> int:
    """Partials that the workspace has room for, whatever the batch and the lengths."""
    return _schedule.partial_slots(workers)


def merge_parts(rows: int, step_rows: int, partials: int) -> list[range]:
    """Which rows each of an item's workers merges, where they share that (``csrc/kernels/merge_parts.h``).

    Args:
        rows: query rows of the item.
        step_rows: rows that the threads of a worker merge at once.
        partials: of the item, one of each worker.
    """
    begins = _schedule.merge_parts(rows, step_rows, partials)
    return [range(begin, end) for begin, end in pairwise(begins)]


def plan_elements(batch: int) -> int:
    """int32 elements of what :func:`leanattn.plan` makes for ``batch`` sequences."""
    return _schedule.plan_elements(batch)
