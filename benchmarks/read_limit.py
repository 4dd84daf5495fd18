"""The read limit: the time of a kernel that only reads as many bytes, the best of several configurations."""

import ctypes
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.cuda_source import load
from benchmarks.method import Timing, calls_per_graph, copies_for
from benchmarks.timing import Call, GraphOfCalls

SOURCE = Path(__file__).with_name("read_limit.cu")


class Configuration(NamedTuple):
    threads: int  # of a CTA
    ctas: int  # of an SM
    loads: int  # of a thread, independent of each other

    def __str__(self) -> str:
        return f"{self.ctas} CTAs an SM x {self.threads} threads x {self.loads} loads"


# Half and all of the 2048 threads of an SM, in large and in small CTAs; which is best depends on the size.
CONFIGURATIONS = tuple(
    Configuration(threads, ctas, loads)
    for threads, ctas in ((1024, 1), (1024, 2), (256, 8))
    for loads in (2, 4, 8)
)


class ReadLimit:
    def __init__(self, folder: Path) -> None:
        self.launch = load(SOURCE, folder).read_limit_launch
        self.launch.argtypes = [
            *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int, ctypes.c_int),
            *(ctypes.c_void_p, ctypes.c_void_p),
        ]
        self.launch.restype = ctypes.c_int
        self.sms = torch.cuda.get_device_properties().multi_processor_count
        self.total = torch.zeros(1, dtype=torch.int32, device="cuda")

    def read(self, data: Tensor, configuration: Configuration, total: Tensor | None = None) -> Tensor:
        """Queues one read of `data` [int64 words]; adds the sum of its 32-bit words to `total` if given."""
        stream = torch.cuda.current_stream().cuda_stream
        total_or_null = None if total is None else total.data_ptr()
        blocks = configuration.ctas * self.sms
        error = self.launch(
            *(data.data_ptr(), data.nbytes, blocks, configuration.threads, configuration.loads),
            *(total_or_null, stream),
        )
        if error != 0:
            raise RuntimeError(f"read_limit_launch: CUDA error {error}")
        return self.total

    def check(self, data: Tensor, configuration: Configuration) -> None:
        """Raises unless the kernel reads every word of `data` once."""
        self.total.zero_()
        self.read(data, configuration, self.total)
        expected = int(data.view(torch.int32).sum(dtype=torch.int64)) % 2**32
        if int(self.total) % 2**32 != expected:
            raise RuntimeError(f"read_limit with {configuration} did not read everything")

    def time(self, kv_bytes: int) -> tuple[Timing, Configuration]:
        """Time of reading `kv_bytes`, rotated like a cache of that size, and the best configuration."""
        data = torch.empty(copies_for(kv_bytes), kv_bytes // 8, dtype=torch.int64, device="cuda").random_()
        timings = {}
        for configuration in CONFIGURATIONS:
            self.check(data[-1], configuration)
            calls_by_copy: list[Call] = [partial(self.read, copy, configuration) for copy in data]
            timings[configuration] = GraphOfCalls(calls_by_copy, calls_per_graph(kv_bytes)).time()
        best = min(timings, key=lambda configuration: timings[configuration].median_us)
        return timings[best], best


@cache
def read_limit() -> ReadLimit:
    with TemporaryDirectory() as folder:  # what is loaded from there stays
        return ReadLimit(Path(folder))
