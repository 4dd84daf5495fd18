"""What torch's compiler and op machinery must find on every device; tests/cpu and tests/gpu run it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from decode_cases import check_against_reference, make_inputs
from torch import Tensor

import leanattn

ops = torch.ops.leanattn

OPTIONS = {"softmax_scale": 0.2, "fresh_tokens": 1}


class CompilerContract:
    """A subclass says on which device: it defines the fixture ``device``."""

    @pytest.mark.parametrize("q_dims", [3, 4])
    @pytest.mark.parametrize("op", [ops.decode.default, ops.decode_lse.default])
    def test_opcheck(self, device: torch.device, op: torch._ops.OpOverload, q_dims: int) -> None:
        q, *rest = make_inputs((70, 0, 9), device=device).tensors()
        torch.library.opcheck(op, (q if q_dims == 3 else q[:, None], *rest), OPTIONS)

    @pytest.mark.parametrize("with_lse", [False, True])
    def test_opcheck_of_the_ops_that_write(self, device: torch.device, with_lse: bool) -> None:
        tensors = make_inputs((70, 0, 9), device=device).tensors()
        out = torch.zeros_like(tensors[0])
        lse = torch.zeros(3, 8, device=device) if with_lse else None
        workspace = torch.zeros(10_000, device=device)
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

    @pytest.mark.parametrize("call", [leanattn.decode, ops.decode])
    def test_compiled_by_inductor(self, device: torch.device, call: Callable[..., Tensor]) -> None:
        compiled = torch.compile(lambda *tensors: call(*tensors), fullgraph=True)
        inputs = make_inputs((70, 0, 9), device=device)
        assert torch.equal(compiled(*inputs.tensors()), leanattn.decode(*inputs.tensors()))

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
        for query in (q, q[:, None], q.transpose(0, 1).contiguous().transpose(0, 1)):
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
