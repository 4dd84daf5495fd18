"""How a time is taken: the numbers of the method and what follows from them. Without torch."""

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any

ELEMENT_BYTES = {"bf16": 2, "fp16": 2}

IN_MODEL = "in_model"  # of a result: the times of the second timing

# Two uses of the same bytes lie at least this far apart: four times the 60 MB of L2 of an H200.
COLD_BYTES = 240_000_000

REPLAYS = 7
WARM_UP_REPLAYS = 5

# A graph holds enough calls to read this much (about a millisecond on an H200), so that the microsecond
# between two replays does not count, but no more than are captured fast and enough to be back to back.
BYTES_PER_REPLAY = 4_000_000_000
MAX_CALLS = 240
MIN_CALLS = 10

# Largest accepted error of a row (a query head of a sequence), ||out - reference|| / ||reference||. Rounding
# the weights and the output to the dtype, with all else in float64, gives up to 2.7e-3 in bf16 and 3.4e-4 in
# fp16; a tile of 64 tokens left out of 512k gives 1.1e-2.
TOLERANCE = {"bf16": 6e-3, "fp16": 8e-4}


def copies_for(kv_bytes: int) -> int:
    """Copies of the cache that the calls rotate over, so that each finds its bytes outside the L2 cache."""
    return math.ceil(COLD_BYTES / kv_bytes)


def calls_per_graph(kv_bytes: int) -> int:
    """Calls in a graph: a multiple of the copies, so that the rotation goes on from replay to replay."""
    copies = copies_for(kv_bytes)
    wanted = min(max(MIN_CALLS, BYTES_PER_REPLAY // kv_bytes), MAX_CALLS)
    return copies * max(1, round(wanted / copies))


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call, over the replays."""

    median_us: float
    min_us: float
    max_us: float
    calls: int
    replays: int

    @staticmethod
    def of(replay_us: list[float], calls: int) -> "Timing":
        per_call = [us / calls for us in replay_us]
        return Timing(statistics.median(per_call), min(per_call), max(per_call), calls, len(per_call))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def describe(dtype: str) -> dict[str, Any]:
    """The method, for the record."""
    return {
        "calls": "back to back in one CUDA graph, rotating over copies of the cache; time per call",
        IN_MODEL: "the same, before each call a kernel that writes Q and the newest q_len tokens of every "
        "sequence; time of both",
        "layout": "K and V [batch, max_tokens, kv_heads, head_dim], contiguous; one query token a sequence, "
        "or q_len of a shape, under a causal mask",
        "inputs": "standard normal; NaN beyond the lengths of ragged batches",
        "reference": "float64; every implementation is compared with it before and after timing",
        "dtype": dtype,
        "tolerance": TOLERANCE[dtype],
        "cold_bytes": COLD_BYTES,
        "replays": REPLAYS,
        "warm_up_replays": WARM_UP_REPLAYS,
    }
