"""Memory limits of a worker process, as the kernel counts memory."""

from __future__ import annotations

import resource
import subprocess
import sys

MIB = 1 << 20
_ASKED = (
    "import resource; from model_factory_server.worker import sandbox; sandbox.limit_memory({first}); "
    "sandbox.limit_memory({second}); print(*resource.getrlimit(resource.RLIMIT_DATA), sandbox.allowed_memory())"
)


def bounds_after(first: int, second: int) -> list[int]:
    code = _ASKED.format(first=first, second=second)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_a_bound_on_memory_is_only_ever_lowered() -> None:
    for first, second in ((100 * MIB, 4000 * MIB), (4000 * MIB, 100 * MIB)):
        soft, hard, allowed = bounds_after(first, second)
        assert 100 * MIB < soft < 1000 * MIB, (first, second)
        assert allowed == soft
        assert hard == resource.getrlimit(resource.RLIMIT_DATA)[1]
