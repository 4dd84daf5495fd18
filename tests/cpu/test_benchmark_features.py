"""The benchmark of options and caches of 8 bits, as far as it needs no GPU."""

from __future__ import annotations

import torch

import leanattn
from benchmarks import features, method
from benchmarks.case import Case, reference
from benchmarks.measure import ShapeBench
from benchmarks.shapes import Heads, Shape
from benchmarks.timing import Call

SHAPE = Shape("uniform", "some shape", Heads(8, 2, 64), (96,) * 3)


def checked(calls: list[Call], kv_bytes: int, check: object) -> dict[str, float]:
    """Instead of a time, the error of the first call: the copies of the cache differ."""
    assert callable(check)
    return {"median_us": check(calls[0]())}


def test_options_leave_the_result_as_it_is() -> None:
    case = Case.random(SHAPE, torch.bfloat16, "cpu", copies=2)
    features.round_to_float8(case)
    bench = ShapeBench(case, method.TOLERANCE["bf16"], checked)
    options = features.neutral_options(case)
    assert tuple(options) == ("plain", *features.OPTIONS)
    for given in options.values():
        assert features.time_with(bench, given) is not None
    for float8 in (features.FLOAT8, features.WIDER_FLOAT8):
        assert features.time_with(bench, {}, float8) is not None
    assert features.time_with(bench, {"softcap": 0.01}) is None, "a result that is another is no time"


def test_int8_is_what_the_case_holds() -> None:
    case = features.in_int8_steps(Case.random(SHAPE, torch.bfloat16, "cpu", copies=2))
    assert features.time_int8(ShapeBench(case, method.TOLERANCE["bf16"], checked)) is not None


def test_a_window_shows_the_shorter_cache() -> None:
    case = Case.random(SHAPE, torch.bfloat16, "cpu", copies=1)
    out = leanattn.decode(case.q, case.k[0], case.v[0], case.seqlens, window_size=(47, -1))
    half = Case(case.shape, case.q, case.seqlens - 48, [case.k[0][:, 48:]], [case.v[0][:, 48:]])
    half.shape = Shape("uniform", "half", SHAPE.heads, (48,) * 3)
    torch.testing.assert_close(out.double(), reference(half), rtol=2e-2, atol=2e-2)


def test_the_table_names_what_is_missing() -> None:
    us = {"plain": 10.0, "softcap": 11.0, "sinks": None, "alibi": 10.0, "leftpad": 10.1, "invariant": 10.5}
    document = {
        "commit": "0123456789",
        "date": "2026-01-01",
        "environment": {"gpu": "a GPU", "torch": "2.13.0"},
        "shapes": [
            {"name": "ragged", "us": us, "float8": {"us": 6.0, "read_limit": 5.0}, "int8": {"us": 8.0}}
        ],
    }
    last = features.command().render(document, markdown=True).splitlines()[-1]
    cells = [cell.strip() for cell in last.split("|")[1:-1]]
    assert cells == [
        "ragged",
        "10.0",
        "1.100",
        "-",
        "1.000",
        "1.010",
        "1.050",
        "-",
        "-",
        "6.00",
        "5.00",
        "7.10",
        "1.667",
        "-",
        "8.00",
        "1.250",
    ]
