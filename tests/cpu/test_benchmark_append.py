"""The benchmark of append_kv, as far as it needs no GPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks import append
from benchmarks.measure import Wrong
from benchmarks.shapes import Heads
from benchmarks.timing import Call

SMALL = append.AppendShape("small", Heads(4, 2, 32), batch=3, new_tokens=5, tokens=48)


def small(variant: append.Variant) -> append.AppendCase:
    return append.AppendCase.random(SMALL, variant, torch.device("cpu"))


@pytest.mark.parametrize("variant", append.VARIANTS.values(), ids=append.VARIANTS)
def test_pytorch_writes_the_same(variant: append.Variant) -> None:
    append.check(small(variant))


@pytest.mark.parametrize("variant", append.VARIANTS.values(), ids=append.VARIANTS)
def test_other_numbers_are_found(variant: append.Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    def another_value(case: append.AppendCase) -> Call:
        case.v[-1, -1, -1, -1] += 1
        return append.by_leanattn(case)

    monkeypatch.setattr(append, "by_torch", another_value)
    with pytest.raises(Wrong, match="small: a difference of"):
        append.check(small(variant))


def test_a_row_of_the_table() -> None:
    shape = append.SHAPES[1]
    assert shape.name == "llama8b B32, 1 new"
    assert shape.written_bytes() == 2 * 32 * 8 * 128 * 2
    ours, theirs = (2.0, 2.5, 4.0, None), (10.0, 10.0, None, 50.0)
    times = ({"leanattn": a, "torch": b} for a, b in zip(ours, theirs, strict=True))
    us = dict(zip(append.VARIANTS, times, strict=True))
    record = {"name": shape.name, "bytes": shape.written_bytes(), "us": us}
    cells = append.row(record)
    assert cells == [shape.name, "0.13", "2.00", "5.0", "2.50", "4.0", "4.00", "-", "-", "-"]
    assert len(cells) == len(append.command().columns)
