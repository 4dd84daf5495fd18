"""Runs the measuring steps in a process of their own, so that a crash or a hang costs one step, not the run.

The worker process reports an event before and after each step. If it dies or falls silent, the supervisor
records that against the step under way and starts another worker for the steps that are left.
"""

import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Literal

# torch is imported and the GPU context made before the first step, perhaps from a cold disk.
START_SECONDS = 180.0
# The slowest measurement, no split at 512k tokens, takes about two seconds; but a peer's library may load or
# compile its kernels in a step.
STEP_SECONDS = 180.0
# From closing the connection, or from a kill, to the end of the process.
EXIT_SECONDS = 10.0
# A step that ends its worker costs a new start, so an implementation that does it again is given up.
ENDED_WORKERS_ALLOWED = 2

PREPARE = "prepare"  # stands for an implementation while the inputs of a shape are made


@dataclass(frozen=True)
class Step:
    shape: str
    implementation: str


@dataclass(frozen=True)
class Event:
    kind: Literal["ready", "begin", "result"]
    step: Step | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    ends_worker: bool = False  # the worker ends after this result, because the GPU context may be damaged


class WorkerFailed(Exception):
    """A worker that can't start, or gets nowhere."""


Worker = Callable[[Connection, Sequence[Step]], None]
Report = Callable[[Step, dict[str, Any]], None]


def exit_text(code: int | None) -> str:
    if code is not None and code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with exit code {code}"


class Supervisor:
    """`worker` runs in a fresh process, which imports it; `report` gets the result of each step, once."""

    def __init__(
        self,
        worker: Worker,
        report: Report,
        on_ready: Callable[[dict[str, Any]], None],
        start_seconds: float = START_SECONDS,
        step_seconds: float = STEP_SECONDS,
    ) -> None:
        self.worker = worker
        self.report = report
        self.on_ready = on_ready
        self.start_seconds = start_seconds
        self.step_seconds = step_seconds
        self.pending: list[Step] = []
        self.ended_workers: Counter[str] = Counter()

    def run(self, steps: Iterable[Step]) -> None:
        self.pending = list(steps)
        while self.pending:
            left = len(self.pending)
            how_it_ended = self._run_worker()
            if len(self.pending) == left:
                raise WorkerFailed(f"a worker ended without a result: {how_it_ended}")

    def _run_worker(self) -> str:
        context = multiprocessing.get_context("spawn")  # a forked process can't use CUDA
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=self.worker, args=(sender, tuple(self.pending)), daemon=True)
        process.start()
        sender.close()  # the worker's end is the only one left, so its death is an EOFError here
        try:
            under_way, failure = self._follow(receiver)
            if failure is None:
                process.join(EXIT_SECONDS)
                failure = {"status": "crashed", "detail": exit_text(process.exitcode)}
        finally:
            process.kill()
            process.join(EXIT_SECONDS)
        if under_way is not None:
            self._blame(under_way, failure)
        return str(failure["detail"])

    def _follow(self, receiver: Connection) -> tuple[Step | None, dict[str, Any] | None]:
        """Handles events until the worker ends or is too slow; then returns the step under way and why."""
        under_way: Step | None = None
        seconds = self.start_seconds
        while receiver.poll(seconds):
            try:
                event: Event = receiver.recv()
            except EOFError:
                return under_way, None
            seconds = self.step_seconds
            if event.kind == "ready":
                self.on_ready(event.detail)
            under_way = event.step if event.kind == "begin" else None
            if event.kind == "result" and event.step is not None:
                self._finish(event.step, event.detail)
                if event.ends_worker:
                    self._count_end(event.step)
        return under_way, {"status": "timed out", "detail": f"no answer within {seconds:g} s"}

    def _finish(self, step: Step, result: dict[str, Any]) -> None:
        self.pending.remove(step)
        self.report(step, result)

    def _blame(self, step: Step, failure: dict[str, Any]) -> None:
        if step.implementation == PREPARE:
            for affected in [other for other in self.pending if other.shape == step.shape]:
                self._finish(affected, failure)
        else:
            self._finish(step, failure)
            self._count_end(step)

    def _count_end(self, step: Step) -> None:
        self.ended_workers[step.implementation] += 1
        if self.ended_workers[step.implementation] < ENDED_WORKERS_ALLOWED:
            return
        given_up = {"status": "given up", "detail": f"it ended {ENDED_WORKERS_ALLOWED} workers before"}
        for affected in [other for other in self.pending if other.implementation == step.implementation]:
            self._finish(affected, given_up)
