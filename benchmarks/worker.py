"""The process that uses the GPU: runs the steps it is given, with an event before and after each.

It ends as soon as the GPU context may be damaged; the supervisor then starts another for the steps left.
"""

import itertools
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.case import Case
from benchmarks.environment import environment
from benchmarks.measure import Result, ShapeBench, failure
from benchmarks.method import ELEMENT_BYTES, TOLERANCE, calls_per_graph
from benchmarks.peers import IMPLEMENTATIONS, READ_LIMIT, STEP
from benchmarks.read_limit import ReadLimit
from benchmarks.shapes import Shape
from benchmarks.step_kernel import StepKernel
from benchmarks.supervisor import PREPARE, Event, Step
from benchmarks.timing import Call, GraphOfCalls

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def gpu_is_well() -> bool:
    try:
        torch.cuda.synchronize()
    except RuntimeError:  # an error of an earlier kernel stays until the process ends
        return False
    return True


class Measurements:
    """What lasts from shape to shape: read limits measured so far, and the benchmark's own kernels."""

    def __init__(self, connection: Connection, dtype: str, folder: Path) -> None:
        self.connection = connection
        self.dtype = dtype
        self.folder = folder
        self.read_limit: ReadLimit | None = None
        self.limits: dict[int, Result] = {}  # by bytes: many shapes read equally much
        self.no_limits: Result | None = None  # why they can't be measured, once that is known
        self.step_kernel: StepKernel | None = None
        self.no_steps: Result | None = None  # why calls can't be timed as in a model, once that is known

    def run_shape(self, shape: Shape, names: list[str]) -> bool:
        """Returns False if the worker has to end."""
        if READ_LIMIT in names:  # first, while the cache does not take its memory yet
            step = Step(shape.name, READ_LIMIT)
            self.connection.send(Event("begin", step))
            result = self._time_reading(shape.kv_bytes(ELEMENT_BYTES[self.dtype]))
            if not self._finish(step, result, result["status"] == "failed"):
                return False
        names = [name for name in names if name != READ_LIMIT]
        if not names:
            return True
        self.connection.send(Event("begin", Step(shape.name, PREPARE)))
        case = Case.random(shape, DTYPES[self.dtype], "cuda")
        steps = self._bind_steps(case)
        bench = ShapeBench(case, TOLERANCE[self.dtype], steps=steps)
        for name in names:
            step = Step(shape.name, name)
            self.connection.send(Event("begin", step))
            if name == STEP:
                result = self._time_steps(steps, bench.kv_bytes)
            else:
                result = bench.measure(IMPLEMENTATIONS[name])
            if not self._finish(step, result, bench.timing_failed):
                return False
        return True

    def _finish(self, step: Step, result: Result, context_suspect: bool) -> bool:
        ends = context_suspect or not gpu_is_well()
        self.connection.send(Event("result", step, result, ends_worker=ends))
        return not ends

    def _time_reading(self, kv_bytes: int) -> Result:
        if kv_bytes not in self.limits and self.no_limits is None:
            try:
                self.read_limit = self.read_limit or ReadLimit(self.folder)
                timing, configuration = self.read_limit.time(kv_bytes)
            except Exception as error:  # the comparison with the peers goes on without a limit
                self.no_limits = failure(error)
            else:
                result = {"status": "ok", **timing.as_dict(), "configuration": str(configuration)}
                self.limits[kv_bytes] = result
        return self.limits.get(kv_bytes) or self.no_limits or {}

    def _bind_steps(self, case: Case) -> list[Call] | None:
        if self.no_steps is None:
            try:
                self.step_kernel = self.step_kernel or StepKernel(self.folder)
                return self.step_kernel.bind(case)
            except Exception as error:  # calls back to back can still be timed
                self.no_steps = failure(error)
        return None

    def _time_steps(self, steps: list[Call] | None, kv_bytes: int) -> Result:
        """The small kernel alone, in the same rotation."""
        if steps is None:
            return self.no_steps or {}
        return {"status": "ok", **GraphOfCalls(steps, calls_per_graph(kv_bytes)).time().as_dict()}


def run_steps(
    connection: Connection, steps: Sequence[Step], shapes: Sequence[Shape], dtype: str, folder: Path
) -> None:
    """Entry of the process."""
    if not torch.cuda.is_available():
        sys.exit("benchmarks.decode: torch finds no CUDA GPU")
    connection.send(Event("ready", detail=environment()))
    measurements = Measurements(connection, dtype, folder)
    shape_of = {shape.name: shape for shape in shapes}
    for shape_name, of_shape in itertools.groupby(steps, key=lambda step: step.shape):
        if not measurements.run_shape(shape_of[shape_name], [step.implementation for step in of_shape]):
            break
        torch.cuda.empty_cache()
    connection.close()
