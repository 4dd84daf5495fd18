"""Checks and times one implementation on one shape, and says what came out as a JSON-ready dictionary."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks.case import Case, reference, row_error
from benchmarks.method import IN_MODEL, calls_per_graph
from benchmarks.packages import Missing
from benchmarks.peers import Implementation
from benchmarks.timing import Call, GraphOfCalls, after_steps

Result = dict[str, Any]
Check = Callable[[Tensor], float]  # returns the error of an output, raises Wrong if it is too large

LONGEST_DETAIL = 500  # characters: a compiler's or CUDA's message can be pages


class Wrong(Exception):
    """An output that is too far from the reference."""


def checked_error(out: Tensor, expected: Tensor, tolerance: float) -> float:
    error = row_error(out, expected)
    if not error <= tolerance:  # NaN is wrong too
        raise Wrong(f"row error {error:.2g}, accepted {tolerance:.2g}")
    return error


def failure(error: Exception) -> Result:
    """The result of a measurement that raised `error`."""
    statuses = {Missing: "missing", Wrong: "wrong", NotImplementedError: "unsupported"}
    status = statuses.get(type(error), "failed")
    text = str(error) if status != "failed" else f"{type(error).__name__}: {error}"
    return {"status": status, "detail": text[:LONGEST_DETAIL]}


def time_on_gpu(calls: list[Call], kv_bytes: int, check: Check) -> Result:
    graph = GraphOfCalls(calls, calls_per_graph(kv_bytes))
    graph.result_of_copy_0.fill_(math.nan)
    timing = graph.time()
    check(graph.result_of_copy_0)
    return timing.as_dict()


class ShapeBench:
    """The case of one shape and its reference; measures implementations on them, one after the other."""

    def __init__(
        self,
        case: Case,
        tolerance: float,
        time_calls: Callable[[list[Call], int, Check], Result] = time_on_gpu,
        steps: list[Call] | None = None,
    ) -> None:
        """`steps`: per copy of the cache, what runs before a call in the timing "in a model"."""
        self.case = case
        self.kv_bytes = case.shape.kv_bytes(case.q.element_size())
        self.tolerance = tolerance
        self.time_calls = time_calls
        self.steps = steps
        self.expected = reference(case)  # as case.q, float64
        self.timing_failed = False  # a capture may be left half done

    def measure(self, implementation: Implementation) -> Result:
        reason = implementation.unsupported(self.case.shape)
        if reason is not None:
            return {"status": "unsupported", "detail": reason}
        timing = False
        try:
            self.case.fill_beyond_lengths(math.nan)
            calls = implementation.bind(self.case)
            nan_reaches_output = self._nan_reaches_output(calls)
            if nan_reaches_output:
                self.case.fill_beyond_lengths(0.0)
            error = self.check(calls[0]())
            timing = True
            times = self.time_calls(calls, self.kv_bytes, self.check)
            if self.steps is not None:
                stepped = after_steps(self.steps, calls)
                times[IN_MODEL] = self.time_calls(stepped, self.kv_bytes, self.check)
            if implementation.details is not None:
                times |= implementation.details(self.case)
        except Exception as failed:  # a peer may raise anything, and the others still want their turn
            self.timing_failed = timing and not isinstance(failed, Wrong)
            return failure(failed)
        return {"status": "ok", "row_error": error, "nan_reaches_output": nan_reaches_output, **times}

    def _nan_reaches_output(self, calls: list[Call]) -> bool:
        return self.case.shape.ragged and math.isnan(row_error(calls[0](), self.expected))

    def check(self, out: Tensor) -> float:
        """The error of an output; raises Wrong if it is too large."""
        return checked_error(out, self.expected, self.tolerance)
