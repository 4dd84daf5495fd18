"""Optional packages: an implementation whose package is not installed is missing, and the rest goes on."""

import importlib
from typing import Any


class Missing(Exception):
    """Something that is not installed here; the message says what was looked for."""


def import_first(*modules: str) -> Any:
    """The first of `modules` that can be imported; Missing, with each one's reason, if none can."""
    reasons = []
    for module in modules:
        try:
            return importlib.import_module(module)
        except (ImportError, OSError) as error:  # OSError: a shared library that does not load
            reasons.append(f"{module}: {error}")
    raise Missing("; ".join(reasons))
