"""Loads leanattn/_C.so on import; that registers torch.ops.leanattn.* (schemas: csrc/bindings/ops.cpp)."""

from __future__ import annotations

import ctypes
import json
import re
from functools import cache
from pathlib import Path
from typing import TypedDict, cast

import torch

LIBRARY = Path(__file__).with_name("_C.so")

# The first torch with all of the stable ABI that the library is compiled against.
MIN_TORCH = (2, 10)


class BuildInfo(TypedDict):
    """What the library was built from and for; csrc/bindings/build_info.cpp writes it."""

    version: str
    cuda_version: str | None
    """None: built without CUDA, for the reason in ``cuda_reason``."""
    cuda_archs: list[str]
    """As in LEANATTN_CUDA_ARCHS: ``["8.0+PTX", "9.0a"]``."""
    cuda_reason: str
    torch_version: str
    torch_target: str
    compiler: str


def _load() -> ctypes.CDLL:
    installed = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if installed < MIN_TORCH:
        needed = ".".join(map(str, MIN_TORCH))
        raise ImportError(f"leanattn needs torch {needed} or newer, found {torch.__version__}: upgrade torch")
    if not LIBRARY.exists():
        raise ImportError(f"{LIBRARY} is missing: run `make build` or `pip install .`")
    try:
        torch.ops.load_library(str(LIBRARY))
        return ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise ImportError(f"{LIBRARY} cannot be loaded, rebuild it with this torch: {error}") from error


_library = _load()


@cache
def build_info() -> BuildInfo:
    """The facts of this build."""
    function = _library.leanattn_build_info
    function.restype = ctypes.c_char_p
    return cast(BuildInfo, json.loads(function()))
