"""Replays of a trace without a GPU: batching, sampling, estimates, and the command with a fake timer."""

import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import method
from benchmarks import worker as base_worker
from benchmarks.packages import Missing
from benchmarks.peers import IMPLEMENTATIONS, LEANATTN, NO_SPLIT, OUR_NAMES
from benchmarks.replay import command, estimates, report, sampling, worker
from benchmarks.replay.batching import Replay
from benchmarks.replay.plan import powers_of_two_around
from leanattn.lengths import Request

# --- batching ----------------------------------------------------------------------------------------------

FAR_APART = 1000  # contexts, so that a KV length tells whose it is


@given(generated=st.lists(st.integers(1, 40), min_size=1, max_size=60), limit=st.integers(1, 12))
def test_continuous_batching(generated: list[int], limit: int) -> None:
    requests = [Request(FAR_APART * (i + 1), tokens) for i, tokens in enumerate(generated)]
    replayed = Replay(requests, limit)
    batches = list(replayed)
    seen = defaultdict(list)  # by request: (step, KV length)
    for step, lengths in enumerate(batches):
        for length in lengths:
            seen[(length - 1) // FAR_APART - 1].append((step, length))
    first_steps = [seen[i][0][0] for i in range(len(requests))]
    for i, request in enumerate(requests):
        expected = [(first_steps[i] + n, request.context + n + 1) for n in range(request.generated)]
        assert seen[i] == expected
    assert first_steps == sorted(first_steps)  # nobody is overtaken
    for step, lengths in enumerate(batches):
        assert 1 <= len(lengths) <= limit
        assert len(lengths) == limit or first_steps[-1] <= step  # full while requests wait
    assert replayed.steps == len(batches)
    assert replayed.full_steps == sum(len(lengths) == limit for lengths in batches)
    assert replayed.kv_tokens == sum(map(sum, batches))


def test_a_request_keeps_its_place_and_the_next_one_takes_it() -> None:
    requests = [Request(10, 3), Request(20, 1), Request(30, 1), Request(40, 4)]
    assert list(Replay(requests, 2)) == [(11, 21), (12, 31), (13, 41), (42,), (43,), (44,)]


# --- sampling and estimates --------------------------------------------------------------------------------


@given(steps=st.integers(3, 10_000), count=st.integers(3, 100))
def test_samples_stand_for_every_step_once(steps: int, count: int) -> None:
    samples = sampling.midpoints(steps, count)
    assert len(samples) == min(steps, count)
    assert sum(weight for _, weight in samples) == steps
    begin = 0
    for step, weight in samples:
        assert weight in (steps // len(samples), steps // len(samples) + 1)
        assert begin <= step < begin + weight
        assert abs(2 * (step - begin) + 1 - weight) <= 1  # in the middle
        begin += weight


def test_too_few_steps_are_refused() -> None:
    for steps, count in ((2, 48), (1000, 2)):
        with pytest.raises(ValueError, match=f"at least 3 steps to measure, got 2 of {steps}"):
            sampling.midpoints(steps, count)


def test_measuring_every_step_leaves_no_error() -> None:
    assert sampling.ratio([1, 1, 1], [2.0, 9.0, 4.0], [1.0, 2.0, 2.0]) == (3.0, 0.0)


def test_adjusted_times_lie_on_the_line_at_the_mean() -> None:
    times = sampling.adjusted([12.0, 14.0, 18.0], known=[1.0, 2.0, 4.0], mean_known=3.0)
    assert times == pytest.approx([16.0, 16.0, 16.0])
    assert sampling.adjusted([1.0, 2.0, 6.0], known=[5.0, 5.0, 5.0], mean_known=5.0) == [1.0, 2.0, 6.0]


def test_standard_errors_tell_how_far_estimates_are_off() -> None:
    draw = random.Random(0)
    steps, count, off = 2_000, 40, []
    for _ in range(200):
        sizes = [draw.uniform(50.0, 150.0) for _ in range(steps)]
        ours = [3.0 + size + draw.gauss(0.0, 5.0) for size in sizes]
        theirs = [9.0 + 1.1 * size + draw.gauss(0.0, 5.0) for size in sizes]
        samples = sampling.midpoints(steps, count)
        known = [sizes[step] for step, _ in samples]
        weights = [weight for _, weight in samples]
        over, under = (
            sampling.adjusted([times[step] for step, _ in samples], known, sum(sizes) / steps)
            for times in (theirs, ours)
        )
        estimate = sampling.ratio(weights, over, under)
        off.append((estimate.value - sum(theirs) / sum(ours)) / estimate.standard_error)
    # Like a standard normal variable, of which 200 draws have a mean within 0.21 almost always.
    assert abs(sum(off) / len(off)) < 0.25
    assert 0.85 < math.sqrt(sum(x * x for x in off) / len(off)) < 1.25


@given(st.lists(st.integers(8, 1 << 34), min_size=1))
def test_read_sizes_enclose_every_step(sizes: list[int]) -> None:
    powers = powers_of_two_around(sizes)
    assert powers[0] <= min(sizes) < 2 * powers[0]
    assert powers[-1] / 2 <= max(sizes) < powers[-1]
    assert all(b == 2 * a for a, b in pairwise(powers))


def test_the_read_limit_lies_between_its_neighbours() -> None:
    def measured(kv_bytes: int, us: float) -> dict[str, Any]:
        return {"kv_bytes": kv_bytes, "results": {"read_limit": {"status": "ok", "median_us": us}}}

    records = [measured(8, 10.0), measured(16, 14.0), measured(32, 24.0)]
    limit = estimates.read_limit(records)
    assert limit is not None
    assert [limit(kv_bytes) for kv_bytes in (8, 12, 16, 24)] == [10.0, 12.0, 14.0, 19.0]
    records[1]["results"]["read_limit"] = {"status": "missing", "detail": "no nvcc"}
    assert estimates.read_limit(records) is None


# --- the command -------------------------------------------------------------------------------------------

Call = Callable[[], Any]
ENVIRONMENT = {"gpu": "GPU", "sms": 4, "driver": "1", "torch": "2", "cuda": "13", "cudnn": 9}
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"t,{10 + 7 * i % 50},{1 + 5 * i % 9}\n" for i in range(20)
)


class ExactCall:
    """Attention by torch's SDPA, sequence by sequence; `slowness` is for the fake timer."""

    def __init__(self, case: Any, copy: int, factor: float, slowness: float) -> None:
        self.case, self.copy, self.factor, self.slowness = case, copy, factor, slowness

    def __call__(self) -> torch.Tensor:
        k, v = self.case.k[self.copy], self.case.v[self.copy]
        assert k.shape[:2] == (self.case.shape.batch, self.case.shape.max_tokens)
        rows = [
            torch.nn.functional.scaled_dot_product_attention(
                q[:, None], k[b, :n].transpose(0, 1), v[b, :n].transpose(0, 1), enable_gqa=True
            ).squeeze(1)
            for b, (q, n) in enumerate(zip(self.case.q, self.case.seqlens.tolist(), strict=True))
        ]
        return self.factor * torch.stack(rows)


def bind(case: Any, factor: float = 1.0, slowness: float = 1.0) -> list[Call]:
    return [ExactCall(case, copy, factor, slowness) for copy in range(len(case.k))]


def bind_missing(case: Any) -> list[Call]:
    raise Missing("no such package")


def bind_wrong_at_the_end(case: Any) -> list[Call]:
    """Wrong where the batch is below the limit of 5: in the last one of the steps that are measured."""
    return bind(case, factor=0.9 if case.shape.batch < 5 else 1.0, slowness=0.5)


def fake_times(calls: list[Any], kv_bytes: int, check: Callable[[Any], float]) -> dict[str, Any]:
    assert len(calls) * kv_bytes >= method.COLD_BYTES
    outputs = [call() for call in calls]
    check(outputs[0])
    # The copies are different memory.
    assert all(not torch.equal(before, after) for before, after in pairwise(outputs))
    us = calls[0].slowness * kv_bytes / 1000
    return {"median_us": us, "min_us": us, "max_us": us}


class FakeReadLimit:
    def __init__(self, folder: Path) -> None:
        pass

    def time(self, kv_bytes: int) -> tuple[method.Timing, str]:
        return method.Timing.of([kv_bytes / 1250], calls=1), "configuration"


class InProcess:
    """A supervisor that lets the worker run here, and is its connection."""

    def __init__(self, worker: Any, on_result: Any, on_ready: Any) -> None:
        self.worker, self.on_result, self.on_ready = worker, on_result, on_ready

    def run(self, steps: Sequence[Any]) -> None:
        self.worker(self, steps)

    def send(self, event: Any) -> None:
        if event.kind == "ready":
            self.on_ready(event.detail)
        elif event.kind == "result":
            assert not event.ends_worker
            self.on_result(event.step, event.detail)

    def close(self) -> None:
        pass


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A trace file; GPU, timers and implementations are fakes."""
    monkeypatch.setattr(method, "COLD_BYTES", 100_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(worker, "environment", lambda: ENVIRONMENT)
    monkeypatch.setattr(base_worker, "gpu_is_well", lambda: True)
    monkeypatch.setattr(base_worker, "ReadLimit", FakeReadLimit)
    monkeypatch.setattr(worker, "DEVICE", "cpu")
    monkeypatch.setattr(worker, "time_on_gpu", fake_times)
    monkeypatch.setattr("benchmarks.run.Supervisor", InProcess)
    for name in OUR_NAMES:
        set_bind(monkeypatch, name, bind)
    set_bind(monkeypatch, "fa3", partial(bind, slowness=1.25))
    set_bind(monkeypatch, NO_SPLIT, bind_missing)
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return path


def set_bind(monkeypatch: pytest.MonkeyPatch, name: str, function: Any) -> None:
    monkeypatch.setitem(IMPLEMENTATIONS, name, replace(IMPLEMENTATIONS[name], bind=function))


def run(trace: Path, *arguments: str) -> tuple[int, Any]:
    path = trace.with_name("run.json")
    options = ["--trace", str(trace), "--batch", "2", "5", "--heads", "70b/tp8", "--commit", "abc"]
    code = command.main([*options, "--steps", "5", "--json", str(path), *arguments])
    assert {file.name for file in trace.parent.iterdir()} == {"trace.csv", "run.json"}
    return code, json.loads(path.read_text())


def test_the_command_measures_and_reports(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = run(trace, "--peers", "fa3", NO_SPLIT)
    assert code == 0
    printed = capsys.readouterr().out
    assert document["command"] == (
        "python -m benchmarks.replay --trace trace.csv --steps 5 --batch 2 5 --heads 70b/tp8 "
        f"--peers fa3 {NO_SPLIT}"
    )
    first, second = document["replays"]
    assert (first["limit"], second["limit"]) == (2, 5)
    total = sum(size["weight"] for size in second["sampled"])
    assert total == second["steps"] > second["full_steps"]
    # The fake time of a step is its bytes / 1000, so the estimate is exact, but for rounding in the record.
    expected = pytest.approx((second["kv_bytes"] / 1e9, 0.0), rel=1e-5, abs=1e-8)
    assert estimates.seconds(second, LEANATTN) == expected
    assert "| " not in printed
    assert report.render(document) in printed
    assert any(
        line.split()[:4] == ["70b/tp8", "5", str(second["steps"]), "5"]
        and line.split()[7:] == ["80%", line.split()[8], "fa3", "1.250", "0.000", *["1.25"] * 4, "1.250"]
        for line in printed.splitlines()
    )
    assert f"{NO_SPLIT}: missing on 10 steps (70b/tp8 limit 2, 70b/tp8 limit 5): no such package" in printed
    assert "at least 1.250 in total" in printed


def test_the_table_comes_again_from_the_file(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, document = run(trace, "--peers", "fa3")
    capsys.readouterr()
    report.main([str(trace.with_name("run.json")), "--markdown"])
    printed = capsys.readouterr().out
    assert printed == report.render(document, markdown=True) + "\n"
    assert "| 70b/tp8 |     2 | fa3 " in printed


def test_one_wrong_step_takes_the_total(
    trace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_bind(monkeypatch, NO_SPLIT, bind_wrong_at_the_end)
    _, document = run(trace, "--peers", "fa3", NO_SPLIT, "--batch", "5")
    (replay,) = document["replays"]
    statuses = [sample["results"][NO_SPLIT]["status"] for sample in replay["sampled"]]
    assert statuses == ["ok"] * 4 + ["wrong"]
    assert estimates.seconds(replay, NO_SPLIT) is None
    assert estimates.best_peer(replay) == "fa3"  # although the other one is faster on four steps
    assert f"{NO_SPLIT}: wrong on 1 steps (70b/tp8 limit 5): row error 0.1, acc" in capsys.readouterr().out


def test_a_failure_of_leanattn_fails_the_run(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_bind(monkeypatch, LEANATTN, bind_wrong_at_the_end)
    code, document = run(trace, "--peers", "fa3", "--batch", "5")
    assert code == 1
    assert "fa3" in report.render(document)


def test_without_a_trace_requests_are_drawn() -> None:
    requests, source = command.requests_of(None)
    assert len(requests) == command.FALLBACK_REQUESTS
    assert "distribution" in source
    assert command.requests_of(None)[0] == requests


def test_arguments(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, message in (
        (["--steps", "0"], "expected a whole number >= 1, got '0'"),
        (["--steps", "2"], "at least 3 steps to measure, got 2"),
        (["--batch", "-3"], "expected a whole number >= 1, got '-3'"),
        (["--peers", LEANATTN], "invalid choice: 'leanattn'"),
        (["--peers", "sdpa_cudnn"], "invalid choice: 'sdpa_cudnn'"),  # uniform lengths only
        (["--trace", str(trace.with_name("none.csv"))], "No such file"),
    ):
        with pytest.raises(SystemExit, match="2"):
            command.main(wrong)
        assert message in capsys.readouterr().err
