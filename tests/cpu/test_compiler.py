"""torch.compile, opcheck and fake tensors on the CPU."""

import pytest
import torch
from compiler_contract import CompilerContract


class TestCompiler(CompilerContract):
    @pytest.fixture
    def device(self) -> torch.device:
        return torch.device("cpu")
