"""decode on the CPU: the contract of every device, and what only the CPU backend can do."""

from __future__ import annotations

import time

import pytest
import torch
from decode_cases import make_inputs
from decode_contract import DecodeContract, decode_and_check, decode_debug

CPU = torch.device("cpu")


class TestDecode(DecodeContract):
    pass


@pytest.mark.parametrize("head_dim", range(8, 257, 8))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_head_dim(dtype: torch.dtype, head_dim: int) -> None:
    decode_and_check(make_inputs((130, 1, 65), device=CPU, dtype=dtype, head_dim=head_dim, heads=(5, 1)))


@pytest.mark.parametrize("group", [1, 2, 3, 4, 6, 8, 11, 32, 40])
def test_groups_in_float32(group: int) -> None:
    decode_and_check(make_inputs((400, 65), device=CPU, dtype=torch.float32, heads=(2 * group, 2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quarter_million_tokens(dtype: torch.dtype) -> None:
    decode_and_check(make_inputs((262_144, 77), device=CPU, dtype=dtype, heads=(4, 1)))


def test_a_seed_makes_workers_pause() -> None:
    """Else the tests that shuffle the order of arrival would shuffle nothing."""
    inputs = make_inputs((700, 64, 2500), device=CPU)

    def fastest(delay_seed: int) -> float:
        times = []
        for _ in range(10):
            start = time.perf_counter()
            decode_debug(inputs, 200, delay_seed=delay_seed)
            times.append(time.perf_counter() - start)
        return min(times)

    # More than 100 partials, with a pause of 64 microseconds each on average.
    assert fastest(1) > fastest(0) + 100 * 32e-6 / torch.get_num_threads()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_numbers_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        decode_and_check(make_inputs((5000, 3, 0, 70), device=CPU))
    finally:
        torch.set_num_threads(before)
