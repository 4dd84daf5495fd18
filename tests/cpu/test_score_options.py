"""Windows, padding, soft caps, sinks and ALiBi on the CPU, and combinations of them drawn at random."""

from __future__ import annotations

import torch
from hypothesis import given, seed, settings
from random_calls import SEED, Call, calls, check_call
from score_options_contract import ScoreOptionsContract


class TestScoreOptions(ScoreOptionsContract):
    pass


@seed(SEED)
@settings(max_examples=300, deadline=None)
@given(call=calls("cpu"))
def test_any_combination(call: Call) -> None:
    check_call(call, torch.device("cpu"))
