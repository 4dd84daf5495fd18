"""Times calls on the GPU: a CUDA graph of back-to-back calls over the copies of the cache, replayed."""

import itertools
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.method import REPLAYS, WARM_UP_REPLAYS, Timing

Call = Callable[[], torch.Tensor]


def after_steps(steps: list[Call], calls: list[Call]) -> list[Call]:
    """Each call behind the step of the same copy."""

    def both(step: Call, call: Call) -> torch.Tensor:
        step()
        return call()

    return [partial(both, step, call) for step, call in zip(steps, calls, strict=True)]


class GraphOfCalls:
    """`calls` captured back to back: calls_by_copy[0], [1], ..., and again from [0]."""

    def __init__(self, calls_by_copy: list[Call], calls: int) -> None:
        self.calls = calls
        self.graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # whatever a first call sets up must not fall into the capture
            for call in calls_by_copy:
                call()
        torch.cuda.synchronize()
        with torch.cuda.graph(self.graph, stream=stream):
            for i in range(calls):
                result = calls_by_copy[i % len(calls_by_copy)]()
                if i == calls - len(calls_by_copy):
                    # Of the last call on copy 0. Holding it keeps later calls of the graph from its memory.
                    self.result_of_copy_0 = result

    def time(self) -> Timing:
        # All replays are queued at once: the host runs ahead of the GPU and never lets it wait.
        for _ in range(WARM_UP_REPLAYS):
            self.graph.replay()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 1)]
        events[0].record()
        for event in events[1:]:
            self.graph.replay()
            event.record()
        torch.cuda.synchronize()
        replay_ms = [before.elapsed_time(after) for before, after in itertools.pairwise(events)]
        return Timing.of([1000.0 * ms for ms in replay_ms], self.calls)
