"""``python -m dask_ownership.benchmarks``."""

from __future__ import annotations

import sys

from dask_ownership.benchmarks.cli import main

if __name__ == "__main__":
    sys.exit(main())
