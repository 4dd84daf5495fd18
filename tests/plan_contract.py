"""What a plan must do on every device; tests/cpu and tests/gpu run it, each on its own."""

from __future__ import annotations

import pytest
import torch
from decode_cases import check_against_reference, make_inputs, plan_of
from decode_contract import decode_debug
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import leanattn
from leanattn.schedule import plan_elements

ops = torch.ops.leanattn

RAGGED = (700, 1, 0, 64, 2500, 0, 65, 129, 1300, 3)
MANY = tuple(i * 7919 % 200 if i % 3 == 0 else 0 for i in range(500))


class PlanContract:
    """Subclasses run it, on the fixture ``device`` of conftest.py."""

    @pytest.mark.parametrize("workers", [0, 3, 40, 1024])
    @pytest.mark.parametrize("heads", [(8, 2), (16, 16), (71, 1)])
    @pytest.mark.parametrize("lengths", [RAGGED, MANY, (9000,), (0, 0)])
    def test_a_plan_is_followed(
        self, device: torch.device, lengths: tuple[int, ...], heads: tuple[int, int], workers: int
    ) -> None:
        inputs = make_inputs(lengths, device=device, heads=heads)
        plan = plan_of(inputs, workers)
        # These lengths are wrong: nobody reads them any more.
        wrong = torch.full_like(inputs.cache_seqlens, -1)
        tensors = (inputs.q, inputs.k_cache, inputs.v_cache, wrong)
        expected = ops.decode_lse(*tensors, num_workers=workers, plan=plan)
        check_against_reference(inputs, *expected)
        for fresh_tokens in (0, 3):
            got = ops.decode_lse(*tensors, num_workers=workers, plan=plan, fresh_tokens=fresh_tokens)
            assert all(map(torch.equal, got, expected))

    def test_the_documented_way(self, device: torch.device) -> None:
        inputs = make_inputs(RAGGED, device=device)
        plan = leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens)
        assert plan.shape == (plan_elements(len(RAGGED)),)
        expected, lse = leanattn.decode(*inputs.tensors(), return_lse=True, plan=plan)
        check_against_reference(inputs, expected, lse)
        assert torch.equal(leanattn.decode(*inputs.tensors(), plan=plan), expected)
        out = torch.empty_like(expected)
        leanattn.decode(*inputs.tensors(), plan=plan, out=out)
        assert torch.equal(out, expected)

    @pytest.mark.parametrize("lengths", [(1,), (130,), (4096,), (4095, 17), (640,) * 8, (9000, 1, 0, 300)])
    @pytest.mark.parametrize("heads", [(8, 2), (64, 4), (4, 1), (32, 1)])
    def test_even_pieces(
        self, device: torch.device, lengths: tuple[int, ...], heads: tuple[int, int]
    ) -> None:
        """Few items, and workers for all their pieces, merged at once and in groups."""
        inputs = make_inputs(lengths, device=device, heads=heads, head_dim=128)
        for workers in (9, 64, 132, 500):
            plan = plan_of(inputs, workers)
            expected = ops.decode_lse(*inputs.tensors(), num_workers=workers, plan=plan)
            check_against_reference(inputs, *expected)
            for seed in (1, 2):
                got = decode_debug(inputs, workers, delay_seed=seed, plan=plan)
                assert all(map(torch.equal, got, expected))

    def test_in_place(self, device: torch.device) -> None:
        inputs = make_inputs(RAGGED, device=device)
        plan = leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens)
        inputs.cache_seqlens.copy_(torch.tensor((5, 0, 0, 64, 100, 0, 65, 1, 1300, 0), device=device))
        assert leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens, out=plan) is plan
        out, lse = leanattn.decode(*inputs.tensors(), return_lse=True, plan=plan)
        check_against_reference(inputs, out, lse)

    def test_with_a_margin(self, device: torch.device) -> None:
        inputs = make_inputs(RAGGED, device=device)
        plan = leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens, sm_margin=1)
        check_against_reference(inputs, leanattn.decode(*inputs.tensors(), plan=plan, sm_margin=1))

    @pytest.mark.parametrize("other", [{"heads": (16, 4)}, {"max_tokens": 9000}, {"workers": 5}])
    def test_a_plan_of_other_shapes_is_not_used(self, device: torch.device, other: dict[str, object]) -> None:
        inputs = make_inputs(RAGGED, device=device)
        heads = other.get("heads", (8, 2))
        assert isinstance(heads, tuple)
        max_tokens, workers = other.get("max_tokens", inputs.k_cache.shape[1]), other.get("workers", 7)
        plan = ops.plan(
            inputs.cache_seqlens,
            max_tokens=max_tokens,
            num_q_heads=heads[0],
            num_kv_heads=heads[1],
            head_dim=64,
            num_workers=workers,
        )
        # Not through its lengths either.
        plan[-len(RAGGED) :] = 1
        out, lse = ops.decode_lse(*inputs.tensors(), num_workers=7, plan=plan)
        check_against_reference(inputs, out, lse)

    def test_lengths_out_of_range(self, device: torch.device) -> None:
        inputs = make_inputs((100, 0, 100), device=device, max_tokens=100)
        expected = leanattn.decode(*inputs.tensors())
        inputs.cache_seqlens = torch.tensor((101, -1, 2**31 - 1), dtype=torch.int32, device=device)
        plan = plan_of(inputs)
        torch.testing.assert_close(leanattn.decode(*inputs.tensors(), plan=plan), expected)

    def test_refusals(self, device: torch.device) -> None:
        inputs = make_inputs(RAGGED, device=device)
        plan = plan_of(inputs)
        for wrong, error, message in (
            (plan[:-1], ValueError, "plan: expected what leanattn.plan makes for 10 sequences"),
            (plan.float(), TypeError, "plan: dtype torch.float32, expected torch.int32"),
            (plan.tolist(), TypeError, "plan: list, expected torch.Tensor"),
            (torch.empty_like(plan, device="meta"), ValueError, "plan: device meta, expected"),
        ):
            with pytest.raises(error, match=message):
                leanattn.decode(*inputs.tensors(), plan=wrong)  # type: ignore[arg-type]
        for out, message in ((plan.float(), "out: dtype torch.float32"), ([1], "out: list, expected")):
            with pytest.raises(TypeError, match=message):
                leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens, out=out)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="q: device meta, expected that of cache_seqlens"):
            leanattn.plan(inputs.q.to("meta"), inputs.k_cache, inputs.cache_seqlens)
        with pytest.raises(ValueError, match="plan: expected what leanattn.plan makes for 10 sequences"):
            leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens, out=plan[:-1])
        with pytest.raises(TypeError, match="cache_seqlens: dtype torch.int64"):
            leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens.long())
        with pytest.raises(ValueError, match="k_cache: 3 dimensions, expected 4"):
            leanattn.plan(inputs.q, inputs.k_cache[0], inputs.cache_seqlens)
        with pytest.raises(ValueError, match=r"cache_seqlens: shape \[9\], expected \[10\]"):
            leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens[1:])
        with pytest.raises(ValueError, match="num_q_heads: 7, expected a multiple of num_kv_heads, 2"):
            leanattn.plan(inputs.q[:, :7], inputs.k_cache, inputs.cache_seqlens)
        for q_len in (0, 17):
            with pytest.raises(ValueError, match=f"q: q_len {q_len}, expected 1..16"):
                leanattn.plan(
                    inputs.q[:, None].expand(-1, q_len, -1, -1), inputs.k_cache, inputs.cache_seqlens
                )
        with pytest.raises(TypeError, match="q: int, expected torch.Tensor"):
            leanattn.plan(3, inputs.k_cache, inputs.cache_seqlens)  # type: ignore[arg-type]

    def test_torch_compile_and_fakes(self, device: torch.device) -> None:
        inputs = make_inputs(RAGGED, device=device)
        # With all workers there can be, nothing of a plan stays unwritten, and opcheck can compare it.
        heads = {"num_q_heads": 8, "num_kv_heads": 1, "head_dim": 64, "num_workers": 1024}
        shapes = {"max_tokens": inputs.k_cache.shape[1], **heads}
        torch.library.opcheck(ops.plan.default, (inputs.cache_seqlens,), shapes)
        torch.library.opcheck(ops.plan.default, (inputs.cache_seqlens,), {**shapes, "q_len": 3})
        torch.library.opcheck(ops.plan_out.default, (inputs.cache_seqlens, plan_of(inputs)), shapes)

        def step(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
            return leanattn.decode(q, k, v, lengths, plan=leanattn.plan(q, k, lengths))

        for q_len in (None, 3):
            counter = CompileCounterWithBackend("aot_eager")
            compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
            for lengths in (RAGGED, RAGGED[2:], RAGGED * 3):
                inputs = make_inputs(lengths, device=device, q_len=q_len)
                check_against_reference(inputs, compiled(*inputs.tensors()))
            assert counter.frame_count == 1, "one graph for every batch size"
            torch._dynamo.reset()
