"""The entry point of ``model-factory``. Imports are in the guarded part: Ctrl-C may come during imports."""

from __future__ import annotations

from collections.abc import Sequence

_INTERRUPTED = 130  # as shells report a command that ended by SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status: 0, 1 for an error, 130 after Ctrl-C. Wrong usage exits with 2."""
    try:
        from model_factory.cli.commands import run  # noqa: PLC0415  see above

        return run(argv)
    except KeyboardInterrupt:
        from model_factory.cli.output import say  # noqa: PLC0415  see above

        say("interrupted", error=True)
        return _INTERRUPTED
