"""What a replay's record says: totals, speed-ups and the share of the read limit, estimated from its steps.

All are made of times adjusted to the mean KV bytes (`sampling.adjusted`), so a speed-up is a ratio of totals.
"""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.peers import LEANATTN, PEER_NAMES, READ_LIMIT
from benchmarks.replay.plan import Record
from benchmarks.replay.sampling import Estimate, adjusted, ratio
from benchmarks.results import median

Times = Sequence[float]  # [samples] microseconds


class SpeedUp(NamedTuple):
    """Of ours over another: of the whole replay, and how it is spread over the steps."""

    total: Estimate
    deciles: list[float]  # 9 of them, over the steps
    least: float
    least_at: Record  # the step


def times(replay: Record, name: str) -> Times | None:
    """Of an implementation, None unless it was right and measured on every sampled step."""
    return all_medians(replay["sampled"], name)


def all_medians(records: Sequence[Record], name: str) -> Times | None:
    known = [us for record in records if (us := median(record, name)) is not None]
    return known if len(known) == len(records) else None


def mean_ratio(replay: Record, over: Times, under: Times) -> Estimate:
    """Of the means over all steps."""
    kv_bytes = [sample["kv_bytes"] for sample in replay["sampled"]]
    mean = replay["kv_bytes"] / replay["steps"]
    weights = [sample["weight"] for sample in replay["sampled"]]
    return ratio(weights, adjusted(over, kv_bytes, mean), adjusted(under, kv_bytes, mean))


def seconds(replay: Record, name: str) -> Estimate | None:
    """Attention time of all steps, one layer."""
    of_steps = times(replay, name)
    if of_steps is None:
        return None
    mean = mean_ratio(replay, of_steps, [1.0] * len(of_steps))
    return Estimate(*(replay["steps"] * value / 1e6 for value in mean))


def measured_names(replay: Record) -> list[str]:
    """Who has a total."""
    return [name for name in replay["sampled"][0]["results"] if times(replay, name) is not None]


def best_peer(replay: Record) -> str | None:
    """The peer with the least time in total: a server settles on one for all steps."""
    peers = [name for name in measured_names(replay) if name in PEER_NAMES]
    totals = [(total.value, name) for name in peers if (total := seconds(replay, name)) is not None]
    return min(totals)[1] if totals else None


def speed_up(replay: Record, over: str, of: str = LEANATTN) -> SpeedUp | None:
    ours, theirs = times(replay, of), times(replay, over)
    if ours is None or theirs is None:
        return None
    of_steps = [b / a for a, b in zip(ours, theirs, strict=True)]
    # Samples stand for equally many steps, but for one more or less.
    deciles = statistics.quantiles(of_steps, n=10, method="inclusive")
    least = min(of_steps)
    least_at = replay["sampled"][of_steps.index(least)]
    return SpeedUp(mean_ratio(replay, theirs, ours), deciles, least, least_at)


def read_limit(read_sizes: Sequence[Record]) -> Callable[[int], float] | None:
    """Microseconds of reading so many bytes, on straight lines between measured sizes; None if one failed."""
    limits = all_medians(read_sizes, READ_LIMIT)
    if limits is None:
        return None
    sizes = [record["kv_bytes"] for record in read_sizes]  # ascending, the first <= any step < the last

    def microseconds(kv_bytes: int) -> float:
        i = bisect_right(sizes, kv_bytes) - 1
        share: float = (kv_bytes - sizes[i]) / (sizes[i + 1] - sizes[i])
        return limits[i] + share * (limits[i + 1] - limits[i])

    return microseconds


def share_of_limit(replay: Record, read_sizes: Sequence[Record]) -> Estimate | None:
    """Time of only reading the KV bytes / time of leanattn, over all steps."""
    ours, limit = times(replay, LEANATTN), read_limit(read_sizes)
    if ours is None or limit is None:
        return None
    return mean_ratio(replay, [limit(sample["kv_bytes"]) for sample in replay["sampled"]], ours)
