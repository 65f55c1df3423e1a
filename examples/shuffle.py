"""Sort more rows than the workers have memory for, with futures; and by Dask's own P2P shuffle.

    python examples/shuffle.py                       1 GB on two workers of 400 MiB
    python examples/shuffle.py --compare             and `sort_values` by P2P, on stock Dask
    python examples/shuffle.py --size 4GB --memory 1GiB --workers 4

Each input is cut at the same keys into as many pieces as there are outputs, and each output is put
together from its pieces: n inputs and n outputs make n² pieces, each a task and a future of its
own. A piece is freed when its output has it, and a lost one is made again. What does not fit into
memory is written to disk by Dask's worker, for these futures as for others.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from itertools import pairwise
from typing import NamedTuple

import common
import dask
import numpy as np
import pandas as pd
from dask.utils import format_bytes, parse_bytes
from distributed import Client, LocalCluster, as_completed, wait

VALUES = 11  # numbers in each row, beside the key
ROW = 8 * (1 + VALUES)  # bytes


class Summary(NamedTuple):
    """What is known of a table: enough to tell whether a sort lost or doubled a row."""

    rows: int
    keys: int  # the sum of all keys
    first: int
    last: int
    is_sorted: bool


def make(number: int, rows: int) -> pd.DataFrame:
    """One input: random keys, each with numbers."""
    rng = np.random.default_rng(number)
    columns: dict[str, np.ndarray] = {"key": rng.integers(0, 1 << 40, rows)}
    for column in range(VALUES):
        columns[f"value{column}"] = rng.random(rows)
    return pd.DataFrame(columns)


def sample(table: pd.DataFrame) -> np.ndarray:
    return table["key"].to_numpy()[:1000]


def piece(table: pd.DataFrame, low: int, high: int) -> pd.DataFrame:
    """The rows whose keys are at least ``low`` and less than ``high``."""
    return table[(table["key"] >= low) & (table["key"] < high)]


def merge(pieces: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(pieces).sort_values("key", ignore_index=True)


def summarize(table: pd.DataFrame) -> Summary:
    keys = table["key"]
    sides = (int(keys.iloc[0]), int(keys.iloc[-1])) if len(keys) else (0, 0)
    return Summary(len(keys), int(keys.sum()), *sides, bool(keys.is_monotonic_increasing))


def sort(client: Client, inputs: int, rows: int) -> tuple[list[Summary], list[Summary]]:
    """Sort by tasks on futures; return what is known of the inputs and of the outputs."""
    tables = client.map(make, range(inputs), rows=rows)
    before = client.map(summarize, tables)
    keys = np.concatenate(client.gather(client.map(sample, tables)))
    cuts = np.quantile(keys, np.linspace(0, 1, inputs + 1)[1:-1]).astype(int)
    bounds = [0, *map(int, cuts), 1 << 40]
    pieces = [
        [client.submit(piece, table, low, high) for table in tables]
        for low, high in pairwise(bounds)
    ]
    del tables  # each is freed when its pieces are cut
    outputs = client.map(merge, pieces)
    del pieces
    for count, _ in enumerate(as_completed(outputs), 1):
        if count % 8 == 0 or count == inputs:
            print(f"{count} of {inputs} outputs are sorted", flush=True)
    return client.gather(before), client.gather(client.map(summarize, outputs))


def sort_p2p(client: Client, inputs: int, rows: int) -> tuple[list[Summary], list[Summary]]:
    """Sort by ``sort_values`` of Dask's dataframes, which moves rows from worker to worker."""
    import dask.dataframe as dd

    meta = make(0, 1).iloc[:0]
    table = dd.from_map(make, range(inputs), rows=rows, meta=meta)
    before = client.map(summarize, client.map(make, range(inputs), rows=rows))
    wait(before)
    with dask.config.set({"dataframe.shuffle.method": "p2p"}):
        outputs = table.sort_values("key").persist()
    after = [dask.delayed(summarize)(part) for part in outputs.to_delayed()]
    return client.gather(before), client.gather(client.compute(after))


def wrong(before: list[Summary], after: list[Summary]) -> str:
    """What is wrong with the outputs, taken together; empty when nothing is."""
    after = [part for part in after if part.rows]
    for name in ("rows", "keys"):
        had, has = (sum(getattr(part, name) for part in parts) for parts in (before, after))
        if had != has:
            return f"{name}: {has} instead of {had}"
    if not all(part.is_sorted for part in after):
        return "an output is not sorted"
    if any(low.last > high.first for low, high in pairwise(after)):
        return "outputs overlap"
    return ""


def peak(dask_worker: object = None) -> int:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(engine: str, args: argparse.Namespace) -> tuple[bool, float]:
    """Sort with one engine, print what came of it; whether the rows are right, and the seconds."""
    rows = args.size // ROW // args.parts
    with (
        LocalCluster(
            n_workers=args.workers,
            threads_per_worker=1,
            memory_limit=args.memory,
            dashboard_address=":0",
        ) as cluster,
        common.client_class(engine)(cluster) as client,
    ):
        start = time.perf_counter()
        before, after = (sort if engine == "ownership" else sort_p2p)(client, args.parts, rows)
        seconds = time.perf_counter() - start
        error = wrong(before, after)
        most = max(client.run(peak).values())
        total = sum(part.rows for part in after) * ROW
    print(
        f"{engine}: {format_bytes(total)} sorted in {seconds:.1f} s, on {args.workers} workers of "
        f"{format_bytes(args.memory)}, of which the largest got {format_bytes(most)}"
    )
    print(error or "All rows are there, and in order.")
    return not error, seconds


def plot(seconds: dict[str, float], args: argparse.Namespace) -> None:
    """Draw how long each engine took."""
    figure = common.new_figure(width=5)
    axes = figure.subplots()
    axes.bar_label(axes.bar(list(seconds), list(seconds.values())), fmt="%.1f s")
    axes.set_ylabel("seconds")
    memory = format_bytes(args.memory)
    axes.set_title(f"{format_bytes(args.size)} sorted on {args.workers} workers of {memory}")
    figure.savefig(args.plot, dpi=120)


def main() -> int:
    parser = common.parser(__doc__, "draw how long each engine took")
    parser.add_argument("--size", type=parse_bytes, default="1GB", help="default: 1GB")
    parser.add_argument("--memory", type=parse_bytes, default="400MiB", help="of each worker")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--parts", type=int, default=32, help="inputs, and outputs")
    parser.add_argument("--compare", action="store_true", help="both engines, one after the other")
    args = parser.parse_args()
    engines = ("ownership", "distributed") if args.compare else (args.engine,)
    found = {engine: run(engine, args) for engine in engines}
    if args.plot:
        plot({engine: seconds for engine, (_, seconds) in found.items()}, args)
    return 0 if all(right for right, _ in found.values()) else 1


if __name__ == "__main__":  # worker processes import this file
    sys.exit(main())
