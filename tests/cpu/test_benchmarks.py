"""The GPU benchmark without a GPU: shapes, method, checks, supervision of the worker, record and report."""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from benchmarks import decode, method, report, shapes
from benchmarks.peers import LEANATTN, PEER_NAMES, READ_LIMIT, Implementation, Missing
from benchmarks.supervisor import PREPARE, Event, Step, Supervisor, WorkerFailed

# --- shapes and method -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "megabytes"),
    [
        ("llama8b B1 1k", 4.2),
        ("llama8b B8 32k", 1073.7),
        ("70b/tp8 B1 64k", 33.6),
        ("mha32 B1 256k", 4295.0),
        ("mha56 d64 B1 6k", 88.1),
        ("llama8b 1x128k+15x2k", 662.7),
        ("llama8b lognormal B32", 799.1),
        ("llama8b zipf B64", 1277.8),
        ("70b/tp8 lognormal B32", 99.9),
        ("llama8b short B256", 260.0),
    ],
)
def test_shapes_hold_as_much_as_their_names_say(name: str, megabytes: float) -> None:
    (shape,) = [shape for shape in shapes.SHAPES if shape.name == name]
    assert shape.kv_bytes(element_bytes=2) / 1e6 == pytest.approx(megabytes, abs=0.051)


def test_names_are_unique_and_selection_keeps_the_order() -> None:
    assert len({shape.name for shape in shapes.SHAPES}) == len(shapes.SHAPES)
    assert shapes.select() == list(shapes.SHAPES)
    assert {shape.set_name for shape in shapes.select(["ragged", "d64"])} == {"ragged", "d64"}
    assert {shape.set_name for shape in shapes.select(quick=True)} == set(shapes.SET_NAMES)


def test_awkward_batches_come_with_eight_heads_and_with_one() -> None:
    awkward = shapes.select(["awkward"])
    found = {(shape.batch, shape.heads.kv) for shape in awkward}
    assert found == {(batch, heads) for batch in (3, 17, 20, 34) for heads in (8, 1)}


@pytest.mark.parametrize("shape", shapes.SHAPES, ids=lambda shape: shape.name)
def test_rotation_leaves_the_cache_cold_and_goes_round_whole(shape: shapes.Shape) -> None:
    kv_bytes = shape.kv_bytes(element_bytes=2)
    copies, calls = method.copies_for(kv_bytes), method.calls_per_graph(kv_bytes)
    assert copies * kv_bytes >= method.COLD_BYTES
    assert calls % copies == 0
    assert method.MIN_CALLS <= calls <= method.MAX_CALLS + copies / 2


def test_timing_is_per_call() -> None:
    timing = method.Timing.of([300.0, 100.0, 200.0], calls=10)
    assert (timing.median_us, timing.min_us, timing.max_us, timing.replays) == (20.0, 10.0, 30.0, 3)


# --- checks against the reference ---------------------------------------------------------------------------

Call = Callable[[], Any]
HEADS = shapes.Heads(query=8, kv=2, dim=64)
RAGGED = shapes.Shape("test", "ragged", HEADS, lengths=(1, 37, 130))


def exact(case: Any) -> list[Call]:
    import torch

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


def raises(case: Any) -> list[Call]:
    raise RuntimeError("no kernel for this shape")


def five_percent_off(case: Any) -> list[Call]:
    return [partial(lambda right: 1.05 * right(), right) for right in exact(case)]


@pytest.fixture
def small_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "COLD_BYTES", 200_000)


def make_bench(time_calls: Any) -> Any:
    import torch

    from benchmarks.case import Case
    from benchmarks.measure import ShapeBench

    return ShapeBench(Case.random(RAGGED, torch.bfloat16, "cpu"), method.TOLERANCE["bf16"], time_calls)


def fake_times(calls: list[Call], kv_bytes: int, check: Callable[[Any], float]) -> dict[str, Any]:
    check(calls[0]())
    return {"median_us": 1.0, "copies_seen": len(calls)}


