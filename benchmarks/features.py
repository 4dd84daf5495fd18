"""Times decode's options and caches of 8 bits beside the plain call: `python -m benchmarks.features`.

The method is that of benchmarks.decode, back to back: cold caches, a CUDA graph, medians; plans are made
beforehand. All values of the cache are 8-bit floats, so that both caches hold the
same; for a cache of int8 they are rounded to multiples of its scale. Options have values that leave the
result as it is, and a window shows what a second, shorter cache holds, so that every call is checked.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch

import leanattn
from benchmarks import method
from benchmarks.case import Case
from benchmarks.measure import ShapeBench
from benchmarks.ours import calls_with_out
from benchmarks.read_limit import read_limit
from benchmarks.shape_command import Record, ShapeCommand, time
from benchmarks.shapes import Shape
from benchmarks.tables import microseconds, number

OPTIONS = ("softcap", "sinks", "alibi", "leftpad", "invariant")
FLOAT8, WIDER_FLOAT8 = torch.float8_e4m3fn, torch.float8_e5m2
# Nearly all normal numbers are less than 127 of it, and bfloat16 holds its multiples.
INT8_SCALE = 1 / 32

Options = dict[str, Any]


def neutral_options(case: Case) -> dict[str, Options]:
    """Options that change nothing of the result: all that they cost is seen."""
    heads, device = case.shape.heads.query, case.q.device
    return {
        "plain": {},
        "softcap": {"softcap": 1e4},
        "sinks": {"sinks": torch.full((heads,), -1e30, device=device)},
        "alibi": {"alibi_slopes": torch.zeros(heads, device=device)},
        "leftpad": {"cache_leftpad": torch.zeros(case.shape.batch, dtype=torch.int32, device=device)},
        "invariant": {"batch_invariant": True},
    }


def round_to_float8(case: Case) -> None:
    """To what both dtypes hold, but for numbers below 2^-9."""
    for tensor in case.k + case.v:
        tensor.copy_(tensor.to(WIDER_FLOAT8).to(tensor.dtype).to(FLOAT8))


def in_int8_steps(case: Case) -> Case:
    """The case with its caches rounded to what int8 holds."""

    def rounded(cache: list[torch.Tensor]) -> list[torch.Tensor]:
        return [(t / INT8_SCALE).round().clamp(-127, 127) * INT8_SCALE for t in cache]

    return replace(case, k=rounded(case.k), v=rounded(case.v))


def time_int8(bench: ShapeBench) -> float | None:
    """Microseconds of a call with a cache of int8; None if it is wrong. Scales of a head are neighbours."""
    case, heads = bench.case, bench.case.shape.heads.kv
    scales: dict[int, Options] = {}  # by where the keys are: copies have their own, which are cold too

    def in_int8(tensor: torch.Tensor) -> torch.Tensor:
        return (tensor / INT8_SCALE).nan_to_num(0.0).to(torch.int8)

    keys, values = [in_int8(k) for k in case.k], [in_int8(v) for v in case.v]
    for k in keys:
        made = torch.full((2, len(k), heads, k.shape[1]), INT8_SCALE, device=k.device).transpose(2, 3)
        scales[k.data_ptr()] = {"k_scale": made[0], "v_scale": made[1]}
    plan = leanattn.plan(case.q, keys[0], case.seqlens)
    decode = partial(torch.ops.leanattn.decode_out, plan=plan)
    calls = calls_with_out(
        replace(case, k=keys, v=values),
        lambda k, v, out: decode(case.q, k, v, case.seqlens, out, **scales[k.data_ptr()]),
    )
    return time(bench, calls)


def time_with(bench: ShapeBench, options: Options, float8: torch.dtype | None = None) -> float | None:
    """Microseconds of a call with these options; None if it is wrong."""
    case = bench.case
    caches = (case.k, case.v)
    if float8 is not None:
        caches = ([k.to(float8) for k in case.k], [v.to(float8) for v in case.v])
        ones = torch.ones(case.shape.heads.kv, device=case.q.device)
        options = {**options, "k_scale": ones, "v_scale": ones}
    known = {name: value for name, value in options.items() if name not in ("k_scale", "v_scale")}
    left = known.pop("window_left", -1)
    plan = leanattn.plan(case.q, caches[0][0], case.seqlens, window_size=(left, -1), **known)
    options = {**options, "plan": plan}
    decode = partial(torch.ops.leanattn.decode_out, **options)
    calls = calls_with_out(
        replace(case, k=caches[0], v=caches[1]), lambda k, v, out: decode(case.q, k, v, case.seqlens, out)
    )
    return time(bench, calls)


def time_window(case: Case, tolerance: float) -> Record:
    """Half of the cache in a window, beside a cache of that half; for sequences of equal length."""
    tokens = case.shape.max_tokens // 2
    first = case.shape.max_tokens - tokens
    shorter = Case(
        replace(case.shape, lengths=(tokens,) * case.shape.batch),
        case.q,
        case.seqlens - first,
        [k[:, first:] for k in case.k],
        [v[:, first:] for v in case.v],
    )
    alone = ShapeBench(shorter, tolerance)
    seen = ShapeBench(case, tolerance)
    seen.expected, seen.kv_bytes = alone.expected, alone.kv_bytes
    return {"alone": time_with(alone, {}), "window": time_with(seen, {"window_left": tokens - 1})}


def measure(shape: Shape) -> Record:
    bytes_of_float8 = shape.kv_bytes(FLOAT8.itemsize)
    copies = method.copies_for(bytes_of_float8)
    case = Case.random(shape, torch.bfloat16, "cuda", copies)
    round_to_float8(case)
    tolerance = method.TOLERANCE["bf16"]
    bench = ShapeBench(case, tolerance)
    bench.kv_bytes = bytes_of_float8  # there are as many copies for all
    float8_us, e5m2_us = (time_with(bench, {}, dtype) for dtype in (FLOAT8, WIDER_FLOAT8))
    record: Record = {
        "name": shape.name,
        "us": {name: time_with(bench, options) for name, options in neutral_options(case).items()},
        "float8": {
            "us": float8_us,
            "e5m2_us": e5m2_us,
            "read_limit": read_limit().time(bytes_of_float8)[0].median_us,
        },
    }
    if not shape.ragged:
        record |= time_window(case, tolerance)
    in_steps = ShapeBench(in_int8_steps(case), tolerance)
    in_steps.kv_bytes = bytes_of_float8
    record["int8"] = {"us": time_int8(in_steps)}
    return record


def ratio(us: float | None, to: float | None) -> str:
    return number(us / to if us and to else None, 3)


def row(shape: Record) -> list[str]:
    us, float8 = shape["us"], shape["float8"]
    limit, int8_us = float8["read_limit"], shape.get("int8", {}).get("us")
    return [
        *(shape["name"], microseconds(us["plain"]), *(ratio(us.get(name), us["plain"]) for name in OPTIONS)),
        *(microseconds(shape.get("alone")), ratio(shape.get("window"), shape.get("alone"))),
        *(microseconds(float8["us"]), microseconds(limit), microseconds(1.02 * limit + 2)),
        *(ratio(us["plain"], float8["us"]), microseconds(float8.get("e5m2_us"))),
        *(microseconds(int8_us), ratio(us["plain"], int8_us)),
    ]


def command() -> ShapeCommand:
    columns = (
        *("shape", "plain us", *(f"x {name}" for name in OPTIONS), "half us", "x window"),
        *("float8 us", "read limit us", "goal us", "plain / float8", "e5m2 us", "int8 us", "plain / int8"),
    )
    return ShapeCommand("benchmarks.features", __doc__ or "", columns, measure, row)


if __name__ == "__main__":
    command().run()
