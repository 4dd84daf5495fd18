"""Metadata is in pyproject.toml, the build of the two native libraries in build_support/."""

import sys
from pathlib import Path

from setuptools import Extension, setup

sys.path.insert(0, str(Path(__file__).parent))  # an isolated build does not have this folder on the path

from build_support.command import BuildWithNinja

setup(
    ext_modules=[Extension(name, sources=[]) for name in ("leanattn._C", "leanattn._schedule")],
    cmdclass={"build_ext": BuildWithNinja},
)
