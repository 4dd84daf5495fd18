"""The build_ext command: find the tools, say what will be built, let ninja build it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools.command.build_ext import build_ext

from .settings import (
    GIB_PER_CPU_JOB,
    GIB_PER_CUDA_JOB,
    BuildError,
    Jobs,
    Settings,
    choose_jobs,
    free_memory_gib,
    usable_cores,
)
from .sources import BUILD_DIR, ninja_text
from .toolchain import INSTALL, Toolchain, find_toolchain, package_dir

ROOT = Path(__file__).resolve().parent.parent


class BuildWithNinja(build_ext):
    """Builds in build/native whoever asks, so that every kind of install is incremental."""

    def get_ext_filename(self, fullname: str) -> str:
        """leanattn/_C.so has no tag of a Python in its name: torch loads it, Python does not import it."""
        parts = fullname.split(".")
        suffix = ".so" if parts[-1] == "_C" else sysconfig.get_config_var("EXT_SUFFIX")
        return os.path.join(*parts) + suffix

    def build_extensions(self) -> None:
        try:
            version = self.distribution.get_version()
            build(version)
        except BuildError as error:
            raise SystemExit(f"\nleanattn cannot be built: {error}\n") from None
        for extension in self.extensions:
            built = ROOT / BUILD_DIR / (extension.name.split(".")[-1] + ".so")
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(built), str(target))


def build(version: str) -> None:
    if platform.system() != "Linux":
        raise BuildError(f"leanattn builds on Linux only, and this is {platform.system()}.")
    settings = Settings.from_environment()
    tools = find_toolchain(settings, ROOT)
    if package_dir("ninja") is None:
        raise BuildError("ninja is not installed. " + INSTALL.format("ninja"))
    gib_per_job = GIB_PER_CUDA_JOB if tools.cuda else GIB_PER_CPU_JOB
    jobs = choose_jobs(settings.max_jobs, usable_cores(), free_memory_gib(), gib_per_job)
    print(summary(version, settings, tools, jobs), flush=True)

    directory = ROOT / BUILD_DIR
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "build.ninja").write_text(ninja_text(settings, tools, ROOT, version))
    ninja = [sys.executable, "-m", "ninja", "-f", f"{BUILD_DIR}/build.ninja", "-j", str(jobs.count)]
    if subprocess.run(ninja, cwd=ROOT).returncode != 0:
        raise BuildError("a compiler failed; its messages are above.")


def summary(version: str, settings: Settings, tools: Toolchain, jobs: Jobs) -> str:
    cuda = tools.cuda
    lines = [
        f"leanattn {version}: {'CPU backend and CUDA kernels' if cuda else 'CPU backend alone'}",
        f"  torch     {tools.torch.version} in {tools.torch.include.parent}",
        f"  compiler  {tools.cxx}: {tools.cxx_version}",
        f"  CUDA      {'yes' if cuda else 'no'}: {tools.cuda_reason}",
    ]
    if cuda:
        lines.append(f"  archs     {' '.join(map(str, settings.archs))}")
        lines.append(f"  CUTLASS   {cuda.cutlass_version} in {cuda.cutlass_include}")
    return "\n".join([*lines, f"  jobs      {jobs.count}: {jobs.reason}"])
