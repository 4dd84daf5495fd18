"""What the environment asks for, in plain values. Nothing here looks for a tool."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# The portable body, with PTX for GPUs newer than this build knows, and the one for Hopper.
DEFAULT_ARCHS = "8.0+PTX;9.0a"
# mma.sync for bf16 and cp.async came with Ampere.
OLDEST_ARCH = (8, 0)
# Peak memory of one compiler, to the next GiB: 2.3 with nvcc 13.0, 0.5 with g++ 12.
GIB_PER_CUDA_JOB = 3
GIB_PER_CPU_JOB = 1


class BuildError(Exception):
    """Something that the person who builds can put right; the message says how."""


@dataclass(frozen=True)
class Arch:
    """One CUDA architecture: 9.0a+PTX is Arch(9, 0, "a", True)."""

    major: int
    minor: int
    suffix: str = ""
    ptx: bool = False

    @property
    def number(self) -> str:
        return f"{self.major}{self.minor}{self.suffix}"

    @property
    def gencode(self) -> str:
        code = f"sm_{self.number},compute_{self.number}" if self.ptx else f"sm_{self.number}"
        return f"-gencode=arch=compute_{self.number},code=[{code}]"

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}{self.suffix}{'+PTX' if self.ptx else ''}"


def parse_archs(text: str) -> tuple[Arch, ...]:
    """Reads a list such as "8.0+PTX;9.0a"; a comma or a space separates as well."""
    archs = []
    for item in re.split(r"[;,\s]+", text.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", item, re.IGNORECASE)
        if match is None:
            raise BuildError(
                f"LEANATTN_CUDA_ARCHS={text!r}: {item!r} is not an architecture; "
                f"the default is {DEFAULT_ARCHS!r}."
            )
        arch = Arch(int(match[1]), int(match[2]), match[3].lower(), match[4] is not None)
        if (arch.major, arch.minor) < OLDEST_ARCH:
            raise BuildError(f"LEANATTN_CUDA_ARCHS={text!r}: leanattn needs 8.0 or newer, not {arch}.")
        archs.append(arch)
    return tuple(archs)


@dataclass(frozen=True)
class Settings:
    cuda: str  # "0", "1" or "auto": with CUDA if nvcc is there
    archs: tuple[Arch, ...]
    cutlass_dir: str | None
    lineinfo: bool
    max_jobs: int | None

    @staticmethod
    def from_environment(env: Mapping[str, str] = os.environ) -> Settings:
        cuda = env.get("LEANATTN_CUDA", "auto")
        if cuda not in ("0", "1", "auto"):
            raise BuildError(f"LEANATTN_CUDA={cuda!r}: expected 0, 1 or auto.")
        lineinfo = env.get("LEANATTN_LINEINFO", "0")
        if lineinfo not in ("0", "1"):
            raise BuildError(f"LEANATTN_LINEINFO={lineinfo!r}: expected 0 or 1.")
        jobs = env.get("MAX_JOBS")
        if jobs and (not jobs.isdecimal() or int(jobs) == 0):
            raise BuildError(f"MAX_JOBS={jobs!r}: expected a positive number.")
        return Settings(
            cuda=cuda,
            archs=parse_archs(env.get("LEANATTN_CUDA_ARCHS") or DEFAULT_ARCHS),
            cutlass_dir=env.get("LEANATTN_CUTLASS_DIR"),
            lineinfo=lineinfo == "1",
            max_jobs=int(jobs) if jobs else None,
        )


@dataclass(frozen=True)
class Jobs:
    count: int
    reason: str


def choose_jobs(max_jobs: int | None, cores: int, free_gib: float, gib_per_job: int) -> Jobs:
    """As many compilers at once as there are cores and as fit into free memory, one at least."""
    if max_jobs is not None:
        return Jobs(max_jobs, "MAX_JOBS")
    count = max(1, min(cores, int(free_gib // gib_per_job)))
    return Jobs(count, f"{cores} cores, {free_gib:.0f} GiB free at {gib_per_job} GiB a job; or set MAX_JOBS")


def free_memory_gib() -> float:
    """Memory that new processes can take: what the system has, or this container's limit if that is less."""
    amounts = []
    match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    if match is not None:
        amounts.append(int(match[1]) * 1024)
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdecimal():
        amounts.append(int(limit.read_text()))
    return min(amounts) / 2**30


def usable_cores() -> int:
    return len(os.sched_getaffinity(0))
