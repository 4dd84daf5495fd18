"""torch.compile, opcheck and fake tensors on the CPU."""

from compiler_contract import CompilerContract


class TestCompiler(CompilerContract):
    pass
