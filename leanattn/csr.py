"""Pages in CSR form, as FlashInfer and SGLang keep them, for the block tables that decode reads."""

from __future__ import annotations

import torch
from torch import Tensor

from leanattn.checks import check_device, no_tensor

NO_PAGE = -1


def block_table_from_csr(
    indptr: Tensor, indices: Tensor, last_page_len: Tensor, *, page_size: int, max_pages: int
) -> tuple[Tensor, Tensor]:
    """The block table and the lengths of sequences whose pages are listed one sequence after the other.

    The pages of sequence ``b`` are ``indices[indptr[b] : indptr[b + 1]]``, all full but the last, which holds
    ``last_page_len[b]`` tokens. Made once a step, for all layers. Nothing is read on the host, so it may be
    captured in a CUDA graph; then ``indptr``, ``indices`` and ``last_page_len`` are to be changed in place.

    Args:
        indptr: [batch + 1] int32, never falling, from 0 on.
        indices: [num_indices] int32, page numbers; what it holds beyond ``indptr[batch]`` does not matter.
        last_page_len: [batch] int32, 1 to page_size; of a sequence without pages it does not matter.
        page_size: tokens of a page.
        max_pages: pages that a sequence may have; of one that has more, only the first max_pages count.

    Returns:
        ``(block_table, cache_seqlens)`` for :func:`leanattn.decode` and :func:`leanattn.append_kv`: int32,
        [batch, max_pages], -1 where a sequence has no page, and [batch].

    Raises:
        TypeError: a dtype, or something that is no tensor or int.
        ValueError: a shape or device; a number below 1.
    """
    _check(indptr, indices, last_page_len, page_size, max_pages)
    begin, end = indptr[:-1, None], indptr[1:, None]  # [batch, 1]
    places = begin + torch.arange(max_pages, dtype=torch.int32, device=indptr.device)  # [batch, max_pages]
    if indices.numel() == 0:
        table = torch.full_like(places, NO_PAGE)
    else:
        pages = indices[places.clamp(0, indices.numel() - 1)]
        table = torch.where(places < end, pages, NO_PAGE)
    count = indptr[1:] - indptr[:-1]
    lengths = torch.where(count > 0, (count - 1) * page_size + last_page_len, 0)
    return table, lengths.clamp(max=max_pages * page_size)


def _check(indptr: Tensor, indices: Tensor, last_page_len: Tensor, page_size: int, max_pages: int) -> None:
    tensors = {"indptr": indptr, "indices": indices, "last_page_len": last_page_len}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise no_tensor(**{name: tensor})
        if tensor.dtype != torch.int32:
            raise TypeError(f"{name}: dtype {tensor.dtype}, expected torch.int32")
        if tensor.dim() != 1:
            raise ValueError(f"{name}: {tensor.dim()} dimensions, expected 1")
        check_device(name, tensor, "indptr", indptr.device)
    if indptr.shape[0] != last_page_len.shape[0] + 1:
        expected = f"[{last_page_len.shape[0] + 1}], one more than last_page_len"
        raise ValueError(f"indptr: shape {list(indptr.shape)}, expected {expected}")
    for name, number in (("page_size", page_size), ("max_pages", max_pages)):
        if not isinstance(number, int):
            raise TypeError(f"{name}: {type(number).__name__}, expected int")
        if number < 1:
            raise ValueError(f"{name}: {number}, expected 1 or more")
