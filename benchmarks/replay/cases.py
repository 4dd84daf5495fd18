"""The tensors of a step. All steps share one pool of memory, since filling caches for each takes too long."""

import math
from collections.abc import Iterable

import torch

from benchmarks.case import Case
from benchmarks.method import copies_for
from benchmarks.shapes import Shape


class FilledCase(Case):
    """A case whose caches hold normal values everywhere, as memory of earlier requests does in a server."""

    def fill_beyond_lengths(self, value: float) -> None:
        """Leaves what is there: benchmarks.decode shows who lets such values through to the output."""


def caches_shape(shape: Shape, dtype: torch.dtype) -> tuple[int, ...]:
    """[copies, batch, max_tokens, kv heads, head_dim] of K or V."""
    copies = copies_for(shape.kv_bytes(dtype.itemsize))
    return copies, shape.batch, shape.max_tokens, shape.heads.kv, shape.heads.dim


class Pool:
    """Normally distributed values, enough of them for the caches of each of `shapes`, one at a time."""

    def __init__(self, shapes: Iterable[Shape], dtype: torch.dtype, device: str) -> None:
        elements = max(math.prod(caches_shape(shape, dtype)) for shape in shapes)
        self.k = torch.empty(elements, dtype=dtype, device=device).normal_()
        self.v = torch.empty(elements, dtype=dtype, device=device).normal_()

    def case(self, shape: Shape) -> Case:
        caches = caches_shape(shape, self.k.dtype)
        k, v = (pool[: math.prod(caches)].view(caches).unbind() for pool in (self.k, self.v))
        return FilledCase(
            shape,
            torch.randn(shape.q_shape, dtype=k[0].dtype, device=k[0].device),
            torch.tensor(shape.lengths, dtype=torch.int32, device=k[0].device),
            list(k),
            list(v),
        )
