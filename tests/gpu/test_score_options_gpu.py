"""Windows, padding, soft caps, sinks and ALiBi on a GPU, and combinations of them drawn at random."""

from __future__ import annotations

import pytest
import torch
from decode_cases import check_against_reference, make_inputs
from hypothesis import HealthCheck, given, seed, settings
from random_calls import SEED, Call, calls, check_call
from score_options_contract import ScoreOptionsContract

import leanattn

pytestmark = pytest.mark.gpu


class TestScoreOptions(ScoreOptionsContract):
    pass


@seed(SEED)
@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(call=calls("cuda"))
def test_any_combination(gpu: torch.device, call: Call) -> None:
    check_call(call, gpu)


def test_captured_and_replayed_with_other_values(gpu: torch.device) -> None:
    """Lengths, paddings, sinks and slopes are read on the device."""
    inputs = make_inputs((700, 40, 129), device=gpu, q_len=2)
    pads = torch.zeros(3, dtype=torch.int32, device=gpu)
    inputs.options = {
        "window_size": (300, -1),
        "softcap": 30.0,
        "sinks": torch.zeros(8, device=gpu),
        "alibi_slopes": torch.zeros(8, device=gpu),
        "cache_leftpad": pads,
    }
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = leanattn.decode(*inputs.tensors(), return_lse=True, **inputs.options)
    for step, lengths in enumerate(((700, 40, 129), (1, 0, 64), (333, 17, 3))):
        inputs.cache_seqlens.copy_(torch.tensor(lengths))
        pads.copy_(torch.tensor((step, 17 * step, 0)))
        for name in ("sinks", "alibi_slopes"):
            inputs.options[name].uniform_(0, 1)
        graph.replay()
        check_against_reference(inputs, out, lse)
