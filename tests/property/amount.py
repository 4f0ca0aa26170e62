"""How much is tried: little in CI, more by ``make fuzz``, which sets the variables."""

from __future__ import annotations

import os

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES") or 150)
"""Of each property."""

CASES = int(os.environ.get("FUZZ_EXAMPLES") or 0)
"""Of each fuzzer below ``tests/fuzz``; 0: the fuzzer's own small number."""

SECONDS = float(os.environ.get("FUZZ_SECONDS") or 0)
"""Of each fuzzer below ``tests/fuzz``, whatever the number of cases; 0: as long as the cases take."""

SEED = int(os.environ.get("FUZZ_SEED") or 0)
"""Another seed, other cases."""
