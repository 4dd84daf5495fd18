"""The small kernel between two decode calls of a model: it writes Q and each sequence's newest tokens."""

import ctypes
import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.case import Case
from benchmarks.cuda_source import load
from benchmarks.timing import Call

SOURCE = Path(__file__).with_name("step_kernel.cu")
WORD_BYTES = 16


def newest_tokens(case: Case, cache: Tensor) -> Tensor:
    """[batch, q_len, kv heads, head_dim], a copy: those of the queries."""
    sequences = torch.arange(case.shape.batch, device=cache.device)[:, None]
    from_end = torch.arange(-case.shape.q_len, 0, device=cache.device)
    return cache[sequences, case.seqlens.long()[:, None] + from_end]


class StepKernel:
    def __init__(self, folder: Path) -> None:
        self.launch = load(SOURCE, folder).step_launch
        self.launch.argtypes = [*[ctypes.c_void_p] * 7, *[ctypes.c_int] * 5, ctypes.c_void_p]
        self.launch.restype = ctypes.c_int

    def bind(self, case: Case) -> list[Call]:
        """A call for each copy of the cache, to be made before the decode call on that copy.

        What it writes is what is there already; for that, the newest tokens become the same in all copies. So
        the output keeps its reference, and what is written comes from L2, as from the kernel before.
        """
        sources = case.q.clone(), newest_tokens(case, case.k[0]), newest_tokens(case, case.v[0])
        steps: list[Call] = [
            partial(self._write, case, *sources, k, v) for k, v in zip(case.k, case.v, strict=True)
        ]
        for step, k, v in zip(steps, case.k, case.v, strict=True):
            case.q.fill_(math.nan)
            step()
            written = case.q, newest_tokens(case, k), newest_tokens(case, v)
            if not all(map(torch.equal, written, sources)):
                raise RuntimeError("step_kernel did not write Q, K and V")
        return steps

    def _write(
        self, case: Case, q_source: Tensor, k_source: Tensor, v_source: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        shape, heads = case.shape, case.shape.heads
        token_words = heads.kv * heads.dim * k.element_size() // WORD_BYTES
        pointers = (x.data_ptr() for x in (q_source, case.q, k_source, k, v_source, v, case.seqlens))
        error = self.launch(
            *pointers,
            *(shape.batch, shape.max_tokens, shape.q_len, case.q.nbytes // WORD_BYTES, token_words),
            torch.cuda.current_stream().cuda_stream,
        )
        if error != 0:
            raise RuntimeError(f"step_launch: CUDA error {error}")
        return case.q
