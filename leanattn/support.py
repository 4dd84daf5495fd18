"""What each backend supports, said once: the wrapper refuses by it, and is_supported tells it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch

from leanattn._ops import build_info
from leanattn.score_options import ScoreOptions


@dataclass(frozen=True)
class Backend:
    dtypes: tuple[torch.dtype, ...]
    head_dims: Sequence[int]
    most_head_dim_of_8_bits: int
    q_lens: range = range(1, 17)
    options: tuple[str, ...] = ()  # of OPTIONS
    # Of the cache, beside that of the queries.
    cache_dtypes: tuple[torch.dtype, ...] = ()


BATCH_INVARIANT, PAGED, PACKED = "batch_invariant", "block_table", "cu_seqlens_q"
# Arguments of decode that a backend may lack.
OPTIONS = (*ScoreOptions._fields, BATCH_INVARIANT, PAGED, PACKED)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
# Dtypes of a cache whatever the queries are.
EIGHT_BITS = (*FLOAT8, torch.int8)
BACKENDS = {
    "cpu": Backend(
        (torch.float16, torch.bfloat16, torch.float32),
        head_dims=range(8, 513, 8),
        most_head_dim_of_8_bits=512,
        options=OPTIONS,
        cache_dtypes=EIGHT_BITS,
    ),
    "cuda": Backend(
        (torch.float16, torch.bfloat16),
        head_dims=range(8, 513, 8),
        most_head_dim_of_8_bits=256,
        options=OPTIONS,
        cache_dtypes=EIGHT_BITS,
    ),
}

# Ampere: the first with cp.async and with mma.sync for bfloat16.
MIN_CAPABILITY = (8, 0)


class Refusal(NamedTuple):
    """Why a call is refused: the exception to raise, and its message."""

    error: type[Exception]
    message: str


def refusals(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    q_len: int,
    options: Iterable[str] = (),
    *,
    cache_dtype: torch.dtype | None = None,
    v_head_dim: int | None = None,
    names: tuple[str, str] = ("q", "v_cache"),
    head_dims: Sequence[int] | None = None,
) -> list[Refusal]:
    """All that keeps a backend from a call with such a ``q``, V and options; empty if nothing does.

    For another op than decode, ``names`` are the arguments with head_dim and with v_head_dim, and
    ``head_dims`` are what it takes.
    """
    name, _ = names
    if device.type not in BACKENDS:
        return [Refusal(NotImplementedError, f"{name}: device {device}, expected one of {_listed(BACKENDS)}")]
    problems = gpu_problems(device) if device.type == "cuda" else ()
    found = [Refusal(NotImplementedError, problem.replace("q:", f"{name}:", 1)) for problem in problems]
    return found + backend_refusals(
        device.type, dtype, head_dim, q_len, options, cache_dtype, v_head_dim, names, head_dims
    )


def backend_refusals(
    device_type: str,
    dtype: torch.dtype,
    head_dim: int,
    q_len: int,
    options: Iterable[str] = (),
    cache_dtype: torch.dtype | None = None,
    v_head_dim: int | None = None,
    names: tuple[str, str] = ("q", "v_cache"),
    head_dims: Sequence[int] | None = None,
) -> list[Refusal]:
    """The same of a backend alone, whatever machine and build this is."""
    backend, name, options = BACKENDS[device_type], names[0], tuple(options)
    head_dims = head_dims or backend.head_dims
    dims = [head_dim] if v_head_dim is None else [head_dim, v_head_dim]
    found = []
    if dtype not in backend.dtypes:
        expected = _listed(backend.dtypes)
        found.append(
            Refusal(TypeError, f"{name}: dtype {dtype}, expected one of {expected} on {device_type}")
        )
    # As a tuple: torch.compile can compare a symbolic head_dim with its elements, not look it up in a range.
    for argument, dim in zip(names, dims, strict=False):
        if dim not in tuple(head_dims):
            message = f"{argument}: head_dim {dim}, expected one of {_listed(head_dims)} on {device_type}"
            found.append(Refusal(NotImplementedError, message))
    # Two comparisons, so that torch.compile does not make a graph for each q_len.
    if PACKED not in options and not backend.q_lens[0] <= q_len <= backend.q_lens[-1]:
        message = f"{name}: q_len {q_len}, expected {backend.q_lens[0]}..{backend.q_lens[-1]}"
        found.append(Refusal(NotImplementedError, message))
    of_8_bits = f"with a cache of {cache_dtype}"
    for argument, dim in zip(names, dims, strict=False) if cache_dtype in EIGHT_BITS else ():
        if dim % 16 != 0:  # rows are multiples of 16 bytes
            message = f"{argument}: head_dim {dim}, expected a multiple of 16 {of_8_bits}"
            found.append(Refusal(NotImplementedError, message))
        elif backend.most_head_dim_of_8_bits < dim <= head_dims[-1]:
            most = f"{backend.most_head_dim_of_8_bits} {of_8_bits} on {device_type}"
            found.append(Refusal(NotImplementedError, f"{argument}: head_dim {dim}, expected at most {most}"))
    if cache_dtype not in (None, dtype, *backend.cache_dtypes):
        expected = _listed((dtype, *backend.cache_dtypes))
        message = f"k_cache: dtype {cache_dtype}, expected one of {expected} on {device_type}"
        found.append(Refusal(TypeError, message))
    for option in options:
        if option not in backend.options:
            message = f"{option}: expected the default, {device_type} has no other yet"
            found.append(Refusal(NotImplementedError, message))
    return found


def is_supported(
    device: torch.device | str,
    dtype: torch.dtype,
    head_dim: int,
    *,
    group: int = 1,
    q_len: int = 1,
    options: Iterable[str] = (),
    cache_dtype: torch.dtype | None = None,
    v_head_dim: int | None = None,
) -> tuple[bool, list[str]]:
    """Whether :func:`leanattn.decode` can be called so on this machine and with this build, and if not, why.

    Args:
        device: where the tensors are, such as ``"cuda"`` or ``torch.device("cpu")``.
        dtype: of ``q``, and of the caches unless there is a ``cache_dtype``.
        head_dim: length of a head's vectors.
        group: query heads that share a KV head; any number from 1 on.
        q_len: query tokens of a sequence; with ``cu_seqlens_q`` any number.
        options: names of arguments of :func:`leanattn.decode` that will be given, of ``window_size``,
            ``softcap``, ``sinks``, ``alibi_slopes``, ``cache_leftpad``, ``tree_mask``,
            ``batch_invariant``, ``block_table`` and ``cu_seqlens_q``.
        cache_dtype: of the caches.
        v_head_dim: head_dim of ``v_cache``, if it is another.

    Returns:
        ``(ok, reasons)``; ``reasons`` has one line for each thing that is not supported and is empty if
        ``ok``.

    Raises:
        ValueError: an option that there is not.
    """
    options = list(options)
    for option in options:
        if option not in OPTIONS:
            raise ValueError(f"options: {option!r}, expected some of {_listed(OPTIONS)}")
    found = refusals(
        torch.device(device), dtype, head_dim, q_len, options, cache_dtype=cache_dtype, v_head_dim=v_head_dim
    )
    reasons = [refusal.message for refusal in found]
    if group < 1:
        reasons.append(f"q: group {group}, expected 1 or more query heads for a KV head")
    return not reasons, reasons


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def gpu_problems(device: torch.device) -> tuple[str, ...]:
    """Why this build cannot run on a GPU, or nothing."""
    return _find_gpu_problems(device)


# Neither the GPU nor the build changes while a process runs, and a call has no microseconds to ask again.
@cache
def _find_gpu_problems(device: torch.device) -> tuple[str, ...]:
    info = build_info()
    if info["cuda_version"] is None:
        return (f"q: device {device}, but this build of leanattn is without CUDA: {info['cuda_reason']}",)
    if not torch.cuda.is_available():
        return (f"q: device {device}, but torch.cuda.is_available() is False",)
    if device.index is not None and device.index >= torch.cuda.device_count():
        return (f"q: device {device}, but torch sees {torch.cuda.device_count()} GPUs",)
    capability = torch.cuda.get_device_capability(device)
    name = f"q: {device} is a {torch.cuda.get_device_name(device)}, compute capability {_dotted(capability)}"
    if capability < MIN_CAPABILITY:
        return (f"{name}, expected {_dotted(MIN_CAPABILITY)} or newer",)
    if not any(_runs_on(arch, capability) for arch in info["cuda_archs"]):
        built = _listed(info["cuda_archs"])
        remedy = f"rebuild with LEANATTN_CUDA_ARCHS={_dotted(capability)}"
        return (f"{name}, but leanattn was built for {built}; {remedy}",)
    return ()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_wgmma(device: torch.device) -> bool:
    """Whether kernels with the tensor core instructions of compute capability 9.0 run there."""
    if device.type != "cuda" or "9.0a" not in build_info()["cuda_archs"]:
        return False
    return torch.cuda.get_device_capability(device) == (9, 0)


def _runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Machine code runs on its major version from its minor on, PTX on all newer; 9.0a runs on 9.0 alone."""
    match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch)
    if match is None:
        return False
    built = int(match[1]), int(match[2])
    if match[3] == "a":
        return built == capability
    same_major = built[0] == capability[0] and built <= capability
    return same_major or (match[4] is not None and match[3] == "" and built <= capability)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _listed(values: Iterable[object]) -> str:
    words = [str(value).removeprefix("torch.") for value in values]
    return ", ".join(words if len(words) < 8 else [*words[:2], "...", words[-1]])