@pytest.mark.parametrize(
    ("bind", "status"),
    [
        (exact, "ok"),
        (reads_beyond_lengths, "ok"),
        (not_installed, "missing"),
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


# --- supervision ------------------------------------------------------------------------------------------

STEPS = [Step(shape, name) for shape in ("A", "B", "C") for name in ("good", "crash", "hang", "good 2")]


def misbehaving_worker(connection: Connection, steps: Sequence[Step]) -> None:
    connection.send(Event("ready", detail={"pid": os.getpid()}))
    for step in steps:
        connection.send(Event("begin", step))
        if step.implementation == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if step.implementation == "hang":
            time.sleep(60)
        connection.send(Event("result", step, {"status": "ok"}))
    connection.close()


def stumbling_worker(connection: Connection, steps: Sequence[Step]) -> None:
    """Can't make the inputs of shape A; ends after each result of "bad", as if the GPU had failed."""
    connection.send(Event("ready"))
    connection.send(Event("begin", Step(steps[0].shape, PREPARE)))
    if steps[0].shape == "A":
        raise SystemExit(3)
    for step in steps:
        connection.send(Event("begin", step))
        connection.send(Event("result", step, {"status": "ok"}, ends_worker=step.implementation == "bad"))
        if step.implementation == "bad":
            return


def stillborn_worker(connection: Connection, steps: Sequence[Step]) -> None:
    raise SystemExit(5)


def supervise(worker: Any, steps: Sequence[Step], **limits: float) -> tuple[list[Step], dict[Step, Any], int]:
    order: list[Step] = []
    results: dict[Step, Any] = {}
    workers: list[Any] = []

    def on_result(step: Step, result: dict[str, Any]) -> None:
        order.append(step)
        results[step] = result

    Supervisor(worker, on_result, workers.append, **limits).run(steps)
    return order, results, len(workers)


def test_crashes_and_hangs_cost_their_own_step_only() -> None:
    order, results, workers = supervise(misbehaving_worker, STEPS, step_seconds=2.0)
    assert sorted(map(str, order)) == sorted(map(str, STEPS))
    for step in STEPS:
        if step.implementation.startswith("good"):
            assert results[step] == {"status": "ok"}
    assert results[Step("A", "crash")]["status"] == "crashed"
    assert "SIGKILL" in results[Step("A", "crash")]["detail"]
    assert results[Step("A", "hang")]["status"] == "timed out"
    # Twice is enough: nobody waits for the third.
    assert results[Step("C", "crash")]["status"] == results[Step("C", "hang")]["status"] == "given up"
    assert workers == 5


def test_a_shape_whose_inputs_fail_is_left_out() -> None:
    steps = [Step(shape, name) for shape in ("A", "B", "C", "D") for name in ("bad", "good")]
    _, results, workers = supervise(stumbling_worker, steps)
    status = {(step.shape, step.implementation): result["status"] for step, result in results.items()}
    assert status["A", "bad"] == status["A", "good"] == "crashed"
    assert "exit code 3" in results[Step("A", "good")]["detail"]
    assert [status[shape, "bad"] for shape in "BCD"] == ["ok", "ok", "given up"]
    assert all(status[shape, "good"] == "ok" for shape in "BCD")
    assert workers == 4


def test_a_worker_that_cannot_start_is_an_error() -> None:
    with pytest.raises(WorkerFailed, match="exit code 5"):
        supervise(stillborn_worker, STEPS)


# --- record and report ------------------------------------------------------------------------------------

ENVIRONMENT = {"gpu": "GPU", "sms": 4, "driver": "1", "torch": "2", "cuda": "13", "cudnn": 9}
MICROSECONDS = {READ_LIMIT: 60.0, LEANATTN: 64.0, "sdpa_cudnn": 67.2, "fa3": 76.8, "fa3_no_split": 640.0}


def fake_result(step: Step) -> dict[str, Any]:
    us = MICROSECONDS.get(step.implementation)
    if us is None:
        return {"status": "missing", "detail": "not here"}
    times = {"median_us": us, "min_us": us - 1.0, "max_us": us + 2.0}
    return {"status": "ok", "nan_reaches_output": step.implementation == "fa3", **times}


class FakeSupervisor:
    def __init__(self, worker: Any, on_result: Any, on_ready: Any) -> None:
        self.on_result, self.on_ready = on_result, on_ready

    def run(self, steps: Sequence[Step]) -> None:
        self.on_ready(ENVIRONMENT)
        for step in steps:
            self.on_result(step, fake_result(step))


def run_decode(monkeypatch: pytest.MonkeyPatch, path: Path, *arguments: str) -> tuple[int, Any]:
    monkeypatch.setattr(decode, "Supervisor", FakeSupervisor)
    code = decode.main([*arguments, "--json", str(path), "--commit", "abc"])
    return code, json.loads(path.read_text())


def test_the_record_holds_everything_the_table_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = run_decode(monkeypatch, tmp_path / "run.json", "--quick", "--set", "d64", "ragged")
    printed = capsys.readouterr().out
    assert code == 0
    assert document["command"] == "python -m benchmarks.decode --quick --set d64 ragged --dtype bf16"
    assert document["commit"] == "abc"
    assert document["environment"] == ENVIRONMENT
    assert [shape["name"] for shape in document["shapes"]] == [
        shape.name for shape in shapes.select(["d64", "ragged"], quick=True)
    ]
    assert report.render(document) in printed
    assert list(tmp_path.iterdir()) == [tmp_path / "run.json"]


def test_the_table_compares_with_limit_and_peers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    _, document = run_decode(monkeypatch, path, "--quick", "--set", "d64")
    cells = report.row(document["shapes"][0])
    assert cells[2:] == (
        *("536.9", "60.0", "62.7", "64.0", "3.1", "94%"),
        *("67.2", "sdpa_cudnn", "1.05", "1.20", "10.00"),
    )
    monkeypatch.setattr("sys.argv", ["report", str(path), "--markdown"])
    capsys.readouterr()
    report.main()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("| d64 | mha32 d64 B1 64k |") for line in lines)
    assert any("at least 93.8% (mha32 d64 B1 64k)" in line for line in lines)
    assert any("no split: 10.00 in geometric mean of 1 shapes" in line for line in lines)
    assert any("sdpa_flash: missing on all: not here" in line for line in lines)
    assert any(line.startswith("- fa3: note on all: measured with zeros") for line in lines)


def test_slower_rows_and_unmeasured_rows_are_named() -> None:
    def record(name: str, **microseconds: float) -> report.ShapeRecord:
        results = {
            key: {"status": "ok", "median_us": us, "min_us": us, "max_us": us}
            for key, us in microseconds.items()
        }
        return {"set": "s", "name": name, "kv_bytes": 10**9, "results": results}

    slow, alone = record("slow", leanattn=20.0, fa3_no_split=10.0), record("alone", leanattn=5.0)
    assert report.best_peer(alone) == (None, "-")
    assert report.row(alone)[-5:] == ("-", "-", "-", "-", "-")
    assert report.share_totals([slow, alone]) == []
    totals = report.speed_up_totals([slow, alone])
    assert any("over no split: 0.50" in line and "slower on slow (0.50)" in line for line in totals)


def test_a_failure_of_leanattn_fails_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(MICROSECONDS, LEANATTN)
    code, document = run_decode(monkeypatch, tmp_path / "run.json", "--quick", "--set", "d64", "--peers")
    assert code == 1
    assert set(document["shapes"][0]["results"]) == {READ_LIMIT, LEANATTN}


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    args = decode.parse(["--peers", "fa3", "sdpa_cudnn", "--dtype", "fp16"])
    assert (args.peers, args.dtype, args.set, args.quick) == (["fa3", "sdpa_cudnn"], "fp16", None, False)
    for wrong in (["--set", "nonsense"], ["--peers", LEANATTN], ["--dtype", "int8"]):
        with pytest.raises(SystemExit):
            decode.parse(wrong)
    errors = capsys.readouterr().err
    assert all(name in errors for name in PEER_NAMES)
