"""How far a run is, on stderr: one line that is written over on a terminal, a line per shape elsewhere."""

import sys
import time
from typing import TextIO

BAR_WIDTH = 30  # characters; with times and the longest shape name, a line has fewer than 100


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Progress:
    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self.total = total
        self.done = 0
        self.stream = sys.stderr if stream is None else stream
        self.on_terminal = self.stream.isatty()
        self.started = time.monotonic()

    def note(self, text: str) -> None:
        """Something besides a finished shape."""
        self._write(f"[{clock(self._seconds())}] {text}")

    def finish(self, what: str, outcome: str) -> None:
        """One more is done. What came out is said where lines stay."""
        self.done += 1
        left = self._seconds() / self.done * (self.total - self.done)
        count = f"{self.done}/{self.total}, {clock(self._seconds())}, {clock(left)} left"
        if self.on_terminal:
            filled = BAR_WIDTH * self.done // self.total
            self._write(f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {count}: {what}")
        else:
            self._write(f"[{count}] {what}: {outcome}")

    def close(self) -> None:
        if self.on_terminal:
            self.stream.write("\n")

    def _seconds(self) -> float:
        return time.monotonic() - self.started

    def _write(self, line: str) -> None:
        # ESC [K clears what a longer line left behind.
        self.stream.write(f"\r{line}\033[K" if self.on_terminal else f"{line}\n")
        self.stream.flush()
