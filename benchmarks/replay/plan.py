"""What is measured: the sampled steps of every replay, and the sizes for the read limit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.method import ELEMENT_BYTES
from benchmarks.replay.batching import Replay
from benchmarks.replay.sampling import midpoints
from benchmarks.shapes import HEADS, Heads, Shape

if TYPE_CHECKING:
    from leanattn.lengths import Request

Record = dict[str, Any]

DTYPE = "bf16"  # what servers keep KV caches in
SET_NAME = "replay"
READ_SET_NAME = "read limit"


class Plan:
    """Shapes by name, and for each a record whose "results" the measuring fills in."""

    def __init__(self) -> None:
        self.shapes: dict[str, Shape] = {}
        self.replays: list[Record] = []
        self.read_sizes: list[Record] = []

    def add_replay(self, requests: Sequence[Request], heads_name: str, limit: int, count: int) -> None:
        """Plans `count` steps of a replay; raises ValueError if it is too short to sample."""
        heads, replay = HEADS[heads_name], Replay(requests, limit)
        sampled = []
        for step, weight in midpoints(replay.steps, count):
            name = f"{heads_name} limit {limit} step {step}"
            shape = Shape(SET_NAME, name, heads, replay.lengths(step))
            self.shapes[name] = shape
            sampled.append(
                {
                    "name": name,
                    "step": step,
                    "weight": weight,
                    "batch": shape.batch,
                    "max_tokens": shape.max_tokens,
                    "kv_bytes": kv_bytes(shape),
                    "results": {},
                }
            )
        self.replays.append(
            {
                "heads": heads_name,
                "query_heads": heads.query,
                "kv_heads": heads.kv,
                "head_dim": heads.dim,
                "limit": limit,
                "steps": replay.steps,
                "full_steps": replay.full_steps,
                "kv_bytes": kv_bytes(Shape(SET_NAME, "all steps", heads, (replay.kv_tokens,))),
                "sampled": sampled,
            }
        )

    def add_read_sizes(self) -> None:
        """Sizes between which the read limit of every planned step lies."""
        for size in powers_of_two_around(map(kv_bytes, self.shapes.values())):
            name = f"read limit of {size} bytes"
            tokens = size // (2 * ELEMENT_BYTES[DTYPE])  # of one head of dim 1, in K and in V
            self.shapes[name] = Shape(READ_SET_NAME, name, Heads(query=1, kv=1, dim=1), (tokens,))
            self.read_sizes.append({"name": name, "kv_bytes": size, "results": {}})


def kv_bytes(shape: Shape) -> int:
    return shape.kv_bytes(ELEMENT_BYTES[DTYPE])


def powers_of_two_around(sizes: Iterable[int]) -> list[int]:
    """From the last one not above the least size to the first one above the largest.

    The time of a read is close to a straight line from one to the next: in results/h200_decode.json, lines
    between sizes up to a factor of four apart are within 1% of the times in between.
    """
    exponents = [size.bit_length() - 1 for size in sizes]
    return [1 << exponent for exponent in range(min(exponents), max(exponents) + 2)]
