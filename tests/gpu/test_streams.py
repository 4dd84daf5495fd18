"""Calls in flight at the same time, and a GPU that is busy with something else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from decode_cases import Inputs, make_inputs
from torch import Tensor

import leanattn

pytestmark = pytest.mark.gpu

ops = torch.ops.leanattn

LENGTHS = ((5000, 70, 900), (64, 9000, 0, 333), (1,) * 50, (20_000,))


def differing_runs(
    inputs: Inputs, expected: Tensor, stream: torch.cuda.Stream, workers: int, runs: int
) -> Tensor:
    """Queues calls on a stream; returns the number of values that will have differed from `expected`."""
    with torch.cuda.stream(stream):
        out = torch.full_like(expected, torch.nan)
        differences = torch.zeros((), dtype=torch.int64, device=expected.device)
        for _ in range(runs):
            ops.decode_out(*inputs.tensors(), out, num_workers=workers)
            differences += (out != expected).sum()
            out.fill_(torch.nan)
    return differences


@pytest.mark.parametrize("workers", [8, 60, 0])
def test_two_streams_at_once(gpu: torch.device, workers: int) -> None:
    jobs = [make_inputs(lengths, device=gpu, seed=i) for i, lengths in enumerate(LENGTHS[:2])]
    expected = [ops.decode(*inputs.tensors(), num_workers=workers) for inputs in jobs]
    streams = [torch.cuda.Stream() for _ in jobs]
    torch.cuda.synchronize()
    counts = []
    for _ in range(25):  # in turns, so that both streams always have something queued
        counts += [differing_runs(*job, workers, 20) for job in zip(jobs, expected, streams, strict=True)]
    torch.cuda.synchronize()
    assert not any(counts)


def test_many_streams(gpu: torch.device) -> None:
    jobs = [make_inputs(LENGTHS[i % 4], device=gpu, seed=i) for i in range(64)]
    expected = [ops.decode(*inputs.tensors(), num_workers=20) for inputs in jobs]
    streams = [torch.cuda.Stream(priority=-(i % 2)) for i in range(64)]  # torch has 32 of each priority
    torch.cuda.synchronize()
    counts = []
    for _ in range(5):
        counts += [differing_runs(*job, 20, 5) for job in zip(jobs, expected, streams, strict=True)]
    torch.cuda.synchronize()
    assert not any(counts)


def test_threads_with_a_stream_each(gpu: torch.device) -> None:
    def job(seed: int) -> int:
        inputs = make_inputs(LENGTHS[seed % 4], device=gpu, seed=seed)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            expected = ops.decode(*inputs.tensors(), num_workers=30)
        differences = differing_runs(inputs, expected, stream, 30, 50)
        stream.synchronize()
        return int(differences)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(job, range(32))) == 0


@pytest.mark.parametrize("workers", [0, 1024])
def test_while_another_kernel_holds_the_sms(gpu: torch.device, workers: int) -> None:
    inputs = make_inputs(LENGTHS[0], device=gpu)
    expected = ops.decode(*inputs.tensors(), num_workers=workers)
    matrix = torch.randn(8192, 8192, device=gpu, dtype=torch.bfloat16)
    hog, mine = torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(hog):
        for _ in range(100):
            torch.mm(matrix, matrix)
    differences = differing_runs(inputs, expected, mine, workers, 100)
    torch.cuda.synchronize()
    assert int(differences) == 0


def test_nothing_synchronises(gpu: torch.device) -> None:
    """A call returns while the work before it still runs."""
    inputs = make_inputs(LENGTHS[0], device=gpu)
    expected = leanattn.decode(*inputs.tensors())
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # clock cycles: about a second
    before = torch.cuda.Event()
    before.record()
    out = leanattn.decode(*inputs.tensors())
    assert not before.query()
    assert torch.equal(out, expected)
