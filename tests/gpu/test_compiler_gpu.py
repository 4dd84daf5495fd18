"""torch.compile, opcheck and fake tensors on a GPU."""

import pytest
from compiler_contract import CompilerContract

pytestmark = pytest.mark.gpu


class TestCompiler(CompilerContract):
    pass
