"""The worker's order of events, with a CPU in place of the GPU: nothing is timed."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import measure, method, shapes, worker
from benchmarks.case import Case
from benchmarks.measure import ShapeBench
from benchmarks.method import IN_MODEL
from benchmarks.packages import Missing
from benchmarks.peers import LEANATTN, READ_LIMIT, STEP
from benchmarks.supervisor import PREPARE, Event, Step
from benchmarks.timing import Call

SHAPE = shapes.Shape("test", "small", shapes.Heads(query=4, kv=2, dim=64), lengths=(100, 100))
TIMES = {"median_us": 1.0}


class FakeReadLimit:
    def __init__(self, folder: Path) -> None:
        raise Missing("no nvcc")


class FakeStepKernel:
    def __init__(self, folder: Path) -> None:
        pass

    def bind(self, case: Case) -> list[Call]:
        return [lambda: case.q for _ in case.k]


class Connection:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def send(self, event: Event) -> None:
        self.events.append(event)


def fake_times(calls: list[Call], kv_bytes: int, check: measure.Check) -> dict[str, Any]:
    check(calls[0]())
    return dict(TIMES)


class FakeGraph:
    def __init__(self, calls: list[Call], count: int) -> None:
        pass

    def time(self) -> method.Timing:
        return method.Timing.of([10.0], calls=10)


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Connection:
    on_cpu = Case.random
    monkeypatch.setattr(Case, "random", staticmethod(lambda shape, dtype, _: on_cpu(shape, dtype, "cpu")))
    monkeypatch.setattr(worker, "ShapeBench", partial(ShapeBench, time_calls=fake_times))
    monkeypatch.setattr(worker, "ReadLimit", FakeReadLimit)
    monkeypatch.setattr(worker, "StepKernel", FakeStepKernel)
    monkeypatch.setattr(worker, "GraphOfCalls", FakeGraph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(method, "COLD_BYTES", 200_000)
    return Connection()


def run(connection: Any) -> list[Event]:
    measurements = worker.Measurements(connection, "bf16", Path("nowhere"))
    assert measurements.run_shape(SHAPE, [READ_LIMIT, STEP, LEANATTN])
    return list(connection.events)


def test_every_step_begins_and_has_a_result(connection: Connection) -> None:
    events = run(connection)
    assert [(event.kind, event.step) for event in events] == [
        *((kind, Step(SHAPE.name, READ_LIMIT)) for kind in ("begin", "result")),
        ("begin", Step(SHAPE.name, PREPARE)),
        *((kind, Step(SHAPE.name, name)) for name in (STEP, LEANATTN) for kind in ("begin", "result")),
    ]
    limit, step, ours = (event.detail for event in events if event.kind == "result")
    assert limit == {"status": "missing", "detail": "no nvcc"}
    assert (step["status"], step["median_us"]) == ("ok", 1.0)
    assert (ours["status"], ours["median_us"], ours[IN_MODEL]) == ("ok", 1.0, TIMES)


def test_without_the_step_kernel_calls_are_timed_back_to_back(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "StepKernel", FakeReadLimit)
    _, step, ours = (event.detail for event in run(connection) if event.kind == "result")
    assert step == {"status": "missing", "detail": "no nvcc"}
    assert (ours["status"], ours["median_us"]) == ("ok", 1.0)
    assert IN_MODEL not in ours
