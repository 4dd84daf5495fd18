"""Bad arguments on the CPU."""

from refusals_contract import RefusalsContract


class TestRefusals(RefusalsContract):
    pass
