"""Plans on the CPU."""

import pytest
import torch
from plan_contract import PlanContract


class TestPlan(PlanContract):
    @pytest.fixture
    def device(self) -> torch.device:
        return torch.device("cpu")
