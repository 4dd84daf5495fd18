"""Plans on a GPU."""

import pytest
import torch
from decode_cases import check_against_reference, make_inputs
from plan_contract import RAGGED, PlanContract

import leanattn

pytestmark = pytest.mark.gpu


class TestPlan(PlanContract):
    pass


def test_a_step_in_a_graph(gpu: torch.device) -> None:
    """One plan and several layers, captured; the lengths change between replays."""
    inputs = make_inputs(RAGGED, device=gpu, max_tokens=4000)
    inputs.k_cache.normal_()
    inputs.v_cache.normal_()
    leanattn.decode(*inputs.tensors(), plan=leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan = leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens)
        layers = [leanattn.decode(*inputs.tensors(), plan=plan, fresh_tokens=n) for n in (None, 1, 0)]
    for lengths in (RAGGED, (1,) * 10, (4000,) * 10, (0,) * 9 + (3999,)):
        inputs.cache_seqlens.copy_(torch.tensor(lengths, device=gpu))
        graph.replay()
        for out in layers:
            check_against_reference(inputs, out)


def test_the_op_knows_what_makes_a_call_one_of_options(gpu: torch.device) -> None:
    """Queries that see some of the tokens after their own: such calls go to other kernels."""
    inputs = make_inputs(RAGGED, device=gpu, q_len=8, heads=(8, 2), layout="expanded", max_tokens=60_000)
    at = (inputs.q, inputs.k_cache, inputs.cache_seqlens)
    shapes = {"max_tokens": 60_000, "num_q_heads": 8, "num_kv_heads": 2, "head_dim": inputs.q.shape[-1]}
    plans = {}
    for right in (-1, 0, 3, 7):
        # Zeros, since a plan has room for more workers than it is for.
        expected, plans[right] = (torch.zeros_like(leanattn.plan(*at)) for _ in range(2))
        leanattn.plan(*at, causal=False, window_size=(-1, right), out=expected)
        torch.ops.leanattn.plan_out(inputs.cache_seqlens, plans[right], q_len=8, window_right=right, **shapes)
        assert torch.equal(plans[right], expected)
    assert [not torch.equal(plan, plans[-1]) for plan in plans.values()] == [False, False, True, False]
