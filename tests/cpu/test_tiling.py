"""What a device does with a shape (csrc/kernels/tile_table.h): sizes of tiles, items and teams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from leanattn import schedule


def tiling_of(
    device_type: str, paged: bool = False, score_options: bool = False, /, **changes: int
) -> schedule.Tiling:
    shape: dict[str, Any] = {
        "batch": 8,
        "max_tokens": 8192,
        "num_kv_heads": 8,
        "rows": 4,
        "head_dim": 128,
        "workers": 132,
    }
    return schedule.tiling(device_type, paged=paged, score_options=score_options, **(shape | changes))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tiling_of("cpu", rows=0), r"rows: expected 1\.\.2147483519, got 0"),
        (lambda: tiling_of("cuda", rows=2**31 - 1), "rows: .*got 2147483647"),
        (lambda: tiling_of("cuda", head_dim=0), r"head_dim: expected 1\.\.2147483647, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("rows", [1, 8, 32, 33, 64, 71, 128])
@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_row_blocks_hold_all_rows(device_type: str, rows: int) -> None:
    for max_tokens, most in ((8, 8), (512, 16), (1024, 32)):  # 0.3, 16.8 and 33.6 MB
        tiling = tiling_of(device_type, rows=rows, max_tokens=max_tokens)
        most = most if device_type == "cuda" else 32
        assert tiling.block_rows <= most
        assert tiling.block_rows == most or rows % most != 0
        assert (tiling.row_blocks - 1) * tiling.block_rows < rows <= tiling.row_blocks * tiling.block_rows
        assert tiling.heads == 1 or tiling.row_blocks == 1


def test_a_tile_on_a_gpu_has_as_many_bytes_whatever_it_is_of() -> None:
    many_heads = {"batch": 200, "num_kv_heads": 16}
    for changes in ({}, {"head_dim": 64}, many_heads, many_heads | {"head_dim": 64}):
        tiling = tiling_of("cuda", **changes)
        assert tiling.heads * tiling.tile_tokens * changes.get("head_dim", 128) == 8192
        assert tiling.item_cost > 0


@pytest.mark.parametrize(
    ("head_dim", "of_kernel"),
    [(8, 64), (72, 128), (128, 128), (136, 256), (256, 256), (264, 512), (512, 512)],
)
def test_tiles_are_those_of_the_kernel_that_serves_a_head_dim(head_dim: int, of_kernel: int) -> None:
    for itemsize in (1, 2):
        tiling = tiling_of("cuda", head_dim=head_dim, itemsize=itemsize)
        assert tiling.tile_tokens * of_kernel * itemsize == 16384


@pytest.mark.parametrize(
    ("dims", "of_kernel"),
    [((192, 128), 256), ((64, 128), 128), ((40, 64), 64), ((8, 136), 256), ((320, 512), 512)],
)
def test_tiles_are_those_of_the_wider_of_k_and_v(dims: tuple[int, int], of_kernel: int) -> None:
    tiling = tiling_of("cuda", head_dim=dims[0], v_head_dim=dims[1])
    assert tiling.tile_tokens * of_kernel * 2 == 16384
    assert tiling.heads == 1
    # Only kernels that can do more know of two head dims.
    large = tiling_of("cuda", batch=64, rows=64, head_dim=dims[0], v_head_dim=dims[1])
    assert large.block_rows == (8 if of_kernel > 128 else 16)
    assert tiling_of("cpu", head_dim=dims[0], v_head_dim=dims[1]) == tiling_of("cpu", head_dim=dims[0])
    for wgmma in (False, True):
        of_both = schedule.packed_row_limit("cuda", wgmma=wgmma, head_dim=dims[0], v_head_dim=dims[1])
        assert of_both == schedule.packed_row_limit("cuda", wgmma=wgmma, head_dim=max(dims))


@pytest.mark.parametrize(
    ("changes", "tiles"),
    [
        *(({"head_dim": head_dim}, 2) for head_dim in (64, 128, 256, 512)),  # 32 KB each
        ({"head_dim": 192}, 3),  # of 24 KB
        ({"head_dim": 384}, 3),
        ({"head_dim": 192, "v_head_dim": 128}, 3),  # of 20 KB
        *(({"head_dim": head_dim}, 2) for head_dim in (32, 80, 96)),  # rows that begin inside a line
        ({"itemsize": 1}, 2),
        ({"itemsize": 1, "head_dim": 192}, 2),
        ({"itemsize": 1, "head_dim": 256, "v_head_dim": 128}, 3),
        ({"batch": 66, "num_kv_heads": 16}, 2),  # items of four heads
        ({"row_limit": 128}, 2),
        ({"row_limit": 128, "head_dim": 64}, 4),  # of 16 KB
        ({"head_dim": 2**29}, 1),  # as large as none is
        ({"batch_invariant": True}, 3),
        ({"batch_invariant": True, "head_dim": 192, "v_head_dim": 128}, 5),
    ],
)
def test_tiles_in_flight_by_their_bytes(changes: dict[str, int], tiles: int) -> None:
    assert tiling_of("cuda", **changes).tiles_in_flight == tiles
    assert tiling_of("cpu", **changes).tiles_in_flight == 1


@pytest.mark.parametrize(
    ("tokens", "group", "batch", "many"),
    [(32, 4, 32, False), (128, 4, 32, False), (129, 4, 32, True), (32, 17, 32, True), (5, 1, 0, True)],
)
def test_wgmma_is_for_more_rows_than_other_items_have(
    tokens: int, group: int, batch: int, many: bool
) -> None:
    assert schedule.many_packed_rows(tokens, group, batch) is many


@pytest.mark.parametrize(
    ("changes", "rows_of_item"),
    [
        ({"rows": 33}, 33),
        ({"rows": 128}, 128),
        ({"rows": 160}, 80),
        ({"rows": 32}, 32),  # an item of the others
        ({"rows": 33, "max_tokens": 480}, 11),  # 15.7 MB: to merge partials takes longer
        ({"rows": 33, "max_tokens": 490}, 33),
        ({"rows": 33, "batch": 7, "num_kv_heads": 1, "max_tokens": 2**18}, 17),  # seven items for all workers
        ({"rows": 33, "batch": 8, "num_kv_heads": 1, "max_tokens": 2**15}, 33),
        ({"rows": 17, "head_dim": 96}, 17),  # one of a kernel that can do more has 16 rows
        ({"rows": 16, "head_dim": 96}, 16),
        ({"rows": 33, "head_dim": 64}, 33),
        ({"rows": 64, "itemsize": 1}, 16),
        ({"rows": 64, "head_dim": 192}, 8),
        ({"rows": 64, "batch_invariant": True}, 16),
    ],
)
def test_many_query_rows_go_to_wgmma(changes: dict[str, int], rows_of_item: int) -> None:
    tiling = tiling_of("cuda", wgmma=True, **changes)
    assert tiling.block_rows == rows_of_item
    if rows_of_item > 32:
        # Of one head_dim as of the other; and its partials are large.
        assert (tiling.heads, tiling.tile_tokens, tiling.item_cost) == (1, 64, 4)
    if changes == {"rows": 32}:
        assert tiling.item_cost == 1
    assert tiling_of("cuda", **changes).block_rows <= 32
    assert tiling_of("cpu", wgmma=True, **changes) == tiling_of("cpu", **changes)


@pytest.mark.parametrize(("rows", "rows_of_item"), [(16, 16), (17, 17), (128, 128), (129, 65)])
def test_with_options_fewer_query_rows_are_many(rows: int, rows_of_item: int) -> None:
    assert tiling_of("cuda", False, True, rows=rows, wgmma=True).block_rows == rows_of_item


@pytest.mark.parametrize(
    ("options", "changes", "most_rows"),
    [
        (False, {}, 32),
        (True, {}, 16),
        (False, {"itemsize": 1}, 16),
        (False, {"head_dim": 96}, 16),
        (False, {"head_dim": 256}, 8),
        (True, {"head_dim": 160, "itemsize": 1}, 8),
    ],
)
def test_query_rows_of_an_item(options: bool, changes: dict[str, int], most_rows: int) -> None:
    large = {"batch": 64, "rows": 64, **changes}
    assert tiling_of("cuda", False, options, **large).block_rows == most_rows
    assert tiling_of("cpu", False, options, **large).block_rows == 32


@pytest.mark.parametrize(
    ("changes", "heads"),
    [
        ({}, 1),
        ({"batch": 66, "max_tokens": 2**15}, 1),  # a team reads all eight, or half of them
        ({"batch": 66, "max_tokens": 128}, 4),  # sequences of two tiles
        ({"batch": 66, "max_tokens": 256, "head_dim": 64}, 4),
        ({"batch": 66, "max_tokens": 129}, 1),
        ({"batch": 33, "max_tokens": 128}, 1),  # too few for all workers
        ({"batch": 66, "num_kv_heads": 16}, 4),  # as many items of four heads as workers
        ({"batch": 66, "num_kv_heads": 18}, 1),
        ({"batch": 66, "num_kv_heads": 16, "rows": 9}, 1),
        ({"batch": 1, "num_kv_heads": 16, "max_tokens": 2**20}, 1),  # four items for all workers
        ({"batch": 8, "num_kv_heads": 16, "max_tokens": 2**15}, 4),  # two gigabytes
        ({"batch": 8, "num_kv_heads": 32, "max_tokens": 1024}, 1),  # cuts would cost more than is gained
        # Where the contracts of decode count on it, with few workers.
        *(({"batch": 10, "num_kv_heads": 16, "rows": rows, "workers": 40}, 4) for rows in range(1, 9)),
    ],
)
def test_kv_heads_of_an_item(changes: dict[str, int], heads: int) -> None:
    assert tiling_of("cuda", **changes).heads == heads
    assert tiling_of("cpu", **changes).heads == 1


@pytest.mark.parametrize(
    ("changes", "heads"),
    [
        ({}, 1),
        ({"batch": 66}, 4),
        ({"batch": 66, "num_kv_heads": 6}, 1),
        ({"batch": 66, "rows": 9}, 1),
        ({"batch": 8, "max_tokens": 2**15}, 4),  # a gigabyte
    ],
)
def test_kv_heads_of_an_item_in_a_paged_cache(changes: dict[str, int], heads: int) -> None:
    assert tiling_of("cuda", True, **changes).heads == heads
    assert tiling_of("cpu", True, **changes) == tiling_of("cpu", **changes)


@pytest.mark.parametrize(
    "changes", [{"num_kv_heads": 2}, {"num_kv_heads": 16}, {"num_kv_heads": 1, "rows": 71}]
)
@pytest.mark.parametrize("batch", [1, 10, 100])
@pytest.mark.parametrize("max_tokens", [64, 4000, 2**15])
def test_most_caches_are_cut_alike_paged_or_not(changes: dict[str, int], batch: int, max_tokens: int) -> None:
    """Then the bits are the same, which the contracts of paged caches compare."""
    for workers in (1, 3, 40, 132):
        shape = {"batch": batch, "max_tokens": max_tokens, "workers": workers} | changes
        assert tiling_of("cuda", True, **shape) == tiling_of("cuda", **shape)


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, 4),  # eight would leave four workers idle
        ({"workers": 128}, 8),
        ({"workers": 7}, 1),
        ({"num_kv_heads": 10}, 10),
        ({"num_kv_heads": 12}, 12),
        ({"num_kv_heads": 1, "rows": 64, "max_tokens": 2**17}, 2),  # two blocks of rows
        # Four heads an item: a team reads 2 KB of a token's K.
        ({"batch": 66, "num_kv_heads": 32}, 2),
        ({"batch": 66, "num_kv_heads": 32, "head_dim": 64}, 4),
        ({"batch": 66, "num_kv_heads": 32, "workers": 128}, 2),
        ({"batch": 66, "num_kv_heads": 32, "head_dim": 2**29}, 4),  # as large as none is
    ],
)
def test_workers_of_a_team(changes: dict[str, int], size: int) -> None:
    assert tiling_of("cuda", **changes).team_size == size
    assert tiling_of("cpu", **changes).team_size == 1


def test_a_device_must_be_known() -> None:
    with pytest.raises(ValueError, match=r"device_type: .* got 'tpu'"):
        tiling_of("tpu")
