"""Search for the best parameters of a model, by tasks that decide what to try next.

    python examples/search.py                        a tree of three levels
    python examples/search.py --depth 4 --keep 2
    python examples/search.py --engine distributed   the same program on stock Dask

The model is scikit-learn's support vector machine on its digits, the parameters are C and gamma.
A task for each part of their plane begins all four quarters of its part at once, and each of these
does the same. When the first scores come in, a task cancels the quarters that lose, and with them
everything that they have begun, however deep. Deeper tasks train with more rows, so cancelling
early saves most of the time.
"""

from __future__ import annotations

import sys
import time

import common
import search_tasks
from distributed import Client
from search_tasks import Box

PLANE = Box(c=0, gamma=-3, side=6)


def trained(client: Client, workers: int) -> int:
    """How many models all workers together have trained."""
    futures = [
        client.submit(search_tasks.fits, workers=[name], pure=False, priority=10)
        for name in range(workers)
    ]
    return sum(client.gather(futures))


def plot(progress: list[tuple[float, int]], whole: int, path: str) -> None:
    """Draw how many models were trained when."""
    figure = common.new_figure()
    axes = figure.subplots()
    axes.plot([when for when, _ in progress], [count for _, count in progress], marker=".")
    axes.axhline(whole, linestyle=":", color="grey", label="the whole tree")
    axes.set_xlabel("seconds")
    axes.set_ylabel("models trained")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = common.parser(__doc__, "draw how many models were trained when")
    parser.add_argument("--depth", type=int, default=3, help="levels below the first; default: 3")
    parser.add_argument("--keep", type=int, default=1, help="quarters that go on; default: 1")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.depth < 1 or not 1 <= args.keep <= 4 or args.workers < 1:
        parser.error("--depth and --workers are at least 1, --keep is from 1 to 4")
    whole = sum(4**level for level in range(1, args.depth + 1))
    Engine = common.client_class(args.engine)
    with Engine(n_workers=args.workers, threads_per_worker=1, dashboard_address=":0") as client:
        start = time.perf_counter()
        search = client.submit(search_tasks.search, PLANE, args.depth, args.keep)
        progress = [(0.0, 0)]
        while not search.done():
            time.sleep(0.2)
            progress.append((time.perf_counter() - start, trained(client, args.workers)))
            print(f"{progress[-1][1]} models trained", flush=True)
        best = search.result()
        seconds = time.perf_counter() - start
        after = trained(client, args.workers)
        time.sleep(1)
        later = trained(client, args.workers) - after
    print(f"\n{args.engine}: {seconds:.1f} s; best: {best.score:.1%} of the digits right", end="")
    print(f", with C = {10**best.box.c:.3g} and gamma = {10**best.box.gamma:.3g}")
    print(f"{after} models trained, of {whole} in the whole tree.")
    print(f"{later} more were trained in the second after the end.")
    if args.plot:
        plot([*progress, (seconds, after)], whole, args.plot)
    return 0


if __name__ == "__main__":  # worker processes import this file
    sys.exit(main())
