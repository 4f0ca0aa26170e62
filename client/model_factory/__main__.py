"""``python -m model_factory`` is the ``model-factory`` command."""

from __future__ import annotations

import sys

from model_factory.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
