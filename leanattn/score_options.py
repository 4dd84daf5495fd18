"""What changes the scores of a decode call, or which tokens a query sees."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

NO_WINDOW = (-1, -1)


class ScoreOptions(NamedTuple):
    """Arguments of :func:`leanattn.decode`, which says what they mean."""

    window_size: tuple[int, int] = NO_WINDOW
    softcap: float = 0  # an int: of a float torch.compile would make a symbol, and compile twice
    sinks: Tensor | None = None
    alibi_slopes: Tensor | None = None
    cache_leftpad: Tensor | None = None

    def used(self) -> list[str]:
        """Names of the arguments that change anything."""
        return [name for name in self._fields if self._is_used(name)]

    def _is_used(self, name: str) -> bool:
        value = getattr(self, name)
        if name == "window_size":
            return tuple(value) != NO_WINDOW
        return value != 0.0 if name == "softcap" else value is not None

    def as_op_arguments(self) -> dict[str, object]:
        """As torch.ops.leanattn.decode takes them."""
        left, right = self.window_size
        rest = {name: getattr(self, name) for name in self._fields[1:]}
        return {"window_left": left, "window_right": right, **rest}

    def check(self, batch: int, num_q_heads: int, device: torch.device) -> None:
        """Types, dtypes, devices and shapes. Works on fake tensors too."""
        _check_window(self.window_size)
        if not isinstance(self.softcap, (float, int)):
            raise TypeError(f"softcap: {type(self.softcap).__name__}, expected float")
        if not 0 <= self.softcap < math.inf:  # math.isfinite is not for torch.compile
            raise ValueError(f"softcap: {self.softcap}, expected a finite number, 0 (none) or more")
        heads, sequences = (num_q_heads,), (batch,)
        _check_tensor("sinks", self.sinks, torch.float32, device, [heads])
        _check_tensor("alibi_slopes", self.alibi_slopes, torch.float32, device, [heads, (batch, num_q_heads)])
        _check_tensor("cache_leftpad", self.cache_leftpad, torch.int32, device, [sequences])


def _check_window(window_size: object) -> None:
    if not isinstance(window_size, (tuple, list)) or len(window_size) != 2:
        raise TypeError(f"window_size: {window_size!r}, expected (left, right)")
    for tokens in window_size:
        if not isinstance(tokens, int):
            raise TypeError(f"window_size: {type(tokens).__name__}, expected two of int")
        if tokens < -1:
            raise ValueError(f"window_size: {tokens}, expected -1 (no bound) or more")


def _check_tensor(
    name: str,
    tensor: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
    shapes: list[tuple[int, ...]],
) -> None:
    if tensor is None:
        return
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: {type(tensor).__name__}, expected torch.Tensor")
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: dtype {tensor.dtype}, expected {dtype}")
    if tensor.device != device:
        raise ValueError(f"{name}: device {tensor.device}, expected the device of q, {device}")
    if tensor.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{name}: shape {list(tensor.shape)}, expected {expected}")
