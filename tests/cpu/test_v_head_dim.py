"""V of another head_dim than K on the CPU."""

from __future__ import annotations

import pytest
import torch
from decode_cases import check_against_reference, make_inputs
from decode_contract import RAGGED
from score_options_contract import decode
from v_head_dim_contract import VHeadDimContract


class TestVHeadDim(VHeadDimContract):
    pass


@pytest.mark.parametrize("dims", [(512, 64), (24, 512), (264, 8), (320, 392)])
def test_wide_ones(dims: tuple[int, int]) -> None:
    inputs = make_inputs(
        RAGGED, device=torch.device("cpu"), heads=(40, 2), head_dim=dims[0], v_head_dim=dims[1]
    )
    check_against_reference(inputs, *decode(inputs))
