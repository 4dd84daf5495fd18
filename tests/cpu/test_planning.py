"""Number of workers, the schedule of a call, and its picture."""

from __future__ import annotations

import pytest
import torch

from leanattn import viz
from leanattn.planning import num_workers, plan_schedule
from leanattn.schedule import MAX_WORKERS, Schedule

CPU = torch.device("cpu")


def test_a_worker_for_each_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert [num_workers(CPU, margin) for margin in (0, 1, 2)] == [3, 2, 1]
        with pytest.raises(ValueError, match=r"sm_margin: 3, expected 0\.\.2 on cpu"):
            num_workers(CPU, 3)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("num_q_heads", "q_len", "items_per_seq"),
    [(8, 1, 2), (64, 1, 2), (66, 1, 4), (256, 1, 8), (8, 8, 2), (8, 9, 4), (256, 3, 24)],
)
def test_items_of_a_call(num_q_heads: int, q_len: int, items_per_seq: int) -> None:
    plan = plan_schedule(
        [500, 0, 64],
        num_q_heads=num_q_heads,
        num_kv_heads=2,
        q_len=q_len,
        head_dim=64,
        max_tokens=600,
        device=CPU,
    )
    assert plan.items_per_seq == items_per_seq
    assert plan.total_tiles == items_per_seq * (8 + 0 + 1)
    assert plan.workers == torch.get_num_threads()


def test_a_given_number_of_workers() -> None:
    plan = plan_schedule(
        [500], num_q_heads=8, num_kv_heads=8, head_dim=128, max_tokens=600, device=CPU, workers=MAX_WORKERS
    )
    assert plan.workers == MAX_WORKERS


def test_picture_of_the_schedule() -> None:
    # The batch drawn at the top of csrc/kernels/schedule.h.
    rows = viz.picture(Schedule((6, 4, 16, 3), 1, 1, 100, 5)).splitlines()
    assert rows[0] == "worker  tiles  spans  partials  a letter a tile; lower case: the item is cut"
    assert [row.split() for row in rows[1:]] == [
        ["0", "6", "1", "0", "AAAAAA"],
        ["1", "6", "2", "1", "BBBBcc"],
        ["2", "6", "1", "1", "cccccc"],
        ["3", "6", "1", "1", "cccccc"],
        ["4", "5", "2", "1", "ccDDD"],
    ]


def test_picture_of_a_large_schedule() -> None:
    rows = viz.picture(Schedule((100_000,) * 8, 8, 64, 100_000, 132), width=40).splitlines()
    assert len(rows) < 20
    assert "117 more workers" in rows[-2]
    assert rows[-1].split()[0] == "131"
    assert all(len(row) <= 32 + 2 + 40 for row in rows[1:])


def test_picture_of_nothing() -> None:
    assert viz.picture(Schedule((0, 0), 8, 64, 100, 4)) == "no lean tiles: all sequences are empty"
