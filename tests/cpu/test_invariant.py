"""Batch-invariant calls on the CPU."""

from __future__ import annotations

import pytest
import torch
from decode_cases import make_inputs
from invariant_contract import InvariantContract, check_parts

CPU = torch.device("cpu")


class TestInvariant(InvariantContract):
    pass


@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (7, 7), (12, 6), (40, 5), (64, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_heads_that_are_read_together(heads: tuple[int, int], dtype: torch.dtype) -> None:
    """With other sequences, other KV heads are: where shares end is between some of them."""
    inputs = make_inputs((300, 65, 1, 500, 40), device=CPU, heads=heads, head_dim=40, dtype=dtype)
    for workers in (1, 2, 5, 9, 17):
        check_parts(inputs, workers, [range(4), range(1, 5), (3, 0)])
