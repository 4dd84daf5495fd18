"""Supervision of the benchmarks' worker process: a crash or a hang costs its own step only."""

import os
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import pytest

from benchmarks.supervisor import PREPARE, Event, Step, Supervisor, WorkerFailed

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
