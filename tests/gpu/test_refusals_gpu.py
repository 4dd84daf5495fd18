"""Bad arguments on a GPU: an exception each, and the CUDA context stays sound."""

from __future__ import annotations

import pytest
import torch
from decode_cases import make_inputs
from refusals_contract import RefusalsContract

import leanattn

pytestmark = pytest.mark.gpu


class TestRefusals(RefusalsContract):
    @pytest.mark.parametrize(
        ("dtype", "head_dim", "error"),
        [(torch.float32, 64, TypeError), (torch.bfloat16, 520, NotImplementedError)],
    )
    def test_what_a_gpu_cannot_do(
        self, device: torch.device, dtype: torch.dtype, head_dim: int, error: type[Exception]
    ) -> None:
        inputs = make_inputs((70, 9), device=device, dtype=dtype, head_dim=head_dim)
        with pytest.raises(error, match=r"q: .* expected one of .* on cuda"):
            leanattn.decode(*inputs.tensors())
        with pytest.raises(ValueError, match="q: (head_dim 520|dtype Float) has no CUDA kernel"):
            torch.ops.leanattn.decode(*inputs.tensors())
