"""One import and one line of configuration move existing Dask code to owned tasks.

    python examples/config_line.py

Nothing else in the code changes. Here the line starts a cluster on this machine by itself; with a
``distributed.Client`` at hand it uses that client's cluster.
"""

from __future__ import annotations

from collections import Counter

import dask
import dask.bag
from dask import delayed

import dask_ownership  # noqa: F401  (gives the scheduler its name)


def main() -> None:
    dask.config.set(scheduler="ownership")  # the line

    parts = [delayed(pow)(base, 2) for base in range(1000)]
    print("sum of squares:", delayed(sum)(parts).compute())

    words = dask.bag.from_sequence(dask.__doc__ or "no text", npartitions=4).filter(str.isalpha)
    print("letters:", Counter(dict(words.frequencies().compute())).most_common(3))


if __name__ == "__main__":  # worker processes import this file
    main()
