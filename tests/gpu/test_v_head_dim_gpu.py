"""V of another head_dim than K on a GPU."""

from __future__ import annotations

import pytest
import torch
from decode_cases import make_inputs
from decode_contract import decode_debug
from packed_cases import make_packed
from v_head_dim_contract import VHeadDimContract, every_pair, of_dims

import leanattn

pytestmark = pytest.mark.gpu


class TestVHeadDim(VHeadDimContract):
    pass


@every_pair
def test_a_short_ring(gpu: torch.device, dims: tuple[int, int]) -> None:
    """As on GPUs with less shared memory."""
    inputs = make_inputs((700, 64, 2500), device=gpu, **of_dims(dims))
    expected = decode_debug(inputs, 40)
    for stages in (2, 3):
        assert all(map(torch.equal, decode_debug(inputs, 40, max_stages=stages), expected))


def test_a_plan_for_fewer_blocks_of_queries_is_refused(gpu: torch.device) -> None:
    """With V as wide as K, a block has more rows."""
    inputs = make_packed((700, 900), (300, 500), device=gpu, v_head_dim=256)
    shapes = (inputs.q, inputs.k_cache, inputs.cache_seqlens)
    plan = leanattn.plan(*shapes, **inputs.options)
    with pytest.raises(ValueError, match="plan: expected what leanattn.plan makes"):
        leanattn.decode(*inputs.tensors(), plan=plan, **inputs.options)
