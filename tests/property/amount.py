"""How much is tried: little in CI, more by ``make fuzz``, which sets ``FUZZ_EXAMPLES``."""

from __future__ import annotations

import os

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES") or 150)
"""Of each property."""
