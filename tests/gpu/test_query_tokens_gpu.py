"""Several query tokens a sequence on a GPU."""

from __future__ import annotations

import pytest
import torch
from decode_cases import check_against_reference, make_inputs
from decode_contract import decode_debug
from query_tokens_contract import QueryTokensContract, Shape, decode, every_shape, inputs_of
from test_graphs import Captured, set_lengths

pytestmark = pytest.mark.gpu


class TestQueryTokens(QueryTokensContract):
    pass


@pytest.mark.parametrize("max_stages", [2, 3])
@pytest.mark.parametrize("head_dim", [64, 128])
@every_shape
def test_a_short_ring(gpu: torch.device, shape: Shape, head_dim: int, max_stages: int) -> None:
    inputs = inputs_of(gpu, shape, head_dim, torch.bfloat16)
    for workers in (3, 40):
        got = decode_debug(inputs, workers, max_stages=max_stages)
        assert all(map(torch.equal, got, decode(inputs, workers)))


@pytest.mark.parametrize(("heads", "q_len"), [((8, 2), 5), ((32, 8), 2), ((71, 1), 16)])
def test_captured_and_replayed_at_any_length(gpu: torch.device, heads: tuple[int, int], q_len: int) -> None:
    inputs = make_inputs([9000] * 4, device=gpu, q_len=q_len, heads=heads)
    set_lengths(inputs, [1] * 4)
    captured = Captured(inputs)
    for lengths in (
        [1, q_len - 1, q_len, 0],
        [64, 65, 63 + q_len, 9000],
        [9000] * 4,
        [0] * 4,
        [3, 128, 1, 7],
    ):
        set_lengths(inputs, lengths)
        captured.out.fill_(torch.nan)
        captured.graph.replay()
        check_against_reference(inputs, captured.out, captured.lse)
