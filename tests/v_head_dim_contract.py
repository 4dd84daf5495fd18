"""What decode and append_kv must do where V has another head_dim than K; tests/cpu and tests/gpu run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from append_cases import check_append, make_append
from decode_cases import LAYOUTS, Inputs, Reference, check_against_reference, make_inputs, plan_of
from decode_contract import decode_debug
from float8_contract import in_float8
from int8_cases import in_int8
from invariant_contract import check_parts
from packed_cases import make_packed, pack_queries, random_bits
from packed_contract import LENGTHS as PACKED_LENGTHS
from packed_contract import QUERY_TOKENS
from packed_contract import plan_of as plan_of_packed
from paged_cases import PAGE_LAYOUTS, make_whole_pages, paged
from refusals_contract import elsewhere
from score_options_contract import decode, poison_unseen
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import leanattn
from leanattn.checks import out_shape
from leanattn.support import BACKENDS, EIGHT_BITS, FLOAT8

ops = torch.ops.leanattn

# Empty ones, around the ends of tiles, and one that many workers share.
LENGTHS = (700, 1, 0, 64, 65, 1300, 129, 3)
# head_dim of K and of V: those of DeepSeek first.
PAIRS = ((192, 128), (128, 192), (64, 128), (40, 72), (256, 64), (96, 32), (8, 248), (320, 512), (512, 24))
every_pair = pytest.mark.parametrize("dims", PAIRS)
# Rows of 16 bytes.
every_pair_of_8_bits = pytest.mark.parametrize("dims", [(192, 128), (64, 128), (48, 80), (256, 16)])


def of_dims(dims: tuple[int, int]) -> dict[str, Any]:
    return {"head_dim": dims[0], "v_head_dim": dims[1]}


def in_cache_of(dtype: torch.dtype, inputs: Inputs) -> Inputs:
    return in_int8(inputs) if dtype == torch.int8 else in_float8(inputs, dtype, inputs.k_cache.shape[2])


class VHeadDimContract:
    """Subclasses run it, on the fixture ``device`` of conftest.py."""

    @every_pair
    @pytest.mark.parametrize("heads", [(8, 2), (3, 3), (40, 2)])
    def test_against_the_reference(
        self, device: torch.device, heads: tuple[int, int], dims: tuple[int, int]
    ) -> None:
        for dtype in BACKENDS[device.type].dtypes:
            for q_len, layout in ((None, "tokens_first"), (4, "padded")):
                inputs = make_inputs(
                    LENGTHS,
                    device=device,
                    q_len=q_len,
                    heads=heads,
                    dtype=dtype,
                    layout=layout,
                    **of_dims(dims),
                )
                reference = Reference(inputs)
                out, lse = decode(inputs)
                assert out.shape == out_shape(inputs.q, inputs.v_cache)
                reference.check(out, lse)
                plan = leanattn.plan(
                    inputs.q, inputs.k_cache, inputs.cache_seqlens, v_head_dim=inputs.v_cache.shape[3]
                )
                wrong = torch.zeros_like(inputs.cache_seqlens)  # the plan's are followed
                reference.check(*decode(replace(inputs, cache_seqlens=wrong), plan=plan))

    @every_pair
    def test_a_plan_of_another_dim_changes_nothing(self, device: torch.device, dims: tuple[int, int]) -> None:
        inputs = make_inputs(LENGTHS, device=device, **of_dims(dims))
        plan = leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens)
        check_against_reference(inputs, *decode(inputs, plan=plan))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, device: torch.device, layout: str) -> None:
        for dims in PAIRS[:3]:
            inputs = make_inputs((700, 3, 0, 129), device=device, layout=layout, **of_dims(dims))
            check_against_reference(inputs, *decode(inputs))

    @every_pair
    def test_nothing_beside_the_output_is_written(self, device: torch.device, dims: tuple[int, int]) -> None:
        inputs = make_inputs(LENGTHS, device=device, **of_dims(dims))
        wide = torch.full((len(LENGTHS), 9, dims[1] + 16), 7.0, dtype=inputs.q.dtype, device=device)
        out = wide[:, :8, 8:-8]
        result, lse = leanattn.decode(*inputs.tensors(), out=out, return_lse=True)
        assert result is out
        check_against_reference(inputs, out, lse)
        for beside in (wide[..., :8], wide[..., -8:], wide[:, 8:]):
            assert (beside == 7).all()

    @pytest.mark.parametrize("fixed_splits", [0, 3])
    @every_pair
    def test_merges(self, device: torch.device, dims: tuple[int, int], fixed_splits: int) -> None:
        """In many orders of arrival, with NaN in the workspace."""
        inputs = make_inputs((700, 64, 2500), device=device, q_len=3, **of_dims(dims))
        reference = Reference(inputs)
        for seed in (0, 1, 7):
            reference.check(
                *decode_debug(inputs, 40, garbage=torch.nan, delay_seed=seed, fixed_splits=fixed_splits)
            )

    @pytest.mark.parametrize("page_size", [1, 16, 24])
    @pytest.mark.parametrize("layout", PAGE_LAYOUTS)
    def test_pages(self, device: torch.device, layout: str, page_size: int) -> None:
        for dims in PAIRS[:5]:
            inputs = make_whole_pages((700, 3, 0, 129), page_size, device=device, q_len=2, **of_dims(dims))
            pages, table = paged(inputs, page_size, layout=layout)
            check_against_reference(inputs, *decode(pages, block_table=table))

    @pytest.mark.parametrize("cache_dtype", EIGHT_BITS)
    @every_pair_of_8_bits
    def test_caches_of_8_bits(
        self, device: torch.device, dims: tuple[int, int], cache_dtype: torch.dtype
    ) -> None:
        for dtype in BACKENDS[device.type].dtypes:
            inputs = make_whole_pages(LENGTHS, 16, device=device, q_len=3, dtype=dtype, **of_dims(dims))
            kind = in_cache_of(cache_dtype, inputs)
            reference = Reference(kind)
            reference.check(*decode(kind))
            pages, table = paged(inputs, 16)
            reference.check(*decode(in_cache_of(cache_dtype, pages), block_table=table))

    @every_pair
    @pytest.mark.parametrize("heads", [(8, 2), (71, 1)])
    def test_packed_queries(
        self, device: torch.device, heads: tuple[int, int], dims: tuple[int, int]
    ) -> None:
        inputs = make_packed(PACKED_LENGTHS, QUERY_TOKENS, device=device, heads=heads, **of_dims(dims))
        reference = Reference(inputs)
        reference.check(*decode(inputs))
        reference.check(*decode(inputs, plan=plan_of_packed(inputs)))

    @every_pair
    def test_with_all_options(self, device: torch.device, dims: tuple[int, int]) -> None:
        """Over pages, with packed queries and a tree; what nobody sees is NaN."""
        inputs = pack_queries(
            make_whole_pages(PACKED_LENGTHS, 16, device=device, **of_dims(dims)), QUERY_TOKENS
        )
        inputs.options |= {
            "window_size": (250, -1),
            "softcap": 30.0,
            "sinks": torch.linspace(-1, 2, 8, device=device),
            "alibi_slopes": torch.rand(len(PACKED_LENGTHS), 8, device=device) / 4,
            "cache_leftpad": torch.arange(len(PACKED_LENGTHS), dtype=torch.int32, device=device) * 7,
            "tree_mask": random_bits((sum(QUERY_TOKENS),), 2, device),
        }
        reference = Reference(inputs)
        poison_unseen(inputs)
        pages, table = paged(inputs, 16)
        pages.options = inputs.options
        reference.check(*decode(pages, block_table=table))

    @every_pair
    def test_batch_invariant(self, device: torch.device, dims: tuple[int, int]) -> None:
        inputs = make_inputs((700, 1, 0, 2048, 3300, 129), device=device, **of_dims(dims))
        result = check_parts(inputs, 40, parts=[(4, 0, 1)])
        check_against_reference(inputs, *result)
        plan = plan_of(inputs, 40, batch_invariant=True)
        planned = ops.decode_lse(*inputs.tensors(), num_workers=40, batch_invariant=True, plan=plan)
        assert all(map(torch.equal, planned, result))

    @pytest.mark.parametrize("cache_dtype", [None, *FLOAT8])
    @pytest.mark.parametrize("page_size", [None, 16])
    @pytest.mark.parametrize("rotary_dim", [0, 32])
    def test_append(
        self, device: torch.device, rotary_dim: int, page_size: int | None, cache_dtype: torch.dtype | None
    ) -> None:
        for dims in ((192, 128), (64, 128), (48, 512)):
            for new_tokens, source in ((None, "fused"), (3, "heads_first"), (2, "expanded")):
                check_append(
                    make_append(
                        (5, 0, 33, 2),
                        new_tokens,
                        device=device,
                        source=source,
                        page_size=page_size,
                        rotary_dim=rotary_dim,
                        cache_dtype=cache_dtype,
                        scales=2 if cache_dtype else None,
                        **of_dims(dims),
                    )
                )

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda v: v[:1], ValueError, r"v_cache: shape \[1, 75, 2, 32\], expected the shape of k_cache"),
            (lambda v: v[:, 1:], ValueError, r"v_cache: shape \[2, 74, 2, 32\], .*but for head_dim"),
            (lambda v: v[:, :, :1], ValueError, r"v_cache: shape \[2, 75, 1, 32\], .*but for head_dim"),
            (lambda v: v[..., 0], ValueError, r"v_cache: shape \[2, 75, 2\], expected"),
            (lambda v: v[..., :0], ValueError, r"v_cache: shape \[2, 75, 2, 0\], expected"),
            (lambda v: v[..., :12], NotImplementedError, "v_cache: head_dim 12, expected one of"),
            (
                lambda v: torch.cat([v] * 20, -1),
                NotImplementedError,
                "v_cache: head_dim 640, expected one of",
            ),
            (elsewhere, ValueError, "v_cache: device"),
            (Tensor.double, TypeError, "v_cache: dtype"),
        ],
    )
    def test_refusals(
        self,
        device: torch.device,
        change: Callable[[Tensor], Tensor],
        error: type[Exception],
        message: str,
    ) -> None:
        inputs = make_inputs((70, 9), device=device, v_head_dim=32)
        with pytest.raises(error, match=message):
            decode(replace(inputs, v_cache=change(inputs.v_cache)))
        if error is not TypeError and change is not elsewhere:
            with pytest.raises(ValueError, match="(v_cache|out): "):  # the op makes an out of that head_dim
                ops.decode(*replace(inputs, v_cache=change(inputs.v_cache)).tensors())
        check_against_reference(inputs, *decode(inputs))

    def test_refusals_of_8_bits(self, device: torch.device) -> None:
        inputs = in_float8(make_inputs((70, 9), device=device, v_head_dim=48), FLOAT8[0])
        inputs.v_cache = inputs.v_cache[..., :40]
        with pytest.raises(NotImplementedError, match="v_cache: head_dim 40, expected a multiple of 16"):
            decode(inputs)
        with pytest.raises(ValueError, match="v_cache: head_dim 40, expected a multiple of 16"):
            ops.decode(*inputs.tensors())

    def test_refusals_of_out_and_plan(self, device: torch.device) -> None:
        inputs = make_inputs((70, 9), device=device, v_head_dim=32)
        with pytest.raises(ValueError, match=r"out: shape \[2, 8, 64\], expected \[2, 8, 32\]"):
            leanattn.decode(*inputs.tensors(), out=torch.empty_like(inputs.q))
        with pytest.raises(ValueError, match="out: expected the shape of q, .* head_dim of v_cache, 32, got"):
            ops.decode_out(*inputs.tensors(), torch.empty_like(inputs.q))
        shapes = (inputs.q, inputs.k_cache, inputs.cache_seqlens)
        with pytest.raises(ValueError, match="v_head_dim: 0, expected None, or 1 or more"):
            leanattn.plan(*shapes, v_head_dim=0)
        with pytest.raises(TypeError, match="v_head_dim: float, expected int or None"):
            leanattn.plan(*shapes, v_head_dim=1.5)  # type: ignore[arg-type]

    def test_append_refusals(self, device: torch.device) -> None:
        for change, error, message in (
            ({"v": (slice(None), slice(1))}, ValueError, r"v: shape \[2, 1, 32\], expected the shape of k"),
            ({"v": (..., slice(24))}, ValueError, "v_cache: head_dim 32, expected that of v, 24"),
            ({"v_cache": (..., slice(24))}, ValueError, "v_cache: head_dim 24, expected that of v, 32"),
            (
                {n: (..., slice(12)) for n in ("v", "v_cache")},
                NotImplementedError,
                "v: head_dim 12, expected",
            ),
        ):
            call = make_append((5, 3), device=device, v_head_dim=32)
            changed = replace(call, **{name: getattr(call, name)[at] for name, at in change.items()})
            with pytest.raises(error, match=message):
                changed.run()
            with pytest.raises(ValueError, match="v"):
                ops.append_kv(*changed.tensors())

    def test_opcheck_and_fakes(self, device: torch.device) -> None:
        for q_len in (None, 3):
            inputs = make_inputs((70, 0, 9), device=device, q_len=q_len, v_head_dim=32)
            torch.library.opcheck(ops.decode.default, inputs.tensors())
            torch.library.opcheck(ops.decode_lse.default, inputs.tensors())
            out = inputs.q.new_zeros(out_shape(inputs.q, inputs.v_cache))
            torch.library.opcheck(ops.decode_out.default, (*inputs.tensors(), out))
        inputs = make_packed((70, 0, 9), (3, 1, 40), device=device, v_head_dim=256)
        torch.library.opcheck(ops.decode_lse.default, inputs.tensors(), inputs.options)
        # With all workers there can be, nothing of a plan stays unwritten, and opcheck can compare it.
        shapes = {"max_tokens": 75, "num_q_heads": 8, "num_kv_heads": 1, "head_dim": 64, "q_len": 44}
        shapes |= {"window_right": 0, "num_workers": 1024, "v_head_dim": 256}
        torch.library.opcheck(ops.plan.default, (inputs.cache_seqlens,), {**shapes, **inputs.options})

    def test_one_graph_for_all_dims_of_a_model(self, device: torch.device) -> None:
        def step(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            plan = leanattn.plan(q, k, lengths, v_head_dim=v.shape[3])
            return leanattn.decode(q, k, v, lengths, plan=plan, return_lse=True)

        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
        for lengths in ((70, 0, 9), (5, 70), (1, 2, 70, 4, 5)):
            inputs = make_inputs(lengths, device=device, **of_dims(PAIRS[0]))
            check_against_reference(inputs, *compiled(*inputs.tensors()))
        assert counter.frame_count == 1
