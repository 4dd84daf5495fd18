"""Writes ninja's input; its manual is https://ninja-build.org/manual.html."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field


def shell(words: Sequence[str]) -> str:
    """Words of a command line, quoted for the shell and for ninja."""
    return shlex.join(words).replace("$", "$$")


def path(name: str) -> str:
    return name.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


@dataclass
class NinjaFile:
    lines: list[str] = field(default_factory=list)

    def rule(self, name: str, **variables: str) -> None:
        self.lines += [f"rule {name}", *(f"  {key} = {value}" for key, value in variables.items()), ""]

    def build(
        self, output: str, rule: str, inputs: Sequence[str], also: str = "", flags: Sequence[str] = ()
    ) -> None:
        """One step: `output`, and `also`, from `inputs`; done again when an input or `flags` changed."""
        outputs = path(output) + (f" | {path(also)}" if also else "")
        self.lines.append(f"build {outputs}: {rule} {' '.join(path(i) for i in inputs)}")
        if flags:
            self.lines.append(f"  flags = {shell(flags)}")

    def text(self) -> str:
        return "\n".join([*self.lines, ""])
