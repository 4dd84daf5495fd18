"""Pages in CSR form; tests/cpu and tests/gpu run it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decode_cases import check_against_reference
from paged_cases import make_whole_pages, paged
from torch import Tensor

import leanattn

LENGTHS = (700, 0, 1, 16, 17, 0, 333)
PAGE_SIZE = 16


def csr_of(table: Tensor, lengths: tuple[int, ...], page_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """indptr, indices with garbage behind them, and last_page_len."""
    counts = [-(-length // page_size) for length in lengths]
    listed = [table[seq, :count] for seq, count in enumerate(counts)]
    indptr = torch.tensor([0, *counts], device=table.device).cumsum(0).int()
    garbage = torch.full((3,), 2**31 - 1, dtype=torch.int32, device=table.device)
    last = [(length - 1) % page_size + 1 if length else -7 for length in lengths]
    return indptr, torch.cat([*listed, garbage]), torch.tensor(last, dtype=torch.int32, device=table.device)


class CsrContract:
    """Subclasses run it, on the fixture ``device`` of conftest.py."""

    @pytest.mark.parametrize("page_size", [1, 16, 40])
    def test_decode_gives_the_bits_of_the_table(self, device: torch.device, page_size: int) -> None:
        inputs = make_whole_pages(LENGTHS, page_size, device=device)
        pages, table = paged(inputs, page_size)
        expected = leanattn.decode(*pages.tensors(), block_table=table)
        check_against_reference(inputs, expected)
        csr = csr_of(table, LENGTHS, page_size)
        for more in (0, 5):
            made, lengths = leanattn.block_table_from_csr(
                *csr, page_size=page_size, max_pages=table.shape[1] + more
            )
            assert torch.equal(lengths, inputs.cache_seqlens)
            got = leanattn.decode(pages.q, pages.k_cache, pages.v_cache, lengths, block_table=made)
            assert torch.equal(got, expected)

    def test_what_it_makes(self, device: torch.device) -> None:
        def ints(*numbers: int) -> Tensor:
            return torch.tensor(numbers, dtype=torch.int32, device=device)

        table, lengths = leanattn.block_table_from_csr(
            ints(0, 2, 2, 6), ints(7, 3, 9, 8, 5, 1), ints(4, 1, 2), page_size=10, max_pages=3
        )
        assert table.tolist() == [[7, 3, -1], [-1, -1, -1], [9, 8, 5]]
        assert lengths.tolist() == [14, 0, 30], "of four pages, three count"
        table, lengths = leanattn.block_table_from_csr(ints(0, 0), ints(), ints(3), page_size=10, max_pages=2)
        assert table.tolist() == [[-1, -1]]
        assert lengths.tolist() == [0]
        assert {table.dtype, lengths.dtype} == {torch.int32}

    def test_compiled(self, device: torch.device) -> None:
        inputs = make_whole_pages(LENGTHS, PAGE_SIZE, device=device)
        _, table = paged(inputs, PAGE_SIZE)
        csr = csr_of(table, LENGTHS, PAGE_SIZE)
        sizes: dict[str, Any] = {"page_size": PAGE_SIZE, "max_pages": 50}
        compiled = torch.compile(leanattn.block_table_from_csr, fullgraph=True, backend="aot_eager")
        assert all(map(torch.equal, compiled(*csr, **sizes), leanattn.block_table_from_csr(*csr, **sizes)))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"indptr": [0, 1]}, TypeError, "indptr: list, expected torch.Tensor"),
            ({"indices": torch.zeros(3)}, TypeError, "indices: dtype torch.float32, expected torch.int32"),
            ({"indices": torch.zeros(3, 1, dtype=torch.int32)}, ValueError, "indices: 2 dimensions"),
            (
                {"last_page_len": torch.zeros(3, dtype=torch.int32)},
                ValueError,
                r"\[3\], expected \[4\]",
            ),
            ({"last_page_len": torch.zeros(2, dtype=torch.int32, device="meta")}, ValueError, "device meta"),
            ({"page_size": 0}, ValueError, "page_size: 0, expected 1 or more"),
            ({"max_pages": 2.0}, TypeError, "max_pages: float, expected int"),
        ],
    )
    def test_refusals(
        self, device: torch.device, change: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        good: dict[str, Any] = {
            "indptr": torch.tensor([0, 1, 2], dtype=torch.int32, device=device),
            "indices": torch.zeros(2, dtype=torch.int32, device=device),
            "last_page_len": torch.ones(2, dtype=torch.int32, device=device),
            "page_size": 16,
            "max_pages": 4,
        }
        leanattn.block_table_from_csr(**good)
        on_device = {
            name: value.to(device) if isinstance(value, Tensor) and value.device.type == "cpu" else value
            for name, value in change.items()
        }
        with pytest.raises(error, match=message):
            leanattn.block_table_from_csr(**{**good, **on_device})
