"""What changes the scores of a decode call, or which tokens a query sees."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

NO_WINDOW = (-1, -1)


class ScoreOptions(NamedTuple):
    """Arguments of :func:`leanattn.decode`, which says what they mean."""

    window_size: tuple[int, int] = NO_WINDOW
    softcap: float = 0  # an int: of a float torch.compile would make a symbol, and compile twice
    sinks: Tensor | None = None
    alibi_slopes: Tensor | None = None
    cache_leftpad: Tensor | None = None
    tree_mask: Tensor | None = None

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
