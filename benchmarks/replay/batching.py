"""Continuous batching: which requests of a trace decode together, step by step. Without torch.

The loop is closed: every request waits from the start, and a slot that falls free is filled at once with the
next one, in the order of the trace. Its context is in the cache by then; prefill takes no step. In a step
each running request appends one token to the cache and attends to all it has there, that token included. Near
the end nobody waits any more and the batch shrinks; a slot without a request is not part of it.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from leanattn.lengths import Request  # that module imports torch


class Admission(NamedTuple):
    """A request's place: its slot in the batch, and the step that generates its first token."""

    request: Request
    slot: int
    first_step: int

    @property
    def end(self) -> int:
        """The step in which the slot is free again."""
        return self.first_step + self.request.generated

    def kv_length(self, step: int) -> int:
        return self.request.context + step - self.first_step + 1


class Replay:
    """All steps of a trace at a batch limit. No step is stored: one's lengths are found when asked for."""

    def __init__(self, requests: Sequence[Request], limit: int) -> None:
        free = [(0, slot) for slot in range(limit)]  # a heap: when which slot is free
        self.admissions: list[Admission] = []  # in the order of their first steps, as the slots fall free
        for request in requests:
            step, slot = free[0]
            self.admissions.append(Admission(request, slot, step))
            heapq.heapreplace(free, (step + request.generated, slot))
        self.full_steps = free[0][0]  # before the first slot that nobody takes again
        self.steps = max(step for step, _ in free)
        self.kv_tokens = sum(  # of all steps: context + 1, context + 2, ..., context + generated
            request.generated * request.context + request.generated * (request.generated + 1) // 2
            for request in requests
        )
        self._first_steps = [admission.first_step for admission in self.admissions]
        self._longest = max(request.generated for request in requests)

    def lengths(self, step: int) -> tuple[int, ...]:
        """KV lengths [running requests] of a step, in the order of the slots."""
        # Who began earlier than that has ended, who begins later has not begun.
        begin = bisect_right(self._first_steps, step - self._longest)
        end = bisect_right(self._first_steps, step)
        running = [admission for admission in self.admissions[begin:end] if step < admission.end]
        running.sort(key=lambda admission: admission.slot)
        return tuple(admission.kv_length(step) for admission in running)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return map(self.lengths, range(self.steps))
