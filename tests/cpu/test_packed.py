"""Packed queries and tree masks on the CPU."""

from packed_contract import PackedContract
from tree_contract import TreeContract


class TestPacked(PackedContract):
    pass


class TestTree(TreeContract):
    pass
