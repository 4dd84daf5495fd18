"""Fixed splits on the CPU."""

import pytest
import torch
from decomposition_contract import DecompositionContract


class TestDecomposition(DecompositionContract):
    @pytest.fixture
    def device(self) -> torch.device:
        return torch.device("cpu")
