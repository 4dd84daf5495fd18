"""The process that uses the GPU: that of benchmarks.worker, but for memory that all shapes share."""

import itertools
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks import worker
from benchmarks.environment import environment
from benchmarks.measure import ShapeBench, time_on_gpu
from benchmarks.method import TOLERANCE
from benchmarks.peers import IMPLEMENTATIONS, READ_LIMIT
from benchmarks.replay.cases import Pool
from benchmarks.replay.plan import DTYPE, SET_NAME
from benchmarks.shapes import Shape
from benchmarks.supervisor import PREPARE, Event, Step

DEVICE = "cuda"


class Measurements(worker.Measurements):
    """Measures implementations on the steps of replays; the read limit is left to the base class."""

    def __init__(self, connection: Connection, shapes: Mapping[str, Shape], folder: Path) -> None:
        super().__init__(connection, DTYPE, folder)
        self.shapes = shapes
        self.pool: Pool | None = None  # made after the read limits are known, whose tensors need room too

    def run(self, shape_name: str, names: list[str]) -> bool:
        """Returns False if the worker has to end."""
        shape = self.shapes[shape_name]
        if READ_LIMIT in names:
            return self.run_shape(shape, names)
        self.connection.send(Event("begin", Step(shape_name, PREPARE)))
        if self.pool is None:
            of_replays = [shape for shape in self.shapes.values() if shape.set_name == SET_NAME]
            self.pool = Pool(of_replays, worker.DTYPES[DTYPE], DEVICE)
        bench = ShapeBench(self.pool.case(shape), TOLERANCE[DTYPE], time_on_gpu)
        for name in names:
            step = Step(shape_name, name)
            self.connection.send(Event("begin", step))
            if not self._finish(step, bench.measure(IMPLEMENTATIONS[name]), bench.timing_failed):
                return False
        return True


def run_steps(
    connection: Connection, steps: Sequence[Step], shapes: Mapping[str, Shape], folder: Path
) -> None:
    """Entry of the process."""
    if not torch.cuda.is_available():
        sys.exit("benchmarks.replay: torch finds no CUDA GPU")
    connection.send(Event("ready", detail=environment()))
    measurements = Measurements(connection, shapes, folder)
    for shape_name, of_shape in itertools.groupby(steps, key=lambda step: step.shape):
        if not measurements.run(shape_name, [step.implementation for step in of_shape]):
            break
        torch.cuda.empty_cache()
    connection.close()
