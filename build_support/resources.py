"""Registers and spills of every kernel, as ptxas reported them; fails if a kernel spills.

A spilled register lives in memory, and the tile loop that reads it back has lost what it was written for. Run
`python -m build_support.resources` after a build with CUDA.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from .sources import RESOURCES


@dataclass
class Kernel:
    name: str  # mangled
    arch: str
    registers: int = 0
    spilled_bytes: int = 0  # stores and loads

    def __str__(self) -> str:
        return f"{self.arch:7} {self.registers:4} registers {self.spilled_bytes:5} bytes spilled  {self.name}"


def parse(report: str) -> list[Kernel]:
    """Kernels in the output of `ptxas -v`. A function that a kernel calls counts as part of it."""
    kernels: list[Kernel] = []
    for line in report.splitlines():
        if entry := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
            kernels.append(Kernel(entry[1], entry[2]))
        elif spills := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernels[-1].spilled_bytes += int(spills[1]) + int(spills[2])
        elif used := re.search(r"Used (\d+) registers", line):
            kernels[-1].registers = int(used[1])
    return kernels


def main() -> int:
    kernels = parse(Path(RESOURCES).read_text())
    for kernel in kernels:
        print(kernel)
    spilling = sum(kernel.spilled_bytes > 0 for kernel in kernels)
    print(f"{len(kernels)} kernels, {spilling} spill registers")
    return 1 if spilling or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
