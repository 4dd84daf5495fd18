"""All sets of shapes: those of shapes.py, those that follow from a trace of requests, and uniform twins."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.shapes import SHAPES, Shape, ragged
from leanattn.lengths import decode_batch

TRACE_BATCHES = (16, 64, 256)
TRACE_HEADS = ("llama8b", "70b/tp8")  # eight KV heads and one
TRACE_SEED = 0

# From this size on, reading takes longer than all else in a call: a twin compares how well it reads.
TWIN_BYTES = 64_000_000
TWIN_ELEMENT_BYTES = 2

SET_NAMES = (*dict.fromkeys(shape.set_name for shape in SHAPES), "trace", "twins")


def trace_shapes(trace: str | None) -> list[Shape]:
    """Decode steps of a server with continuous batching: lengths of batches in flight.

    `trace` is a file of requests as leanattn.lengths reads it, None for a distribution fitted to one.
    """
    shapes = []
    for heads in TRACE_HEADS:
        for batch in TRACE_BATCHES:
            lengths, _ = decode_batch(batch, TRACE_SEED, trace)
            quick = heads == TRACE_HEADS[0] and batch == TRACE_BATCHES[0]
            shapes.append(ragged("trace", heads, f"trace B{batch}", tuple(lengths), quick))
    return shapes


def uniform_twin(shape: Shape) -> Shape:
    """As many sequences of the same heads and queries, and up to rounding as many tokens, of one length."""
    tokens = round(sum(shape.lengths) / shape.batch)
    name = f"{shape.name} as uniform"
    lengths = (tokens,) * shape.batch
    return replace(shape, set_name="twins", name=name, lengths=lengths, twin_of=shape.name)


def all_shapes(trace: str | None = None) -> list[Shape]:
    shapes = [*SHAPES, *trace_shapes(trace)]
    large = [shape for shape in shapes if shape.ragged and shape.kv_bytes(TWIN_ELEMENT_BYTES) >= TWIN_BYTES]
    return [*shapes, *map(uniform_twin, large)]


def select(set_names: list[str] | None = None, quick: bool = False, trace: str | None = None) -> list[Shape]:
    """The shapes of the named sets (all if None), in order; with `quick` a representative few of them."""
    return [
        shape
        for shape in all_shapes(trace)
        if (set_names is None or shape.set_name in set_names) and (shape.quick or not quick)
    ]
