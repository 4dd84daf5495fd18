"""Prints requirements that pyproject.toml lists, for pip: python -m build_support.requirements build test."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:  # a new environment with Python 3.10 has pip, and no other reader of TOML
    from pip._vendor import tomli as tomllib

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements(group: str) -> list[str]:
    """Those of an extra; or of `build`, without torch, of which every environment has its own."""
    project = tomllib.loads(PYPROJECT.read_text())
    if group == "build":
        return [name for name in project["build-system"]["requires"] if not name.startswith("torch")]
    return list(project["project"]["optional-dependencies"][group])


if __name__ == "__main__":
    for group in sys.argv[1:]:
        print("\n".join(requirements(group)))
