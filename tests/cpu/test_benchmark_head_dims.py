"""The benchmark of head dims, as far as it needs no GPU."""

from __future__ import annotations

import pytest

from benchmarks import head_dims


def test_shapes_have_as_many_bytes() -> None:
    for shape in head_dims.SHAPES:
        assert 0.999 * head_dims.KV_BYTES < shape.kv_bytes() <= head_dims.KV_BYTES
    assert {shape.name for shape in head_dims.SHAPES} >= {"64", "128", "192/128", "256", "512"}


@pytest.mark.parametrize(
    ("us", "cells"),
    [
        ({"leanattn": 80.0, "fa3": 100.0}, ["80.0", "64.0", "1.250", "100.0", "1.25"]),
        ({"leanattn": 80.0}, ["80.0", "64.0", "1.250", "-", "-"]),
        ({"leanattn": None, "fa3": 100.0}, ["-", "64.0", "-", "100.0", "-"]),
    ],
)
def test_the_table_names_what_is_missing(us: dict[str, float | None], cells: list[str]) -> None:
    record = {"name": "192/128", "tokens": 6553, "us": us, "read_limit": 64.0}
    assert head_dims.row(record) == ["192/128", "6553", *cells]
