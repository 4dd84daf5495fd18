"""decode on a GPU: the contract of every device, and the sizes that only a GPU can hold."""

from __future__ import annotations

import pytest
import torch
from decode_cases import Inputs, make_inputs
from decode_contract import DecodeContract, decode_and_check, decode_debug
from torch import Tensor

import leanattn

pytestmark = pytest.mark.gpu

ops = torch.ops.leanattn


class TestDecode(DecodeContract):
    pass


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads", [(8, 8), (32, 8), (64, 4), (20, 1), (32, 1), (71, 1)])
def test_shapes_of_models(
    gpu: torch.device, heads: tuple[int, int], dtype: torch.dtype, head_dim: int
) -> None:
    lengths = (4097, 1, 900, 0, 12_345, 64)
    decode_and_check(make_inputs(lengths, device=gpu, heads=heads, dtype=dtype, head_dim=head_dim))


@pytest.mark.parametrize("heads", [(8, 1), (32, 8)])
def test_a_quarter_million_tokens(gpu: torch.device, heads: tuple[int, int]) -> None:
    decode_and_check(make_inputs((262_144, 77), device=gpu, heads=heads, head_dim=128))


def test_a_million_tokens(gpu: torch.device) -> None:
    decode_and_check(make_inputs((1_048_576,), device=gpu, heads=(4, 1), head_dim=128))


@pytest.fixture(scope="module")
def huge_memory(gpu: torch.device) -> Tensor:
    """[200, 2^24] bfloat16, 6.7 GB of NaN: row 128 and all after it begin at element 2^31 or later."""
    needed = 200 * 2**24 * 2
    if torch.cuda.mem_get_info(gpu)[0] < needed + 2**30:
        pytest.skip(f"needs {needed / 1e9:.1f} GB of free GPU memory")
    return torch.full((200, 2**24), torch.nan, dtype=torch.bfloat16, device=gpu)


@pytest.mark.parametrize("dimension", ["batch", "token", "head"])
def test_offsets_beyond_32_bits(huge_memory: Tensor, dimension: str) -> None:
    """Strides of 2^24 elements, in one dimension of the caches after the other."""
    device = huge_memory.device

    def cache(first: int) -> Tensor:
        rows = huge_memory[:, first : first + 128 * 128]
        if dimension == "batch":
            view = rows.view(200, 64, 2, 128)
        elif dimension == "token":
            view = rows[:, :1024].view(1, 200, 8, 128)
        else:
            view = rows.view(200, 1, 128, 128).permute(1, 2, 0, 3)
        return view.copy_(torch.randn(view.shape, device=device))

    k_cache, v_cache = cache(0), cache(2**20)
    batch, max_tokens, num_kv_heads, head_dim = k_cache.shape
    lengths = torch.randint(1, max_tokens + 1, (batch,), dtype=torch.int32, device=device)
    q = torch.randn(batch, num_kv_heads * 2, head_dim, dtype=torch.bfloat16, device=device)
    decode_and_check(Inputs(q, k_cache, v_cache, lengths))


@pytest.mark.parametrize("heads", [(8, 2), (32, 2), (64, 2), (16, 4)])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 192])
@pytest.mark.parametrize("max_stages", [2, 3, 4])
def test_a_short_ring(gpu: torch.device, max_stages: int, head_dim: int, heads: tuple[int, int]) -> None:
    """As on GPUs with less shared memory: two stages on compute capability 8.6, 8.9 and 12.0."""
    inputs = make_inputs((3000, 1, 0, 640, 65), device=gpu, heads=heads, head_dim=head_dim)
    for workers in (1, 3, 40):
        expected = ops.decode_lse(*inputs.tensors(), num_workers=workers)
        got = decode_debug(inputs, workers, max_stages=max_stages)
        assert all(map(torch.equal, got, expected))


def test_margin_is_taken_from_the_sms(gpu: torch.device) -> None:
    inputs = make_inputs((5000, 70, 900), device=gpu)
    sms = torch.cuda.get_device_properties(gpu).multi_processor_count
    for margin in (0, 1, sms // 2, sms - 1):
        expected = ops.decode(*inputs.tensors(), num_workers=sms - margin)
        assert torch.equal(decode_and_check(inputs, sm_margin=margin)[0], expected)


def test_scratch_memory_does_not_grow_with_the_batch(gpu: torch.device) -> None:
    def peak(lengths: tuple[int, ...]) -> int:
        inputs = make_inputs(lengths, device=gpu)
        out = torch.empty_like(inputs.q)
        torch.cuda.reset_peak_memory_stats(gpu)
        before = torch.cuda.memory_allocated(gpu)
        leanattn.decode(*inputs.tensors(), out=out)
        return torch.cuda.max_memory_allocated(gpu) - before

    assert peak((64,)) == peak((3000,)) == peak((500,) * 300)


def test_a_tensor_on_a_device_that_is_not_current(gpu: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    with torch.cuda.device(gpu):
        decode_and_check(make_inputs((300, 0, 65), device=torch.device("cuda", 1)))
        assert torch.cuda.current_device() == gpu.index
