"""V of another head_dim than K on the CPU."""

from v_head_dim_contract import VHeadDimContract


class TestVHeadDim(VHeadDimContract):
    pass
