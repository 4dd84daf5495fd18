"""Decodes a ragged batch of realistic lengths step by step: shows the schedule, checks and times it."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import leanattn
from leanattn import lengths, viz
from leanattn.planning import plan_schedule
from leanattn.reference import decode_reference
from leanattn.schedule import Schedule

# Sequences by default. Their K and V should not fit the caches of the processor, so that every call reads
# them from memory; on a CPU all should fit 1 GB and take seconds, most of which SDPA in bfloat16 needs.
BATCH = {"cpu": 16, "cuda": 64}

DTYPES = ("float16", "bfloat16", "float32")

# The error rule: at most this many times the error of the same computation in the input dtype.
ERROR_FACTOR = 2.0


class RaggedBatch:
    """What a decoder has of a batch when a layer comes to its attention, here of random numbers.

    q [batch, num_q_heads, head_dim]; k_cache, v_cache [batch, max_tokens, num_kv_heads, head_dim];
    seqlens [batch] int32 on the device, the newest token included; tokens [batch], the same on the host, for
    everything but leanattn.decode.
    """

    def __init__(
        self, tokens: list[int], steps: int, heads: tuple[int, int], head_dim: int, like: Tensor
    ) -> None:
        self.tokens = tokens
        num_q_heads, num_kv_heads = heads
        shape = (len(tokens), max(tokens) + steps, num_kv_heads, head_dim)
        self.q = like.new_empty(len(tokens), num_q_heads, head_dim).normal_()
        self.k_cache, self.v_cache = like.new_zeros(shape), like.new_zeros(shape)
        self.seqlens = torch.tensor(tokens, dtype=torch.int32, device=like.device)
        for cache in (self.k_cache, self.v_cache):
            for sequence, length in zip(cache, tokens, strict=True):
                sequence[:length].normal_()

    def append_token(self) -> None:
        """The next step: q, k and v of a new token of every sequence; k and v enter the cache."""
        rows, place = torch.arange(len(self.tokens), device=self.seqlens.device), self.seqlens.long()
        self.q.normal_()
        self.k_cache[rows, place] = torch.randn_like(self.k_cache[:, 0])
        self.v_cache[rows, place] = torch.randn_like(self.v_cache[:, 0])
        self.seqlens += 1
        self.tokens = [length + 1 for length in self.tokens]

    def decode(self) -> Tensor:
        return leanattn.decode(self.q, self.k_cache, self.v_cache, self.seqlens)

    def sdpa_padded(self) -> Tensor:
        """torch SDPA in one call: every sequence padded to the longest, and a mask."""
        longest = max(self.tokens)
        mask = torch.arange(longest, device=self.seqlens.device) < self.seqlens[:, None]  # [batch, longest]
        k, v = (cache[:, :longest].transpose(1, 2) for cache in (self.k_cache, self.v_cache))
        q = self.q[:, :, None]  # [batch, num_q_heads, 1, head_dim]
        return scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None], enable_gqa=True)[:, :, 0]

    def sdpa_by_sequence(self) -> Tensor:
        """torch SDPA without padding: one call a sequence."""
        out = torch.empty_like(self.q)
        for seq, length in enumerate(self.tokens):
            k, v = (cache[seq : seq + 1, :length].transpose(1, 2) for cache in (self.k_cache, self.v_cache))
            q = self.q[seq : seq + 1, :, None]
            out[seq] = scaled_dot_product_attention(q, k, v, enable_gqa=True)[0, :, 0]
        return out

    def kv_bytes(self) -> int:
        """Bytes of K and V that a step has to read."""
        num_kv_heads, head_dim = self.k_cache.shape[2:]
        return 2 * sum(self.tokens) * num_kv_heads * head_dim * self.k_cache.itemsize

    def schedule(self) -> Schedule:
        return plan_schedule(
            self.tokens,
            num_q_heads=self.q.shape[1],
            num_kv_heads=self.k_cache.shape[2],
            head_dim=self.q.shape[2],
            max_tokens=self.k_cache.shape[1],
            device=self.q.device,
        )

    def errors(self) -> tuple[float, float]:
        """Largest errors against float64: of leanattn.decode, and of the same in the dtype of the input."""
        step = (self.q, self.k_cache, self.v_cache, self.seqlens)
        reference, _ = decode_reference(*step)
        same_dtype, _ = decode_reference(*step, dtype=self.q.dtype)
        ours, theirs = ((out.double() - reference).abs().max().item() for out in (self.decode(), same_dtype))
        return ours, theirs


def seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    """Time of a call, after a first one that does not count."""
    call()
    if device.type == "cuda":
        # Back to back between two events: the GPU is timed, and not how fast the host launches.
        calls = 20
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        torch.cuda.synchronize(device)
        return float(begin.elapsed_time(end)) / calls / 1e3
    times: list[float] = []
    while len(times) < 10 and sum(times) < 0.5:  # a single call of SDPA in bfloat16 may take that long
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def show_batch(batch: RaggedBatch, source: str) -> None:
    size, num_q_heads, head_dim = batch.q.shape
    num_kv_heads, dtype = batch.k_cache.shape[2], dtype_name(batch.q)
    shortest, longest, total = min(batch.tokens), max(batch.tokens), sum(batch.tokens)
    if batch.q.is_cuda:
        device = torch.cuda.get_device_name(batch.q.device)
    else:
        device = f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    print(
        f"Decode attention over {size} sequences of {shortest:,} to {longest:,} KV tokens, {total:,} in all"
    )
    print(f"  lengths  {source}")
    print(f"  heads    {num_q_heads} query, {num_kv_heads} KV, head_dim {head_dim}, {dtype}")
    print(f"  device   {device}; torch {torch.__version__}")


def show_schedule(plan: Schedule) -> None:
    """Who does how many lean tiles, and what is cut."""
    sizes = plan.worker_tiles()
    cut = plan.cut_items()
    partials = sum(len(item.slots) for item in cut)
    items = plan.items_per_seq * len(plan.seqlens)
    tiles = f"{plan.total_tiles:,} lean tiles of {plan.tile_tokens} KV tokens"
    print(f"\nSchedule of step 1: {tiles}, {plan.workers} workers")
    print(f"  tiles    {min(sizes):,} to {max(sizes):,} a worker")
    print(f"  cut      {len(cut):,} of {items:,} output tiles, into {partials:,} partials that are merged\n")
    print(viz.picture(plan))


def decode_steps(batch: RaggedBatch, steps: int) -> bool:
    """Decodes `steps` tokens of every sequence, a line each. False if an error exceeds its bound."""
    print(f"\nstep   KV tokens   bytes read         time          rate     error  in {dtype_name(batch.q)}")
    within_bound = True
    for step in range(1, steps + 1):
        time_s, kv_bytes = seconds(batch.decode, batch.q.device), batch.kv_bytes()
        row = f"{step:4} {sum(batch.tokens):11,} {kv_bytes / 1e6:9.1f} MB {time_s * 1e3:9.3f} ms"
        row += f" {kv_bytes / time_s / 1e9:8.1f} GB/s"
        if step in (1, steps):
            error, same_dtype = batch.errors()
            within_bound &= error <= ERROR_FACTOR * same_dtype  # False if the error is NaN
            row += f" {error:9.1e} {same_dtype:9.1e}"
        print(row)
        if step < steps:
            batch.append_token()
    return within_bound


def compare(batch: RaggedBatch) -> None:
    """Times the last step beside torch SDPA, in both forms in which SDPA can do a ragged batch."""
    print("\nThe last step beside torch SDPA, which has no call for ragged lengths:")
    calls = {
        "leanattn.decode": batch.decode,
        "SDPA, one padded batch with a mask, enable_gqa": batch.sdpa_padded,
        "SDPA, one call a sequence, no padding, enable_gqa": batch.sdpa_by_sequence,
    }
    ours = None
    for name, call in calls.items():
        try:
            time_s = seconds(call, batch.q.device)
        except torch.OutOfMemoryError:  # a backend of SDPA may copy K and V for every query head
            print(f"  {name:50}  out of memory")
            continue
        ours = ours or time_s
        rate = batch.kv_bytes() / time_s / 1e9
        print(f"  {name:50} {time_s * 1e3:9.3f} ms {rate:8.1f} GB/s {time_s / ours:8.1f}x")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)


def heads(text: str) -> tuple[int, int]:
    query, _, kv = text.partition("/")
    if positive(query) % positive(kv) != 0:
        raise argparse.ArgumentTypeError(f"query heads are no multiple of the KV heads in {text!r}")
    return int(query), int(kv)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m leanattn demo", description=__doc__)
    add = result.add_argument
    trace = "CSV of requests, TIMESTAMP,ContextTokens,GeneratedTokens; default: a distribution fitted to one"
    sequences = f"sequences; default: {BATCH['cpu']}, on a GPU {BATCH['cuda']}"
    add("--trace", metavar="FILE", help=trace)
    add("--batch", metavar="N", type=positive, help=sequences)
    add("--steps", metavar="N", type=positive, default=8, help="decode steps; default: %(default)s")
    add("--device", choices=tuple(BATCH), help="default: cuda if leanattn works there, else cpu")
    add("--dtype", choices=DTYPES, default="bfloat16", help="default: %(default)s")
    add("--heads", metavar="Q/KV", type=heads, default="32/8", help="query, KV heads; default: %(default)s")
    add("--head-dim", metavar="N", type=positive, default=128, help="default: %(default)s")
    add("--seed", metavar="N", type=int, default=0, help="of lengths and numbers; default: %(default)s")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo. Returns 0 if the error is within its bound, else 1; exits with 2 for bad arguments."""
    arguments = parser()
    options = arguments.parse_args(argv)
    dtype: torch.dtype = getattr(torch, options.dtype)
    works_on_gpu, _ = leanattn.is_supported("cuda", dtype, options.head_dim)
    device = options.device or ("cuda" if works_on_gpu else "cpu")
    _, reasons = leanattn.is_supported(device, dtype, options.head_dim)
    if reasons:
        arguments.error("; ".join(reasons))
    try:
        tokens, source = lengths.decode_batch(options.batch or BATCH[device], options.seed, options.trace)
    except (OSError, ValueError) as error:
        arguments.error(f"--trace: {error}")

    torch.manual_seed(options.seed)
    with torch.inference_mode():
        like = torch.empty(0, dtype=dtype, device=device)
        batch = RaggedBatch(tokens, options.steps, options.heads, options.head_dim, like)
        show_batch(batch, source)
        show_schedule(batch.schedule())
        within_bound = decode_steps(batch, options.steps)
        compare(batch)
    verdict = "OK" if within_bound else "FAILED"
    rule = f"error at most {ERROR_FACTOR:g} times that of the same computation in {options.dtype}"
    print(f"\n{verdict}: {rule}; both against float64")
    return 0 if within_bound else 1
