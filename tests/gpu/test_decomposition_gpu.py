"""Fixed splits on a GPU."""

import pytest
import torch
from decomposition_contract import DecompositionContract

pytestmark = pytest.mark.gpu


class TestDecomposition(DecompositionContract):
    @pytest.fixture
    def device(self, gpu: torch.device) -> torch.device:
        return gpu
