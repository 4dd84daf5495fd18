"""append_kv on the CPU."""

from append_contract import AppendContract
from append_refusals_contract import AppendRefusalsContract


class TestAppend(AppendContract):
    pass


class TestRefusals(AppendRefusalsContract):
    pass
