"""Pages in CSR form on the CPU."""

from csr_contract import CsrContract


class TestCsr(CsrContract):
    pass
