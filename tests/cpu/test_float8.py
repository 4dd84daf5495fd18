"""Caches of 8-bit floats on the CPU."""

from __future__ import annotations

import pytest
import torch
from decode_cases import Reference, make_inputs
from decode_contract import RAGGED
from float8_contract import Float8Contract, in_float8
from score_options_contract import decode

from leanattn.support import FLOAT8

CPU = torch.device("cpu")


class TestFloat8(Float8Contract):
    pass


@pytest.mark.parametrize("cache_dtype", FLOAT8)
@pytest.mark.parametrize("head_dim", [16, 48, 80, 256])
def test_other_head_dims(head_dim: int, cache_dtype: torch.dtype) -> None:
    for dtype in (torch.float16, torch.float32):
        inputs = in_float8(make_inputs(RAGGED, device=CPU, head_dim=head_dim, dtype=dtype), cache_dtype, 2)
        Reference(inputs).check(*decode(inputs))
