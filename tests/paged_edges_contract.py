"""What a block table may and may not hold, who else must take one; tests/cpu and tests/gpu run it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from decode_cases import Inputs, check_against_reference, make_inputs
from decode_contract import RAGGED
from paged_cases import NO_PAGES, gathered, make_whole_pages, page_borders, paged
from query_tokens_contract import both_masks, decode
from refusals_contract import Arguments, Change, elsewhere, in_caches, odd_stride, replaced, shifted
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import leanattn
from leanattn.checks import lse_shape

ops = torch.ops.leanattn


def pool(device: torch.device, num_pages: int, page_size: int, lengths: tuple[int, ...]) -> Inputs:
    """Caches of pages that any table may name: all of them are filled."""
    inputs = make_inputs(lengths, device=device)
    filled = make_inputs([page_size] * num_pages, device=device, max_tokens=page_size, seed=1)
    return replace(inputs, k_cache=filled.k_cache, v_cache=filled.v_cache)


def good_arguments(device: torch.device) -> Arguments:
    """q [3, 8, 64], caches [9, 16, 2, 64], block_table [3, 5]."""
    pages, table = paged(make_whole_pages([80, 0, 9], 16, device=device), 16)
    names = ("q", "k_cache", "v_cache", "cache_seqlens")
    return dict(zip(names, pages.tensors(), strict=True)) | {"block_table": table}


def in_table(change: object) -> Change:
    assert callable(change)
    return replaced("block_table", change)


# (what is wrong, the change, the exception, what its message must say)
REFUSED: list[tuple[str, Change, type[Exception], str]] = [
    ("list", in_table(Tensor.tolist), TypeError, "block_table: list, expected torch.Tensor"),
    ("int64", in_table(Tensor.long), TypeError, "block_table: dtype torch.int64, expected torch.int32"),
    ("float", in_table(Tensor.float), TypeError, "block_table: dtype torch.float32, expected torch.int32"),
    ("device", in_table(elsewhere), ValueError, "block_table: device .*, expected"),
    ("1 dimension", in_table(lambda t: t[0]), ValueError, r"block_table: .*\[5\]|block_table: 1 dim"),
    (
        "3 dimensions",
        in_table(lambda t: t[None]),
        ValueError,
        r"block_table: .*\[1, 3, 5\]|block_table: 3 dim",
    ),
    ("batch", in_table(lambda t: t[:2]), ValueError, r"block_table: .*\[2, 5\]"),
    ("stride 2", in_table(lambda t: t.repeat(1, 2)[:, ::2]), ValueError, "block_table: .*contiguous"),
    ("stride 0", in_table(lambda t: t[:, :1].expand(-1, 5)), ValueError, "block_table: .*contiguous"),
    ("pages first", in_table(lambda t: t.T.contiguous().T), ValueError, "block_table: .*contiguous"),
    ("head_dim", replaced("k_cache", lambda t: t[..., :56]), ValueError, r"k_cache: .*16, 2, 56\]"),
    ("dimensions", replaced("k_cache", lambda t: t[0]), ValueError, r"k_cache: .*\[16, 2, 64\]"),
    ("no tokens", in_caches(lambda t: t[:, :0]), ValueError, r"k_cache: .*\[9, 0, 2, 64\]"),
    ("fewer V pages", replaced("v_cache", lambda t: t[1:]), ValueError, r"v_cache: .*\[8, 16, 2, 64\]"),
    ("other V pages", replaced("v_cache", lambda t: t[:, 1:]), ValueError, r"v_cache: .*\[9, 15, 2, 64\]"),
    ("row alignment", replaced("k_cache", odd_stride), ValueError, "k_cache: stride .* 16 bytes"),
    ("alignment", replaced("v_cache", shifted), ValueError, "v_cache: .* multiple of 16 bytes"),
    ("lengths", replaced("cache_seqlens", lambda t: t[:2]), ValueError, r"cache_seqlens: .*\[2\]"),
    (
        "2^31 tokens",
        in_caches(lambda t: t[:, :1].expand(-1, 2**29, -1, -1)),
        ValueError,
        "(k_cache|block_table): .*",
    ),
]


class PagedEdgesContract:
    """Subclasses run it, on the fixture ``device`` of conftest.py."""

    @pytest.mark.parametrize("workers", [0, 3, 40])
    @pytest.mark.parametrize("page_size", [1, 16, 24, 64])
    def test_a_page_may_be_of_any_sequences(self, device: torch.device, page_size: int, workers: int) -> None:
        """More than once of one sequence, too."""
        for num_pages in (2, 30):
            pages = pool(device, num_pages, page_size, RAGGED)
            table = torch.randint(num_pages, (len(RAGGED), 2500 // page_size + 1), device=device).int()
            got = decode(pages, workers, block_table=table)
            contiguous = gathered(pages, table)
            check_against_reference(contiguous, *got)
            assert all(map(torch.equal, got, decode(contiguous, workers)))

    def test_one_row_for_all_sequences(self, device: torch.device) -> None:
        """A table of stride 0."""
        pages = pool(device, 200, 16, RAGGED)
        table = torch.randperm(200, device=device)[:160].int().expand(len(RAGGED), -1)
        assert table.stride(0) == 0
        got = decode(pages, block_table=table)
        check_against_reference(gathered(pages, table), *got)
        assert all(map(torch.equal, got, decode(gathered(pages, table))))

    def test_a_shared_prefix_and_tails_of_their_own(self, device: torch.device) -> None:
        inputs = make_whole_pages([700, 130, 128, 500, 129], 32, device=device, q_len=2)
        for cache in (inputs.k_cache, inputs.v_cache):
            cache[:, :128] = cache[:1, :128]
        pages, table = paged(inputs, 32)
        not_shared = table[1:, :4].flatten().long()
        table[1:, :4] = table[:1, :4]
        for cache in (pages.k_cache, pages.v_cache):
            cache[not_shared] = torch.nan
        got = decode(pages, block_table=table)
        check_against_reference(inputs, *got)
        assert all(map(torch.equal, got, decode(inputs)))

    @both_masks
    @pytest.mark.parametrize("page_size", [1, 16, 40])
    def test_lengths_are_clamped_to_the_table(
        self, device: torch.device, page_size: int, causal: bool
    ) -> None:
        inputs = make_whole_pages([240, 0, 240], page_size, device=device, q_len=3)
        inputs.causal = causal
        pages, table = paged(inputs, page_size, wide=True)  # beyond its part, the table holds no pages
        expected = decode(inputs)
        check_against_reference(inputs, *expected)
        pages.cache_seqlens = torch.tensor((241, -1, 2**31 - 1), dtype=torch.int32, device=device)
        assert all(map(torch.equal, decode(pages, block_table=table), expected))

    @pytest.mark.parametrize("max_pages", [0, 1, 6])
    @pytest.mark.parametrize("num_pages", [0, 2])
    @pytest.mark.parametrize("batch", [0, 1, 5])
    def test_nothing_to_read(self, device: torch.device, batch: int, num_pages: int, max_pages: int) -> None:
        pages = pool(device, num_pages, 16, (0,) * batch)
        pages.k_cache.fill_(torch.nan)
        pages.v_cache.fill_(torch.nan)
        for entry in (*NO_PAGES, num_pages):
            table = torch.full((batch, max_pages), entry, dtype=torch.int32, device=device)
            plan = leanattn.plan(pages.q, pages.k_cache, pages.cache_seqlens, block_table=table)
            for got in (decode(pages, block_table=table), decode(pages, block_table=table, plan=plan)):
                assert got[0].shape == pages.q.shape
                assert (got[0] == 0).all()
                assert (got[1] == -torch.inf).all()

    @pytest.mark.parametrize("entry", [*NO_PAGES, "num_pages", 2**30])
    @pytest.mark.parametrize("page_size", [1, 16, 40])
    def test_a_bad_entry_in_use_harms_its_own_sequence_only(
        self, device: torch.device, page_size: int, entry: int | str
    ) -> None:
        """The others are right, and so is the next call."""
        inputs = make_whole_pages([700, 3, 1300, 0, 65, 129], page_size, device=device, heads=(32, 16))
        pages, good = paged(inputs, page_size)
        others = torch.tensor([0, 1, 3, 4, 5], device=device)
        bad = pages.k_cache.shape[0] if isinstance(entry, str) else entry
        last = 1299 // page_size
        for workers in (0, 1, 40):
            expected = decode(inputs, workers)
            check_against_reference(inputs, *expected)
            for where in (slice(0, 1), slice(last // 2, last // 2 + 1), slice(last, last + 1), slice(None)):
                table = good.clone()
                table[2, where] = bad
                got = decode(pages, workers, block_table=table)
                for result, right in zip(got, expected, strict=True):
                    assert torch.equal(result[others], right[others])
            assert all(map(torch.equal, decode(pages, workers, block_table=good), expected))

    @pytest.mark.parametrize(
        ("change", "error", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
    )
    def test_refusals(
        self, device: torch.device, change: Change, error: type[Exception], message: str
    ) -> None:
        arguments = good_arguments(device)
        expected = leanattn.decode(**arguments)
        wrong = arguments | change(arguments)
        for call in (wrong, wrong | {"return_lse": True}):
            with pytest.raises(error, match=message) as refusal:
                leanattn.decode(**call)
            assert type(refusal.value) is error
        if isinstance(wrong["block_table"], Tensor) and wrong["block_table"].device == device:
            with pytest.raises(ValueError, match=message.split(":")[0] + ": "):
                ops.decode(**wrong)
        assert torch.equal(leanattn.decode(**arguments), expected)

    def test_plan_refuses(self, device: torch.device) -> None:
        q, k, _, lengths, table = good_arguments(device).values()
        for wrong, error in ((table.tolist(), TypeError), (table[0], ValueError), (table[:2], ValueError)):
            with pytest.raises(error, match="block_table: .*expected"):
                leanattn.plan(q, k, lengths, block_table=wrong)

    @pytest.mark.parametrize("q_len", [None, 3])
    def test_opcheck(self, device: torch.device, q_len: int | None) -> None:
        pages, table = paged(make_whole_pages([70, 0, 9], 16, device=device, q_len=q_len), 16)
        tensors, options = pages.tensors(), {"block_table": table, "softmax_scale": 0.2}
        for op in (ops.decode.default, ops.decode_lse.default):
            torch.library.opcheck(op, tensors, options)
        out, lse = torch.zeros_like(pages.q), torch.zeros(lse_shape(pages.q), device=device)
        torch.library.opcheck(ops.decode_out.default, (*tensors, out), {"lse": lse, **options})
        arguments = (*tensors, out, lse, torch.zeros(30_000, device=device))
        torch.library.opcheck(ops._decode_debug.default, arguments, {"num_workers": 4, **options})

    @pytest.mark.parametrize("planned", [False, True])
    @pytest.mark.parametrize("q_len", [None, 3])
    def test_compiled(self, device: torch.device, q_len: int | None, planned: bool) -> None:
        def step(q: Tensor, k: Tensor, v: Tensor, n: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
            plan = leanattn.plan(q, k, n, block_table=table) if planned else None
            return leanattn.decode(q, k, v, n, block_table=table, plan=plan, return_lse=True)

        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
        # To the op that makes plans, the tokens of a table are a number: another one is another graph.
        tokens = 1000 if planned else 0
        for lengths in ([70, 0, 9, 300], [5, 330, 17], page_borders(16)):
            inputs = make_whole_pages(lengths, 16, tokens=tokens, device=device, q_len=q_len)
            pages, table = paged(inputs, 16)
            check_against_reference(inputs, *compiled(*pages.tensors(), table))
        assert counter.frame_count == 1, "one graph for every number of sequences and pages"

    def test_fake_tensors_are_checked_and_have_the_shapes_of_real_ones(self, device: torch.device) -> None:
        arguments = good_arguments(device)
        real = ops.decode_lse(**arguments)
        with torch._subclasses.FakeTensorMode() as mode:
            fakes = {name: mode.from_tensor(tensor) for name, tensor in arguments.items()}
            fake = ops.decode_lse(**fakes)
            for table in (fakes["block_table"][:2], fakes["block_table"][0]):
                with pytest.raises(ValueError, match="block_table: "):
                    ops.decode(**fakes | {"block_table": table})
        for a, b in zip(fake, real, strict=True):
            assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)
