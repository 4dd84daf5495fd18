"""The process that uses the GPU: runs the steps it is given, with an event before and after each.

It ends as soon as the GPU context may be damaged; the supervisor then starts another for the steps left.
"""

import itertools
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.case import Case
from benchmarks.measure import Result, ShapeBench, failure
from benchmarks.method import ELEMENT_BYTES, TOLERANCE
from benchmarks.peers import IMPLEMENTATIONS, READ_LIMIT
from benchmarks.read_limit import ReadLimit
from benchmarks.shapes import SHAPES, Shape
from benchmarks.supervisor import PREPARE, Event, Step

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def driver_version() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    gpu = torch.cuda.get_device_properties()
    return {
        "gpu": gpu.name,
        "sms": gpu.multi_processor_count,
        "memory_bytes": gpu.total_memory,
        "l2_bytes": gpu.L2_cache_size,
        "driver": driver_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "packages": {name: package_version(name) for name in ("leanattn", "fa3-fwd", "flash-attn-3")},
    }


def gpu_is_well() -> bool:
    try:
        torch.cuda.synchronize()
    except RuntimeError:  # an error of an earlier kernel stays until the process ends
        return False
    return True


class Measurements:
    """What lasts from step to step: the read limits measured so far and the inputs of the current shape."""

    def __init__(self, connection: Connection, dtype: str, folder: Path) -> None:
        self.connection = connection
        self.dtype = dtype
        self.folder = folder
        self.read_limit: ReadLimit | None = None
        self.limits: dict[int, Result] = {}  # by bytes: many shapes read equally much
        self.no_limits: Result | None = None  # why they can't be measured, once that is known

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
        bench = ShapeBench(Case.random(shape, DTYPES[self.dtype], "cuda"), TOLERANCE[self.dtype])
        for name in names:
            step = Step(shape.name, name)
            self.connection.send(Event("begin", step))
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


def run_steps(connection: Connection, steps: Sequence[Step], dtype: str, folder: Path) -> None:
    """Entry of the process."""
    if not torch.cuda.is_available():
        sys.exit("benchmarks.decode: torch finds no CUDA GPU")
    connection.send(Event("ready", detail=environment()))
    measurements = Measurements(connection, dtype, folder)
    shapes = {shape.name: shape for shape in SHAPES}
    for shape_name, of_shape in itertools.groupby(steps, key=lambda step: step.shape):
        if not measurements.run_shape(shapes[shape_name], [step.implementation for step in of_shape]):
            break
        torch.cuda.empty_cache()
    connection.close()
