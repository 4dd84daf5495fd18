"""What torch's compiler and op machinery must find on every device; tests/cpu and tests/gpu run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from decode_cases import check_against_reference, make_inputs
from packed_cases import pack_queries, random_bits
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import leanattn
from leanattn.checks import lse_shape

ops = torch.ops.leanattn

OPTIONS = {"softmax_scale": 0.2, "fresh_tokens": 1}


class CompilerContract:
    """Subclasses run it, on the fixture ``device`` of conftest.py."""

    @pytest.mark.parametrize("q_len", [None, 1, 3])
    @pytest.mark.parametrize("op", [ops.decode.default, ops.decode_lse.default])
    def test_opcheck(self, device: torch.device, op: torch._ops.OpOverload, q_len: int | None) -> None:
        tensors = make_inputs((70, 0, 9), device=device, q_len=q_len).tensors()
        for causal in (True, False):
            torch.library.opcheck(op, tensors, {**OPTIONS, "causal": causal})

    @pytest.mark.parametrize("q_len", [None, 3])
    @pytest.mark.parametrize("with_lse", [False, True])
    def test_opcheck_of_the_ops_that_write(
        self, device: torch.device, with_lse: bool, q_len: int | None
    ) -> None:
        tensors = make_inputs((70, 0, 9), device=device, q_len=q_len).tensors()
        out = torch.zeros_like(tensors[0])
        lse = torch.zeros(lse_shape(out), device=device) if with_lse else None
        workspace = torch.zeros(30_000, device=device)
        torch.library.opcheck(ops.decode_out.default, (*tensors, out), {"lse": lse, **OPTIONS})
        for options in ({"num_workers": 4}, {"fixed_splits": 2}):
            arguments = (*tensors, out, lse, workspace)
            torch.library.opcheck(ops._decode_debug.default, arguments, {**options, **OPTIONS})

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_compiled_decode(self, device: torch.device, dynamic: bool) -> None:
        def step(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            out, lse = leanattn.decode(q, k, v, lengths, return_lse=True)
            return out * 1.0, lse

        compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for lengths in ((70, 0, 9), (5, 300), (1, 2, 3, 4, 5)):
            inputs = make_inputs(lengths, device=device)
            check_against_reference(inputs, *compiled(*inputs.tensors()))

    @pytest.mark.parametrize("causal", [True, False])
    def test_one_graph_for_any_number_of_query_tokens(self, device: torch.device, causal: bool) -> None:
        def step(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            return leanattn.decode(q, k, v, lengths, causal=causal, return_lse=True)

        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
        for q_len, lengths in ((4, (70, 0, 9)), (2, (5, 300)), (16, (1, 2, 3, 400, 5))):
            inputs = make_inputs(lengths, device=device, q_len=q_len)
            inputs.causal = causal
            check_against_reference(inputs, *compiled(*inputs.tensors()))
        assert counter.frame_count == 1

    @pytest.mark.parametrize("call", [leanattn.decode, ops.decode])
    def test_compiled_by_inductor(self, device: torch.device, call: Callable[..., Tensor]) -> None:
        compiled = torch.compile(lambda *tensors: call(*tensors), fullgraph=True)
        inputs = make_inputs((70, 0, 9), device=device)
        assert torch.equal(compiled(*inputs.tensors()), leanattn.decode(*inputs.tensors()))

    def test_features_as_arguments_by_inductor(self, device: torch.device) -> None:
        """One graph for all batches and lengths."""

        def step(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, sinks: Tensor, scale: Tensor) -> Tensor:
            options: dict[str, Any] = {"window_size": (100, -1), "softcap": 30.0, "sinks": sinks}
            out: Tensor = leanattn.decode(q, k, v, lengths, k_scale=scale, v_scale=scale, **options)
            return out

        counter = CompileCounterWithBackend("inductor")
        compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
        scale = torch.rand(2, device=device)
        for lengths in ((70, 0, 9), (5, 300), (1, 2, 3, 400, 5)):
            q, k, v, seqlens = make_inputs(lengths, device=device, q_len=2).tensors()
            caches = (k.to(torch.float8_e4m3fn), v.to(torch.float8_e4m3fn))
            arguments = (q, *caches, seqlens, torch.randn(8, device=device), scale)
            assert torch.equal(compiled(*arguments), step(*arguments))
        assert counter.frame_count == 1

    def test_packed_queries_and_a_tree_as_arguments_by_inductor(self, device: torch.device) -> None:
        def step(*tensors: Tensor) -> Tensor:
            q, k, v, lengths, offsets, tree = tensors
            return leanattn.decode(q, k, v, lengths, cu_seqlens_q=offsets, tree_mask=tree)

        compiled = torch.compile(step, fullgraph=True, dynamic=True)
        for lengths, counts in (((70, 30, 9), (4, 0, 2)), ((50, 300), (1, 40))):
            inputs = make_inputs(lengths, device=device)
            pack_queries(inputs, counts, seed=0)
            tree = random_bits((sum(counts),), 1, device, seed=0)
            arguments = (*inputs.tensors(), inputs.options["cu_seqlens_q"], tree)
            assert torch.equal(compiled(*arguments), step(*arguments))

    def test_compiled_with_options(self, device: torch.device) -> None:
        def step(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, out: Tensor) -> Tensor:
            arguments = (q[:, None], k, v, lengths)
            return leanattn.decode(
                *arguments, out=out[:, None], softmax_scale=0.3, sm_margin=1, fresh_tokens=1
            )

        inputs = make_inputs((70, 0, 9), device=device)
        expected = leanattn.decode(*inputs.tensors(), softmax_scale=0.3, sm_margin=1)
        out = torch.zeros_like(inputs.q)
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*inputs.tensors(), out)[:, 0], expected)
        assert torch.equal(out, expected)

    def test_fake_tensors_have_the_shapes_of_real_ones(self, device: torch.device) -> None:
        q, *rest = make_inputs((70, 0, 9), device=device).tensors()
        tokens = torch.stack((q, q, q), 1)
        for query in (
            *(q, q[:, None], q.transpose(0, 1).contiguous().transpose(0, 1)),
            *(tokens, tokens.transpose(1, 2).contiguous().transpose(1, 2)),
        ):
            real = ops.decode_lse(query, *rest)
            with torch._subclasses.FakeTensorMode() as mode:
                fake = ops.decode_lse(*(mode.from_tensor(t) for t in (query, *rest)))
            for a, b in zip(fake, real, strict=True):
                assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)

    def test_shapes_that_do_not_fit_are_refused_while_tracing(self, device: torch.device) -> None:
        q, k, v, lengths = (t.to("meta") for t in make_inputs((70, 0, 9), device=device).tensors())
        assert ops.decode(q, k, v, lengths).shape == q.shape
        with pytest.raises(ValueError, match="v_cache: shape"):
            ops.decode(q, k, v[:, 1:], lengths)
