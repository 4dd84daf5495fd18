"""torch.compile, opcheck and fake tensors on a GPU."""

import pytest
import torch
from compiler_contract import CompilerContract

pytestmark = pytest.mark.gpu


class TestCompiler(CompilerContract):
    @pytest.fixture
    def device(self, gpu: torch.device) -> torch.device:
        return gpu
