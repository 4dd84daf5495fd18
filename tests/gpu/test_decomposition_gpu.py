"""Fixed splits on a GPU."""

import pytest
from decomposition_contract import DecompositionContract

pytestmark = pytest.mark.gpu


class TestDecomposition(DecompositionContract):
    pass
