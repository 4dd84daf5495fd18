"""Caches of int8 on the CPU."""

from __future__ import annotations

import pytest
import torch
from decode_cases import make_inputs
from decode_contract import RAGGED
from int8_cases import in_int8
from int8_contract import Int8Contract, check

CPU = torch.device("cpu")


class TestInt8(Int8Contract):
    pass


@pytest.mark.parametrize("head_dim", [16, 48, 80, 512])
def test_other_head_dims(head_dim: int) -> None:
    for dtype in (torch.float16, torch.float32):
        check(in_int8(make_inputs(RAGGED, device=CPU, head_dim=head_dim, dtype=dtype)))
