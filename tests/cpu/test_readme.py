"""README.md says what is so: snippets run, commands and settings exist, files are there.

The words after the fence of a block say how it is treated. A block or command without a rule here fails.

  python        runs, after the python blocks before it
  python cuda   the same where leanattn works on a GPU; elsewhere it is only compiled
  shell         every line must match one of COMMANDS
  text          a picture
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import leanattn
from leanattn import demo
from leanattn.__main__ import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "csrc" / "README.md", *sorted(ROOT.glob("docs/*.md"))]
SOURCE_FOLDERS = ("benchmarks", "build_support", "csrc", "docs", "leanattn", "tests", "third_party", ".ci")


class Block(NamedTuple):
    kind: str
    line: int  # of the README
    text: str


def blocks(*kinds: str) -> list[Block]:
    fenced = re.finditer(r"^```(.*)\n([\s\S]*?)^```$", README, re.MULTILINE)
    found = [Block(match[1], README.count("\n", 0, match.start(2)), match[2]) for match in fenced]
    return [block for block in found if block.kind in kinds] if kinds else found


def dry_run_of_make(target: str) -> None:
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def pip_arguments(words: str) -> None:
    """What is installed is this folder, or something that its build requires, in that version."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    for word in words.split():
        known = word in (".", "--no-deps", "--no-build-isolation")
        assert known or re.search(rf'"{re.escape(word)}(>=[\d.]+)?"', pyproject), word


def info_works(options: str) -> None:
    assert main(["info", *options.split()]) == 0


def demo_takes(options: str) -> None:
    demo.parser().parse_args(options.split())


COMMANDS: list[tuple[str, Callable[[str], None]]] = [
    (r"make (\w+)", dry_run_of_make),
    (r"pip install (.+)", pip_arguments),
    (r"python -m leanattn info(.*)", info_works),
    (r"python -m leanattn demo (.+)", demo_takes),
]


def test_every_block_is_known() -> None:
    assert {block.kind for block in blocks()} <= {"python", "python cuda", "shell", "text"}


def test_snippets_run() -> None:
    works_on_gpu, _ = leanattn.is_supported("cuda", torch.bfloat16, 128)
    namespace: dict[str, Any] = {}
    for block in blocks("python", "python cuda"):
        code = compile("\n" * block.line + block.text, "README.md", "exec")  # errors show the README's line
        if block.kind == "python" or works_on_gpu:
            exec(code, namespace)
    assert namespace["x"].isfinite().all()


@pytest.mark.parametrize("line", [line for block in blocks("shell") for line in block.text.splitlines()])
def test_shell_command(line: str) -> None:
    command = line.partition("#")[0].strip()
    matches = [(match[1], check) for form, check in COMMANDS if (match := re.fullmatch(form, command))]
    assert len(matches) == 1, f"no rule for: {command}"
    argument, check = matches[0]
    check(argument.strip())


def test_settings_are_read_by_the_build() -> None:
    build = "".join(path.read_text() for path in ROOT.glob("build_support/*.py"))
    settings = set(re.findall(r"\b(LEANATTN_[A-Z_]+|MAX_JOBS)\b", README))
    assert settings
    for name in settings:
        assert f'"{name}"' in build


def test_names_exist() -> None:
    names = set(re.findall(r"`(?:torch\.ops\.)?leanattn\.\w+", README))
    assert names
    for name in names:
        module, _, attribute = name[1:].rpartition(".")
        assert hasattr(leanattn if module == "leanattn" else torch.ops.leanattn, attribute), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_exist(document: Path) -> None:
    text = document.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (document.parent / link).exists(), link
    # A file in back quotes: the end of some path of the sources.
    files = [path for folder in SOURCE_FOLDERS for path in (ROOT / folder).rglob("*")]
    for name in re.findall(r"`([\w./-]+\.(?:py|h|cuh|cu|cpp|md|toml))`", text):
        assert (ROOT / name).exists() or any(path.match(name) for path in files), name
