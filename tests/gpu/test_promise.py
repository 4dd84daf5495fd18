"""fresh_tokens: calls that begin while the kernel ahead is still about to write what they must wait for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
import torch
from decode_cases import check_against_reference, make_inputs
from torch import Tensor

from leanattn.checks import lse_shape

pytestmark = pytest.mark.gpu

ops = torch.ops.leanattn

Shape = tuple[int, int, int]  # query heads, KV heads, head_dim
Batch = tuple[int, int, int]  # tokens of the first sequence, how many more each further one has, sequences

every_shape = pytest.mark.parametrize(
    "shape", [(8, 2, 128), (32, 8, 128), (16, 1, 64), (64, 4, 128), (8, 8, 64)], ids=str
)
few_and_all_workers = pytest.mark.parametrize("workers", [7, 0])


class Calls:
    """A kernel that writes K and V of each sequence's newest tokens, q_len of them, and three calls of decode
    behind it, each with its q from the one ahead. What they write is NaN before. The kernel is a call, too:
    of one CTA, so that what is behind it has the other SMs meanwhile. Or it only copies.
    """

    def __init__(
        self, device: torch.device, shape: Shape, batch: Batch, *, copies: bool = False, q_len: int = 1
    ) -> None:
        num_q_heads, num_kv_heads, dim = shape
        first, more, count = batch
        heads = (num_q_heads, num_kv_heads)
        lengths = [
            first + more * seq + 2 for seq in range(count)
        ]  # two more than used: for lengths that grow
        self.inputs = make_inputs(
            lengths, device=device, q_len=q_len, heads=heads, head_dim=dim, layout="interleaved"
        )
        self.inputs.cache_seqlens.sub_(2)
        # K and V of a token are neighbours, so that both are the output of one call.
        k = self.inputs.k_cache
        strides = (k.stride(0) + more * k.stride(1), k.stride(1), dim, 1)
        start = k.storage_offset() + (first - q_len) * k.stride(1)
        self.newest = k.as_strided((count, q_len, 2 * num_kv_heads, dim), strides, start)
        self.tokens = self.newest.clone() if copies else None
        lengths = [max(64, 9000 // count)] * count
        heads = (2 * num_kv_heads, 1)
        self.ahead = make_inputs(lengths, device=device, q_len=q_len, heads=heads, head_dim=dim)
        q = self.inputs.q
        self.results = [(torch.empty_like(q), torch.empty(lse_shape(q), device=device)) for _ in range(3)]
        # Three partials a worker, [rows, head_dim] and a few numbers a row each; more is no matter.
        sms = torch.cuda.get_device_properties(device).multi_processor_count
        self.workspace = torch.empty(3 * sms * q_len * num_q_heads * (dim + 16), device=device)

    def poison(self) -> None:
        for tensor in (self.newest, self.workspace, *self.outputs()):
            tensor.fill_(torch.nan)

    def queue(self, workers: int, **options: int) -> None:
        if self.tokens is not None:
            self.newest.copy_(self.tokens)
        else:
            ops.decode_out(*self.ahead.tensors(), self.newest, num_workers=1)
        q, *rest = self.inputs.tensors()
        for out, lse in self.results:
            ops._decode_debug(q, *rest, out, lse, self.workspace, num_workers=workers, **options)
            q = out

    def run(self, workers: int, **options: int) -> list[Tensor]:
        self.poison()
        torch.cuda._sleep(300_000)  # clock cycles, until all is queued
        self.queue(workers, **options)
        return [tensor.clone() for tensor in self.outputs()]

    def outputs(self) -> list[Tensor]:
        return [tensor for result in self.results for tensor in result]


def check_promises(
    calls: Calls, workers: int, *, fresh_tokens: Sequence[int], max_stages: Sequence[int]
) -> None:
    """With each of the promises the outputs are those without one, bit for bit."""
    expected = calls.run(workers)
    check_against_reference(calls.inputs, *expected[:2])
    for fresh, stages, seed in product(fresh_tokens, max_stages, (0, 1)):
        got = calls.run(workers, fresh_tokens=fresh, max_stages=stages, delay_seed=seed)
        assert all(map(torch.equal, got, expected)), f"{fresh=} {stages=} {seed=}"


@few_and_all_workers
@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize(
    "batch", [(5000, 0, 1), (1, 1, 3), (17, 61, 12), (64, 64, 9), (40, 0, 300), (33_000, 0, 1)], ids=str
)
@every_shape
def test_fresh_tokens_are_waited_for(
    gpu: torch.device, shape: Shape, batch: Batch, copies: bool, workers: int
) -> None:
    calls = Calls(gpu, shape, batch, copies=copies)
    check_promises(calls, workers, fresh_tokens=(1, 200, 2**40), max_stages=(0, 2, 3))


@few_and_all_workers
@pytest.mark.parametrize(
    "batch", [(5000, 0, 1), (16, 61, 12), (64, 64, 9), (69, 0, 300), (2000, 0, 40)], ids=str
)
@pytest.mark.parametrize(
    ("shape", "q_len"), [((8, 2, 128), 4), ((8, 1, 128), 4), ((32, 8, 128), 2), ((16, 1, 64), 16)], ids=str
)
def test_several_fresh_tokens_are_waited_for(
    gpu: torch.device, shape: Shape, q_len: int, batch: Batch, workers: int
) -> None:
    """They may lie in two tiles. Of 40 sequences, those of (16, 1, 64) go to wgmma, which uses no promise."""
    calls = Calls(gpu, shape, batch, q_len=q_len)
    check_promises(calls, workers, fresh_tokens=(q_len, 200), max_stages=(0,))


@few_and_all_workers
@every_shape
def test_a_broken_promise_shows(gpu: torch.device, shape: Shape, workers: int) -> None:
    """Else no call would begin early, and the other tests here would test nothing."""
    if torch.cuda.get_device_capability(gpu) < (9, 0):
        pytest.skip("calls begin when the kernel ahead has finished")
    calls = Calls(gpu, shape, (64, 64, 3))
    calls.run(workers)  # loads the kernels
    assert calls.run(workers, fresh_tokens=0)[0].isnan().any()


@few_and_all_workers
@every_shape
def test_in_a_graph_at_any_lengths(gpu: torch.device, shape: Shape, workers: int) -> None:
    calls = Calls(gpu, shape, (17, 61, 12))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls.queue(workers, fresh_tokens=3)  # two tokens longer, what is written is the third from the end
    n = calls.inputs.cache_seqlens.clone()
    for lengths in (n, n + 2, n - 1, n // 2, n * 0, n * (n % 2)):
        calls.inputs.cache_seqlens.copy_(lengths)
        for _ in range(5):
            calls.poison()
            graph.replay()
            got = [tensor.clone() for tensor in calls.outputs()]
            assert all(map(torch.equal, got, calls.run(workers)))
