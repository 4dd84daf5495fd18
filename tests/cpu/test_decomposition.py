"""Fixed splits on the CPU."""

from decomposition_contract import DecompositionContract


class TestDecomposition(DecompositionContract):
    pass
