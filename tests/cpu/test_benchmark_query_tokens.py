"""The benchmark of several query tokens, as far as it needs no GPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks import method, query_tokens
from benchmarks.case import Case, reference, row_error
from benchmarks.ours import bind_leanattn
from benchmarks.shapes import Heads, Shape

SHAPE = Shape("query tokens", "some shape", Heads(8, 2, 64), (96,) * 3)


@pytest.mark.parametrize("q_len", [1, 2, 8, 16])
def test_all_ways_give_the_same(q_len: int) -> None:
    case = query_tokens.with_queries(Case.random(SHAPE, torch.bfloat16, "cpu", copies=2), q_len)
    expected = reference(case)
    ways = [bind_leanattn(case, planned=True)]
    if q_len > 1:
        ways += [query_tokens.bind_tree(case), query_tokens.bind_packed(case)]
    for calls in ways:
        assert len(calls) == 2
        assert row_error(calls[0](), expected) <= method.TOLERANCE["bf16"]


def test_a_larger_cache_changes_nothing() -> None:
    torch.manual_seed(0)
    case = Case.random(SHAPE, torch.bfloat16, "cpu", copies=2)
    torch.manual_seed(0)
    larger = Case.random(SHAPE, torch.bfloat16, "cpu", copies=2, max_tokens=200)
    assert [tuple(cache.shape) for cache in larger.k + larger.v] == [(3, 200, 2, 64)] * 4
    assert all(cache[:, 96:].isnan().all() for cache in larger.k + larger.v)
    assert torch.equal(bind_leanattn(larger)[1](), bind_leanattn(case)[1]())
    names = [query_tokens.InCache(SHAPE, capacity).name for capacity in (96, 2048)]
    assert names == ["some shape", "some shape in 2k"]


def test_the_tree_is_a_causal_mask() -> None:
    tree = query_tokens.causal_tree(2, 4, torch.device("cpu"))
    assert tree.tolist() == [[[0b1], [0b11], [0b111], [0b1111]]] * 2


def test_the_table_names_what_is_missing() -> None:
    us: dict[str, float | None] = {
        **dict.fromkeys(query_tokens.COLUMNS, 11.0),
        "q1": 10.0,
        query_tokens.TREE: None,
    }
    cells = query_tokens.row({"name": "some shape", "us": us})
    assert cells[:3] == ["some shape", "10.0", "1.100"]
    assert cells[2 + query_tokens.COLUMNS.index(query_tokens.TREE)] == "-"
    assert len(cells) == len(query_tokens.command().columns)
