"""Measures this project against other ways to run the same tasks.

Run ``python -m dask_ownership.benchmarks --help``. Every engine runs in a process of its own, with
the same code for all engines that speak Dask's API; results are medians with their spread.
"""

from __future__ import annotations

__all__ = ["ENGINES", "main"]

#: Every engine, in the order of the columns.
ENGINES = ("ownership", "distributed", "tuned", "ray", "threads", "floor")


def main(
    argv: list[str] | None = None, program: str = "python -m dask_ownership.benchmarks"
) -> int:
    """Run the benchmark as the command line does, and return its exit status."""
    from dask_ownership.benchmarks.cli import main as run

    return run(argv, program)
