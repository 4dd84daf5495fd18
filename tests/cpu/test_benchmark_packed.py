"""The benchmark of packed queries, as far as it needs no GPU."""

from __future__ import annotations

import pytest

from benchmarks import packed
from benchmarks.shapes import HEADS


def test_what_a_shape_computes() -> None:
    shape = packed.packed_shape("llama8b", "some batch", (10, 1), (8, 3))
    assert (shape.lengths, shape.query_tokens) == ([10, 8], [1, 3])
    heads = HEADS["llama8b"]
    assert shape.kv_bytes(2) == 2 * 18 * heads.kv * heads.dim * 2
    assert shape.flops() == 4 * (10 + 6 + 7 + 8) * heads.query * heads.dim


def test_queries_are_of_tokens_in_the_cache() -> None:
    for shape in packed.SHAPES:
        assert all(0 < count <= length for length, count in shape.sequences)


@pytest.mark.parametrize(
    ("us", "cells"),
    [
        (
            {"packed": 10.0, "apart": 12.5, "fa3": 25.0},
            ["10.0", "12.5", "1.25", "25.0", "2.50", "0.40", "200"],
        ),
        ({"packed": 10.0, "apart": 12.5}, ["10.0", "12.5", "1.25", "-", "-", "0.40", "200"]),
        ({"packed": None, "apart": 12.5, "fa3": 25.0}, ["-", "12.5", "-", "25.0", "-", "-", "-"]),
    ],
)
def test_the_table_names_what_is_missing(us: dict[str, float | None], cells: list[str]) -> None:
    document = {
        "commit": "0123456789",
        "date": "2026-01-01",
        "environment": {"gpu": "a GPU", "torch": "2.13.0"},
        "shapes": [{"name": "some batch", "us": us, "kv_bytes": 4_000_000, "flops": 2_000_000_000}],
    }
    last = packed.command().render(document, markdown=True).splitlines()[-1]
    assert [cell.strip() for cell in last.split("|")[1:-1]] == ["some batch", *cells]
