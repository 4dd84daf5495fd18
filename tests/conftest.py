"""Shared by all tests."""

import pytest
import torch

from leanattn.support import gpu_problems

# Modules beside this file that hold assertions.
pytest.register_assert_rewrite(
    *("decode_cases", "decode_contract", "decomposition_contract", "plan_contract", "refusals_contract"),
    *("compiler_contract", "query_tokens_contract", "paged_cases", "paged_contract", "paged_edges_contract"),
    *("append_cases", "append_contract", "append_refusals_contract"),
    *("score_options_contract", "csr_contract", "random_calls", "float8_contract", "int8_contract"),
    *("invariant_contract", "v_head_dim_contract", "packed_contract", "packed_cases", "tree_contract"),
    *("int8_cases", "schedule_cases"),
)


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The first GPU; the test is skipped where leanattn cannot use it."""
    device = torch.device("cuda", 0)
    problems = gpu_problems(device)
    if problems:
        pytest.skip(problems[0])
    return device


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Of a contract that every device must keep: the GPU in tests that are marked so, else the CPU."""
    if request.node.get_closest_marker("gpu") is None:
        return torch.device("cpu")
    found: torch.device = request.getfixturevalue("gpu")
    return found
