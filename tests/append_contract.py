"""What append_kv must do on every device; tests/cpu and tests/gpu run it, each on its own."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from append_cases import SOURCES, Append, Places, bits, check_append, dtypes_of, make_append, memory_of
from paged_cases import PAGE_LAYOUTS
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import leanattn
from leanattn.append_checks import HEAD_DIMS
from leanattn.support import FLOAT8

ops = torch.ops.leanattn

# Padding, one token, fewer than are new, and around the ends of pages.
LENGTHS = (70, 0, 9, 1, 2, 16, 17, 64, 65, 48, 3, -5)
LAYOUTS = ("tokens_first", "heads_first", "interleaved", "padded")
INT_MAX = 2**31 - 1

any_number_of_new_tokens = pytest.mark.parametrize("new_tokens", [None, 1, 2, 5, 21])
both_styles = pytest.mark.parametrize("interleaved", [False, True])


class AppendContract:
    """Subclasses run it, on the fixture ``device`` of conftest.py."""

    @any_number_of_new_tokens
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_every_layout(self, device: torch.device, layout: str, new_tokens: int | None) -> None:
        for dtype, rotary_dim in product(dtypes_of(device), (0, 32)):
            options: dict[str, Any] = {"dtype": dtype, "rotary_dim": rotary_dim}
            check_append(make_append(LENGTHS, new_tokens, device=device, layout=layout, **options))

    @any_number_of_new_tokens
    @pytest.mark.parametrize("layout", PAGE_LAYOUTS)
    @pytest.mark.parametrize("page_size", [1, 3, 16, 64])
    def test_pages(self, device: torch.device, page_size: int, layout: str, new_tokens: int | None) -> None:
        """Table entries that need not be read are no pages."""
        for dtype, rotary_dim in product(dtypes_of(device), (0, 64)):
            options: dict[str, Any] = {"dtype": dtype, "rotary_dim": rotary_dim, "page_size": page_size}
            check_append(make_append(LENGTHS, new_tokens, device=device, layout=layout, **options))

    @pytest.mark.parametrize("head_dim", HEAD_DIMS)
    def test_every_head_dim(self, device: torch.device, head_dim: int) -> None:
        widest = head_dim // 16 * 16
        for rotary_dim, interleaved in ((0, False), (widest, False), (widest, True)):
            options: dict[str, Any] = {"rotary_dim": rotary_dim, "interleaved": interleaved, "heads": (5, 3)}
            check_append(make_append((9, 0, 2), 2, device=device, head_dim=head_dim, **options))

    @both_styles
    @pytest.mark.parametrize("with_q", [False, True])
    @pytest.mark.parametrize("rotary_dim", [16, 32, 48, 112, 128])
    def test_rotary(self, device: torch.device, rotary_dim: int, with_q: bool, interleaved: bool) -> None:
        """In float32 and in the dtype of k, of several dimensions of the head."""
        for dtype, new_tokens in product(dtypes_of(device), (None, 3)):
            for factors in {torch.float32, dtype}:
                call = make_append(
                    *(LENGTHS, new_tokens),
                    device=device,
                    head_dim=128,
                    dtype=dtype,
                    rotary_dim=rotary_dim,
                    factors=factors,
                    with_q=with_q,
                    interleaved=interleaved,
                )
                check_append(call)

    @pytest.mark.parametrize("cache_dtype", FLOAT8)
    @pytest.mark.parametrize("scales", [None, 1, 2])
    @pytest.mark.parametrize("page_size", [None, 16])
    def test_float8(
        self, device: torch.device, page_size: int | None, scales: int | None, cache_dtype: torch.dtype
    ) -> None:
        """What is too large for it included."""
        for dtype, new_tokens, rotary_dim in product(dtypes_of(device), (None, 3), (0, 32, 64)):
            for interleaved in {False, rotary_dim > 0}:
                call = make_append(
                    *(LENGTHS, new_tokens),
                    device=device,
                    dtype=dtype,
                    layout="interleaved",
                    page_size=page_size,
                    rotary_dim=rotary_dim,
                    interleaved=interleaved,
                    cache_dtype=cache_dtype,
                    scales=scales,
                )
                check_append(call)
                call.k *= 2000
                call.v *= 2000
                check_append(call)

    def test_decode_reads_what_was_written(self, device: torch.device) -> None:
        call = make_append((70, 9, 1), device=device, cache_dtype=FLOAT8[0], scales=2)
        keys = torch.randn(3, 75, 2, 64, device=device, dtype=torch.bfloat16)
        values = torch.randn(3, 75, 2, 64, device=device, dtype=torch.bfloat16)
        scales: dict[str, Any] = {"k_scale": call.k_scale, "v_scale": call.v_scale}
        lengths = torch.full_like(call.cache_seqlens, 75)
        leanattn.append_kv(keys, values, call.k_cache, call.v_cache, lengths, **scales)
        q = torch.randn(3, 8, 64, device=device, dtype=torch.bfloat16)
        out = leanattn.decode(q, call.k_cache, call.v_cache, call.cache_seqlens, **scales)
        expected = leanattn.decode(q, keys, values, call.cache_seqlens)
        torch.testing.assert_close(out, expected, rtol=0.1, atol=0.2)

    @both_styles
    @pytest.mark.parametrize("source", SOURCES)
    def test_sources(self, device: torch.device, source: str, interleaved: bool) -> None:
        for new_tokens, rotary_dim in product((None, 1, 4), (0, 32)):
            options: dict[str, Any] = {"rotary_dim": rotary_dim, "interleaved": interleaved}
            check_append(make_append(LENGTHS, new_tokens, device=device, source=source, **options))

    def test_factors_that_are_part_of_a_wider_table(self, device: torch.device) -> None:
        call = make_append(LENGTHS, 3, device=device, rotary_dim=32)
        assert call.rotary_cos is not None
        assert call.rotary_sin is not None
        both = torch.cat((call.rotary_cos, call.rotary_sin), -1)  # as models keep them
        call.rotary_cos, call.rotary_sin = both.chunk(2, -1)
        check_append(call)

    @pytest.mark.parametrize("page_size", [None, 16])
    @pytest.mark.parametrize("heads", [(1, 1), (8, 1), (71, 71), (128, 8)])
    def test_heads_and_a_whole_prompt(
        self, device: torch.device, heads: tuple[int, int], page_size: int | None
    ) -> None:
        for rotary_dim, interleaved in ((0, False), (128, False), (128, True)):
            options: dict[str, Any] = {
                "rotary_dim": rotary_dim,
                "interleaved": interleaved,
                "page_size": page_size,
            }
            check_append(make_append((300, 7, 299), 300, device=device, heads=heads, head_dim=128, **options))

    def test_an_empty_batch(self, device: torch.device) -> None:
        check_append(make_append((), 2, device=device, rotary_dim=32))

    @pytest.mark.parametrize("new_tokens", [None, 3])
    @pytest.mark.parametrize("page_size", [None, 16])
    @pytest.mark.parametrize("length", [81, 83, INT_MAX])
    def test_tokens_beyond_the_cache(
        self, device: torch.device, length: int, page_size: int | None, new_tokens: int | None
    ) -> None:
        call = make_append((70, 80, 9), new_tokens, device=device, page_size=page_size, max_tokens=80)
        call.cache_seqlens[1] = length
        check_no_place(
            call, f"cache_seqlens: {length} tokens of sequence 1, expected at most 80, what its cache"
        )

    def test_lengths_far_below_0_are_padding(self, device: torch.device) -> None:
        call = make_append((-(2**31), 9, -1), 3, device=device, rotary_dim=32)
        check_append(call)

    def test_positions_without_a_factor(self, device: torch.device) -> None:
        for length, new_tokens in ((71, 1), (70 + 3, 4)):
            call = make_append((9, 75, 70), new_tokens, device=device, rotary_dim=32)
            assert call.rotary_cos is not None
            assert call.rotary_sin is not None
            call.rotary_cos, call.rotary_sin = call.rotary_cos[:70], call.rotary_sin[:70]
            call.cache_seqlens[1] = length
            check_no_place(
                call, f"cache_seqlens: {length} tokens of sequence 1, expected at most 70, the positions"
            )

    @pytest.mark.parametrize("page", [-1, 15, INT_MAX, -(2**31)])
    def test_entries_that_are_no_page(self, device: torch.device, page: int) -> None:
        """Clamped, they would be a page of another sequence."""
        for rotary_dim in (0, 32):
            options: dict[str, Any] = {"page_size": 16, "max_tokens": 60, "rotary_dim": rotary_dim}
            call = make_append((30, 33, 7), 3, device=device, **options)
            assert call.block_table is not None
            assert call.k_cache.shape[0] == 15
            call.block_table[1, 2] = page  # of token 32, the last of three new ones
            check_no_place(call, f"block_table: page {page} for token 32 of sequence 1, expected 0..14")

    def test_a_cache_without_pages(self, device: torch.device) -> None:
        call = make_append((3, 0), device=device, page_size=16)
        call.k_cache, call.v_cache = call.k_cache[:0], call.v_cache[:0]
        check_no_place(
            call, "cache_seqlens: 3 tokens of sequence 0, expected at most 0, what its cache holds"
        )

    @pytest.mark.parametrize("page_size", [None, 1, 24])
    @pytest.mark.parametrize("new_tokens", [None, 4])
    def test_decode_sees_what_was_appended(
        self, device: torch.device, new_tokens: int | None, page_size: int | None
    ) -> None:
        options: dict[str, Any] = {"page_size": page_size, "whole_table": True}
        call = make_append((70, 300, 9, 0), new_tokens, device=device, **options)
        by_hand = [written_by_hand(call, *pair) for pair in ((call.k, call.k_cache), (call.v, call.v_cache))]
        call.run()
        q = torch.cat([call.k] * 4, dim=-2)  # as good as any
        got, expected = (
            leanattn.decode(q, k, v, call.cache_seqlens, block_table=call.block_table)
            for k, v in ((call.k_cache, call.v_cache), by_hand)
        )
        assert torch.equal(got, expected)

    @pytest.mark.parametrize("page_size", [None, 16])
    @pytest.mark.parametrize("new_tokens", [None, 3])
    def test_opcheck(self, device: torch.device, new_tokens: int | None, page_size: int | None) -> None:
        for rotary_dim, interleaved in ((0, False), (32, False), (64, True)):
            options: dict[str, Any] = {
                "rotary_dim": rotary_dim,
                "interleaved": interleaved,
                "source": "heads_first",
            }
            call = make_append((70, 0, 9), new_tokens, device=device, page_size=page_size, **options)
            torch.library.opcheck(ops.append_kv.default, call.tensors(), call.options())

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    @pytest.mark.parametrize("layout", ["tokens_first", "interleaved"])
    def test_compiled(self, device: torch.device, layout: str, backend: str) -> None:
        """Written in place, q too, which is part of the same tensor as k."""

        def step(call: Append) -> Tensor:
            call.run()
            assert call.q is not None
            return leanattn.decode(call.q, call.k_cache, call.v_cache, call.cache_seqlens) * 1.0

        compiled = torch.compile(step, fullgraph=True, backend=backend)
        got, expected = (
            make_append((70, 0, 9), 2, device=device, layout=layout, rotary_dim=64) for _ in range(2)
        )
        assert torch.equal(compiled(got), step(expected))
        for a, b in zip((*got.tensors(), got.q), (*expected.tensors(), expected.q), strict=True):
            assert a is not None
            assert b is not None
            assert torch.equal(bits(memory_of(a)), bits(memory_of(b)))

    def test_one_graph_for_any_batch(self, device: torch.device) -> None:
        def step(call: Append) -> None:
            call.run()

        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
        for lengths, new_tokens in (((70, 0, 9), 4), ((5, 300), 2), ((1, 2, 3, 400, 5), 3)):
            call, expected = (
                make_append(lengths, new_tokens, device=device, rotary_dim=64) for _ in range(2)
            )
            compiled(call)
            expected.run()
            assert torch.equal(memory_of(call.k_cache), memory_of(expected.k_cache))
        assert counter.frame_count == 1
        torch._dynamo.reset()


def check_no_place(call: Append, message: str) -> None:
    """One token has none. A CPU refuses the call, and nothing is written; a GPU writes all the others."""
    if call.k.device.type == "cuda":
        check_append(call)
        return
    tensors = [t for t in (*call.tensors(), call.q) if t is not None]
    before = [memory_of(t).clone() for t in tensors]
    with pytest.raises(ValueError, match=message):
        call.run()
    for tensor, memory in zip(tensors, before, strict=True):
        assert torch.equal(bits(memory_of(tensor)), bits(memory))


def written_by_hand(call: Append, new: Tensor, cache: Tensor) -> Tensor:
    """A cache with the new rows in it, from a call that has not been made yet."""
    written, p = cache.clone(), Places.of(call)
    written[p.rows, p.columns] = new[p.seqs, p.tokens] if new.dim() == 4 else new[p.seqs]
    return written
