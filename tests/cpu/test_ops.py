"""Loading the library of the ops: what a user reads when it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from leanattn import _ops


def test_missing_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_ops, "LIBRARY", tmp_path / "_C.so")
    with pytest.raises(ImportError, match=r"_C\.so is missing: run `make build` or `pip install \.`"):
        _ops._load()


def test_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "_C.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(_ops, "LIBRARY", broken)
    with pytest.raises(ImportError, match=r"_C\.so cannot be loaded, rebuild it"):
        _ops._load()


@pytest.mark.parametrize("version", ["2.9.1+cu128", "1.13.0", "2.2.0a0+git1234567"])
def test_torch_too_old(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ImportError, match="needs torch 2.10 or newer, found"):
        _ops._load()


def test_ops_are_registered() -> None:
    for name in ("decode", "decode_lse", "decode_out", "_decode_debug"):
        for key in ("CPU", "Meta"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"leanattn::{name}", key)
    has_cuda = torch._C._dispatch_has_kernel_for_dispatch_key("leanattn::decode", "CUDA")
    assert has_cuda == (_ops.build_info()["cuda_version"] is not None)
