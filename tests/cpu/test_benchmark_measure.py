"""What the GPU benchmark does with one implementation: checks against the reference, and both timings."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks import method, ours, shapes
from benchmarks.case import Case, reference, row_error
from benchmarks.measure import ShapeBench
from benchmarks.ours import bind_fixed_split, workspace_floats
from benchmarks.packages import Missing
from benchmarks.peers import FIXED_SPLIT, IMPLEMENTATIONS, Implementation, names_of

Call = Callable[[], Any]
HEADS = shapes.Heads(query=8, kv=2, dim=64)
RAGGED = shapes.Shape("test", "ragged", HEADS, lengths=(1, 37, 130))


def exact(case: Any) -> list[Call]:
    def call(k: Any, v: Any) -> Any:
        rows = [
            torch.nn.functional.scaled_dot_product_attention(
                q.unsqueeze(1), k[b, :n].transpose(0, 1), v[b, :n].transpose(0, 1), enable_gqa=True
            ).squeeze(1)
            for b, (q, n) in enumerate(zip(case.q, case.shape.lengths, strict=True))
        ]
        return torch.stack(rows)

    return [partial(call, k, v) for k, v in zip(case.k, case.v, strict=True)]


def reads_beyond_lengths(case: Any) -> list[Call]:
    """Right unless the memory beyond the lengths holds NaN: 0 x NaN."""

    def call(right: Call, v: Any) -> Any:
        return right() + 0.0 * v.sum()

    return [partial(call, right, v) for right, v in zip(exact(case), case.v, strict=True)]


def not_installed(case: Any) -> list[Call]:
    raise Missing("no such package")


def not_for_this(case: Any) -> list[Call]:
    raise NotImplementedError("no such head dim")


def raises(case: Any) -> list[Call]:
    raise RuntimeError("no kernel for this shape")


def five_percent_off(case: Any) -> list[Call]:
    return [partial(lambda right: 1.05 * right(), right) for right in exact(case)]


@pytest.fixture
def small_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "COLD_BYTES", 200_000)


def make_bench(time_calls: Any, steps: list[Call] | None = None) -> ShapeBench:
    case = Case.random(RAGGED, torch.bfloat16, "cpu")
    return ShapeBench(case, method.TOLERANCE["bf16"], time_calls, steps)


def fake_times(calls: list[Call], kv_bytes: int, check: Callable[[Any], float]) -> dict[str, Any]:
    check(calls[0]())
    return {"median_us": 1.0, "copies_seen": len(calls)}


@pytest.mark.parametrize(
    ("bind", "status"),
    [
        (exact, "ok"),
        (reads_beyond_lengths, "ok"),
        (not_installed, "missing"),
        (not_for_this, "unsupported"),
        (raises, "failed"),
        (five_percent_off, "wrong"),
    ],
)
@pytest.mark.usefixtures("small_rotation")
def test_every_implementation_is_checked_before_it_is_timed(bind: Any, status: str) -> None:
    bench = make_bench(fake_times)
    result = bench.measure(Implementation("candidate", "", bind))
    assert result["status"] == status
    assert ("median_us" in result) == (status == "ok")
    if status == "ok":
        assert result["copies_seen"] == method.copies_for(RAGGED.kv_bytes(2)) > 1
        assert 0.0 < result["row_error"] <= method.TOLERANCE["bf16"]
        assert result["nan_reaches_output"] == (bind is reads_beyond_lengths)


@pytest.mark.usefixtures("small_rotation")
def test_one_implementation_does_not_spoil_the_next() -> None:
    bench = make_bench(fake_times)
    results = [bench.measure(Implementation("", "", bind)) for bind in (reads_beyond_lengths, exact)]
    assert [result["nan_reaches_output"] for result in results] == [True, False]
    assert math.isnan(float(bench.case.k[0][0, -1, 0, 0]))


@pytest.mark.usefixtures("small_rotation")
def test_a_failed_capture_is_told_from_a_wrong_result() -> None:
    def fails(calls: Any, kv_bytes: int, check: Any) -> dict[str, Any]:
        raise RuntimeError("capture failed")

    def wrong_after_replay(calls: Any, kv_bytes: int, check: Any) -> dict[str, Any]:
        check(0.5 * calls[0]())
        return {}

    for time_calls, status, suspect in ((fails, "failed", True), (wrong_after_replay, "wrong", False)):
        bench = make_bench(time_calls)
        assert bench.measure(Implementation("", "", exact))["status"] == status
        assert bench.timing_failed == suspect


@pytest.mark.usefixtures("small_rotation")
def test_uniform_only_implementations_say_so() -> None:
    bench = make_bench(fake_times)
    result = bench.measure(Implementation("", "", exact, ragged=False))
    assert result == {"status": "unsupported", "detail": "uniform lengths only"}


@pytest.mark.usefixtures("small_rotation")
def test_in_a_model_a_step_runs_before_each_call_on_the_same_copy() -> None:
    order: list[str] = []

    def step(copy: int) -> Any:
        order.append(f"step {copy}")

    def bind(case: Case) -> list[Call]:
        def call(copy: int, right: Call) -> Any:
            order.append(f"call {copy}")
            return right()

        return [partial(call, copy, right) for copy, right in enumerate(exact(case))]

    def once_round(calls: list[Call], kv_bytes: int, check: Callable[[Any], float]) -> dict[str, Any]:
        order.clear()
        for call in calls:
            call()
        return {"median_us": float(len(order))}

    copies = method.copies_for(RAGGED.kv_bytes(2))
    bench = make_bench(once_round, [partial(step, copy) for copy in range(copies)])
    result = bench.measure(Implementation("", "", bind))
    assert order == [f"{what} {copy}" for copy in range(copies) for what in ("step", "call")]
    assert (result["median_us"], result[method.IN_MODEL]["median_us"]) == (copies, 2 * copies)
    assert method.IN_MODEL not in make_bench(once_round).measure(Implementation("", "", bind))


@pytest.mark.parametrize("name", names_of("ours", "decomposition"))
@pytest.mark.parametrize("heads", [HEADS, shapes.Heads(query=40, kv=1, dim=64)], ids=["8/2", "40/1"])
@pytest.mark.parametrize("q_len", [1, 5])
@pytest.mark.usefixtures("small_rotation")
def test_ours_and_the_decompositions_are_right_on_every_copy(
    name: str, heads: shapes.Heads, q_len: int
) -> None:
    """On the CPU backend, which takes the same arguments; its threads stand for SMs."""
    shape = shapes.Shape("test", "ragged", heads, lengths=(q_len, 37, 1300), q_len=q_len)
    case = Case.random(shape, torch.bfloat16, "cpu")
    for copy, call in enumerate(IMPLEMENTATIONS[name].bind(case)):
        of_copy = Case(shape, case.q, case.seqlens, case.k[copy:], case.v[copy:])
        assert row_error(call(), reference(of_copy)) <= method.TOLERANCE["bf16"]


@pytest.mark.parametrize("splits", [1, 2, 7, 40])
@pytest.mark.parametrize("q_len", [1, 10])
@pytest.mark.usefixtures("small_rotation")
def test_the_workspace_is_what_the_kernel_asks_for(splits: int, q_len: int) -> None:
    case = Case.random(replace(RAGGED, lengths=(q_len, 37, 130), q_len=q_len), torch.bfloat16, "cpu")
    (*_, last) = bind_fixed_split(case, splits_of=lambda case: splits)
    of_last = Case(case.shape, case.q, case.seqlens, case.k[-1:], case.v[-1:])
    assert row_error(last(), reference(of_last)) < 6e-3
    arguments = case.q, case.k[0], case.v[0], case.seqlens, torch.empty_like(case.q), None
    if needed := workspace_floats(case, splits):
        with pytest.raises(ValueError, match=f"of at least {needed} elements"):
            torch.ops.leanattn._decode_debug(*arguments, torch.empty(needed - 1), fixed_splits=splits)


@pytest.mark.usefixtures("small_rotation")
def test_the_record_says_how_many_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "sms_of", lambda case: 132)
    bench = make_bench(fake_times)
    assert bench.measure(IMPLEMENTATIONS[FIXED_SPLIT])["splits"] == ours.flash_decoding_splits(bench.case) > 1
