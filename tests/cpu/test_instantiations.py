"""The CUDA kernels that are built: csrc/instantiations."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "csrc" / "instantiations"
KERNEL = re.compile(
    r"const RegisteredKernel (\w+)\((portable|wgmma)_kernel<cutlass::(\w+), (\d+)"
    r"(?:, KernelKind::k(\w+))?>\(\)\);"
)
DTYPES = {"half_t": "f16", "bfloat16_t": "bf16"}
HEAD_DIMS = {
    **dict.fromkeys(("plain", "paged", "wgmma"), (64, 128)),
    **dict.fromkeys(("e4m3", "e5m2", "int8"), (64, 128, 256)),
    "general": (64, 128, 256, 512),
}


def test_every_file_registers_the_kernel_of_its_name() -> None:
    for file in FOLDER.iterdir():
        found = KERNEL.findall(file.read_text())
        assert len(found) == 1, file
        (name, body, dtype, head_dim, kind) = found[0]
        assert name == file.stem == f"{kind.lower() or body}_{DTYPES[dtype]}_d{head_dim}"


def test_there_is_a_kernel_of_each_kind_for_each_dtype_and_head_dim() -> None:
    expected = {
        f"{kind}_{dtype}_d{head_dim}"
        for kind, head_dims in HEAD_DIMS.items()
        for dtype, head_dim in itertools.product(DTYPES.values(), head_dims)
    }
    assert {file.stem for file in FOLDER.iterdir()} == expected
