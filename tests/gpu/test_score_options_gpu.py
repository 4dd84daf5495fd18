"""Windows, padding, soft caps, sinks and ALiBi on a GPU: refused until its kernels have them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decode_cases import check_against_reference, make_inputs

import leanattn
from leanattn.score_options import ScoreOptions

pytestmark = pytest.mark.gpu


def test_each_is_refused(gpu: torch.device) -> None:
    inputs = make_inputs((70, 9), device=gpu)
    options: dict[str, Any] = {
        "window_size": (5, -1),
        "softcap": 20.0,
        "sinks": torch.zeros(8, device=gpu),
        "alibi_slopes": torch.zeros(8, device=gpu),
        "cache_leftpad": torch.zeros(2, dtype=torch.int32, device=gpu),
    }
    assert tuple(options) == ScoreOptions._fields
    for name, value in options.items():
        with pytest.raises(NotImplementedError, match=f"{name}: expected the default, cuda has no other yet"):
            leanattn.decode(*inputs.tensors(), **{name: value})
        assert not leanattn.is_supported("cuda", torch.bfloat16, 64, options=[name])[0]
        check_against_reference(inputs, leanattn.decode(*inputs.tensors()))
