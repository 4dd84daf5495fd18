"""Decode attention with the lean decomposition (arXiv 2405.10480): every SM gets the same work."""

from leanattn import fake as _fake  # noqa: F401  (registers the fake implementations)
from leanattn._ops import build_info as _build_info
from leanattn.append import append_kv
from leanattn.csr import block_table_from_csr
from leanattn.decode import decode
from leanattn.merge import merge_states
from leanattn.planning import plan
from leanattn.support import is_supported

__version__ = _build_info()["version"]

__all__ = ["append_kv", "block_table_from_csr", "decode", "is_supported", "merge_states", "plan"]
