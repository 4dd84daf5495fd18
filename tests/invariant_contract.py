"""What batch-invariant calls must do on every device; tests/cpu and tests/gpu run it, each on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from decode_cases import Inputs, Reference, check_against_reference, make_inputs, of_sequences, plan_of
from decode_contract import decode_debug
from float8_contract import in_float8
from paged_cases import make_whole_pages, paged
from score_options_contract import poison_unseen
from torch import Tensor

import leanattn
from leanattn.score_options import ScoreOptions
from leanattn.support import FLOAT8

ops = torch.ops.leanattn

# Of one piece and of many; the last one alone has more to do than all others.
LENGTHS = (700, 1, 0, 2048, 5000, 64, 3300, 129, 0, 4096, 1023, 12_000)

Result = tuple[Tensor, Tensor]

every_workers = pytest.mark.parametrize("workers", [1, 3, 40])


def decode(inputs: Inputs, workers: int, **more: Any) -> Result:
    changes = dict(inputs.options)
    scales = {name: changes.pop(name, None) for name in ("k_scale", "v_scale")}
    options = ScoreOptions(**changes).as_op_arguments() | scales | {"causal": inputs.causal}
    options |= {"num_workers": workers, "batch_invariant": True, **more}
    result: Result = ops.decode_lse(*inputs.tensors(), **options)
    return result


def check_parts(
    inputs: Inputs,
    workers: int,
    parts: Sequence[Sequence[int]] = (),
    change: Callable[[Inputs], Inputs] = lambda part: part,
) -> Result:
    """Each sequence alone, and each part of the batch, gets what it gets with all others: bit for bit."""
    whole = decode(inputs, workers)
    for sequences in (*parts, *([seq] for seq in range(len(inputs.q)))):
        part = decode(change(of_sequences(inputs, sequences)), workers)
        for got, expected in zip(part, whole, strict=True):
            assert torch.equal(got, expected[list(sequences)]), f"{sequences} of the batch"
    return whole


class InvariantContract:
    """Subclasses run it, on the fixture ``device`` of conftest.py."""

    @every_workers
    @pytest.mark.parametrize(
        ("heads", "head_dim", "q_len"),
        [
            ((8, 2), 64, None),
            ((8, 8), 128, None),
            ((4, 2), 256, None),
            ((71, 1), 64, None),
            ((8, 2), 128, 4),
            ((3, 1), 72, 16),
        ],
    )
    def test_a_sequence_alone(
        self, device: torch.device, heads: tuple[int, int], head_dim: int, q_len: int | None, workers: int
    ) -> None:
        shape: dict[str, Any] = {"heads": heads, "head_dim": head_dim, "q_len": q_len}
        inputs = make_inputs(LENGTHS, device=device, dtype=torch.float16, **shape)
        check_against_reference(inputs, *check_parts(inputs, workers))

    @every_workers
    def test_other_batches(self, device: torch.device, workers: int) -> None:
        inputs = make_inputs(LENGTHS, device=device)
        backwards = range(len(LENGTHS))[::-1]
        check_parts(inputs, workers, [backwards, (11, 11, 4, 4, 4), range(6), (4,) * 70, range(0, 12, 5)])

    def test_without_it_the_batch_shows(self, device: torch.device) -> None:
        """Else the other tests here would test nothing."""
        inputs = make_inputs(LENGTHS, device=device, dtype=torch.float16)
        whole = decode(inputs, 40, batch_invariant=False)
        alone = [
            decode(of_sequences(inputs, [seq]), 40, batch_invariant=False) for seq in range(len(LENGTHS))
        ]
        assert not all(
            torch.equal(torch.cat(x), y) for x, y in zip(zip(*alone, strict=True), whole, strict=True)
        )

    @pytest.mark.parametrize("workers", [3, 40])
    def test_other_lengths_of_the_others(self, device: torch.device, workers: int) -> None:
        inputs = make_inputs(LENGTHS, device=device)
        expected = decode(inputs, workers)
        inputs.k_cache.nan_to_num_(0.0)
        inputs.v_cache.nan_to_num_(0.0)
        lengths = torch.tensor(LENGTHS, device=device)
        for factor in (0, 1, 2, 7):
            others = torch.arange(len(LENGTHS), device=device) % 2 == factor % 2
            changed = torch.where(others, lengths * factor // 2, lengths).int()
            got = decode(replace(inputs, cache_seqlens=changed), workers)
            for after, before in zip(got, expected, strict=True):
                assert torch.equal(after[~others], before[~others])

    @pytest.mark.parametrize("max_tokens", [12_000, 40_000])
    def test_another_capacity_and_other_strides(self, device: torch.device, max_tokens: int) -> None:
        expected = decode(make_inputs(LENGTHS, device=device, max_tokens=12_005), 40)
        inputs = make_inputs(LENGTHS, device=device, max_tokens=12_005)
        k, v = (
            torch.nn.functional.pad(cache, (0, 8, 0, 1, 0, max_tokens - 12_005), value=torch.nan)
            for cache in (inputs.k_cache, inputs.v_cache)
        )
        got = decode(replace(inputs, k_cache=k[:, :, :2, :64], v_cache=v[:, :, :2, :64]), 40)
        assert all(map(torch.equal, got, expected))

    @every_workers
    @pytest.mark.parametrize("q_len", [None, 3])
    def test_with_options(self, device: torch.device, q_len: int | None, workers: int) -> None:
        inputs = make_inputs(LENGTHS, device=device, q_len=q_len)
        inputs.options = {
            "window_size": (2900, -1),
            "softcap": 30.0,
            "sinks": torch.linspace(-2, 2, 8, device=device),
            "alibi_slopes": torch.linspace(0, 0.1, 8 * len(LENGTHS), device=device).view(-1, 8),
            "cache_leftpad": torch.arange(len(LENGTHS), dtype=torch.int32, device=device) * 40,
        }
        reference = Reference(inputs)
        poison_unseen(inputs)
        reference.check(*check_parts(inputs, workers, [range(4, 12)]))

    @pytest.mark.parametrize("page_size", [16, 24])
    def test_pages(self, device: torch.device, page_size: int) -> None:
        """Wherever they lie, and paged or not."""
        inputs = make_whole_pages(LENGTHS, page_size, device=device, q_len=2)
        expected = check_parts(inputs, 40)
        for seed in range(2):
            pages, table = paged(inputs, page_size, seed=seed)
            assert all(map(torch.equal, decode(pages, 40, block_table=table), expected))

    @pytest.mark.parametrize("cache_dtype", FLOAT8)
    def test_float8(self, device: torch.device, cache_dtype: torch.dtype) -> None:
        inputs = in_float8(make_inputs(LENGTHS, device=device, head_dim=128), cache_dtype, 2)
        Reference(inputs).check(*check_parts(inputs, 40, [range(3, 12)]))

    @every_workers
    @pytest.mark.parametrize("lengths", [LENGTHS, (9000,), (0, 0), (5000,) * 40])
    def test_a_plan_leaves_the_bits(
        self, device: torch.device, lengths: tuple[int, ...], workers: int
    ) -> None:
        inputs = make_inputs(lengths, device=device)
        expected = decode(inputs, workers)
        plan = plan_of(inputs, workers, batch_invariant=True)
        assert all(map(torch.equal, decode(inputs, workers, plan=plan), expected))
        # These lengths are wrong: nobody reads them any more.
        wrong = replace(inputs, cache_seqlens=torch.full_like(inputs.cache_seqlens, -1))
        for fresh_tokens in (None, 0, 3):
            got = decode(wrong, workers, plan=plan, fresh_tokens=fresh_tokens)
            assert all(map(torch.equal, got, expected))

    def test_plans_of_the_two_kinds_are_not_mistaken(self, device: torch.device) -> None:
        inputs = make_inputs(LENGTHS, device=device)
        plans = {kind: plan_of(inputs, 40, batch_invariant=kind) for kind in (False, True)}
        for kind in plans:
            options = {"batch_invariant": kind, "softcap": 20.0}  # on a GPU the same kernel for both
            inputs.options = {"softcap": options.pop("softcap")}
            expected = decode(inputs, 40, **options)
            got = decode(inputs, 40, plan=plans[not kind], **options)
            assert all(map(torch.equal, got, expected))

    @pytest.mark.parametrize("workers", [2, 3, 7, 40])
    @pytest.mark.parametrize("heads", [(8, 2), (20, 1)])
    def test_in_any_order_of_arrival(
        self, device: torch.device, heads: tuple[int, int], workers: int
    ) -> None:
        inputs = make_inputs(LENGTHS, device=device, heads=heads)
        expected = decode(inputs, workers)
        for seed in range(4):
            for fresh_tokens in (None, 1):
                options: dict[str, Any] = {"delay_seed": seed, "fresh_tokens": fresh_tokens}
                got = decode_debug(inputs, workers, garbage=torch.nan, batch_invariant=True, **options)
                assert all(map(torch.equal, got, expected))

    def test_the_documented_way(self, device: torch.device) -> None:
        inputs = make_inputs(LENGTHS, device=device)
        plan = leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens, batch_invariant=True)
        expected = leanattn.decode(*inputs.tensors(), batch_invariant=True)
        check_against_reference(inputs, expected)
        out = torch.empty_like(expected)
        leanattn.decode(*inputs.tensors(), plan=plan, out=out, batch_invariant=True)
        assert torch.equal(out, expected)
        alone, _ = leanattn.decode(
            *of_sequences(inputs, [4]).tensors(), batch_invariant=True, return_lse=True
        )
        assert torch.equal(alone[0], expected[4])
        assert leanattn.is_supported(device, torch.bfloat16, 64, options=["batch_invariant"]) == (True, [])

    def test_refusals(self, device: torch.device) -> None:
        inputs = make_inputs((70, 9), device=device)
        for value in (1, None, "yes"):
            with pytest.raises(TypeError, match="batch_invariant: .*, expected bool"):
                leanattn.decode(*inputs.tensors(), batch_invariant=value)  # type: ignore[call-overload]
            with pytest.raises(TypeError, match="batch_invariant: .*, expected bool"):
                leanattn.plan(inputs.q, inputs.k_cache, inputs.cache_seqlens, batch_invariant=value)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="fixed_splits: 2, expected 0 with batch_invariant"):
            decode_debug(inputs, 3, fixed_splits=2, batch_invariant=True)

    def test_opcheck_and_compile(self, device: torch.device) -> None:
        inputs = make_inputs((70, 0, 2100), device=device, q_len=2)
        options = {"batch_invariant": True}
        torch.library.opcheck(ops.decode.default, inputs.tensors(), options)
        torch.library.opcheck(ops.decode_lse.default, inputs.tensors(), options)

        def step(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
            plan = leanattn.plan(q, k, lengths, batch_invariant=True)
            return leanattn.decode(q, k, v, lengths, plan=plan, batch_invariant=True)

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*inputs.tensors()), step(*inputs.tensors()))
