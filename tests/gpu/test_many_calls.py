"""A call that waits for ever fails a test instead of stopping it: the calls run in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu

SCRIPT = Path(__file__).with_name("many_calls.py")
SECONDS = 120  # they take some ten, and the process as long to start


def test_calls_end_and_give_the_same_bits(gpu: torch.device) -> None:
    command = [sys.executable, str(SCRIPT), "--device", str(gpu), "--rounds", "20"]
    done = subprocess.run(command, timeout=SECONDS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "22400 calls gave the same bits\n"
