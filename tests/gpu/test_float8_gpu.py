"""Caches of 8-bit floats on a GPU."""

from __future__ import annotations

import pytest
import torch
from decode_cases import make_inputs
from decode_contract import RAGGED, decode_debug
from float8_contract import Float8Contract, in_float8

from leanattn.support import FLOAT8

pytestmark = pytest.mark.gpu


class TestFloat8(Float8Contract):
    pass


@pytest.mark.parametrize("cache_dtype", FLOAT8)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("heads", [(8, 2), (16, 16), (40, 2)])
def test_a_short_ring_and_late_workers(
    gpu: torch.device, heads: tuple[int, int], head_dim: int, cache_dtype: torch.dtype
) -> None:
    """As on GPUs with less shared memory, in many orders of arrival, with NaN in the workspace."""
    inputs = in_float8(make_inputs(RAGGED, device=gpu, heads=heads, head_dim=head_dim), cache_dtype)
    for workers in (3, 40):
        expected = torch.ops.leanattn.decode_lse(*inputs.tensors(), num_workers=workers)
        for options in ({"max_stages": 2}, {"delay_seed": 1}, {"delay_seed": 7, "max_stages": 3}):
            got = decode_debug(inputs, workers, garbage=torch.nan, **options)
            assert all(map(torch.equal, got, expected))
