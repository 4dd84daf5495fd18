"""Bad arguments on the CPU."""

import pytest
import torch
from refusals_contract import RefusalsContract


class TestRefusals(RefusalsContract):
    @pytest.fixture
    def device(self) -> torch.device:
        return torch.device("cpu")
