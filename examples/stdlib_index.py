"""Index the source of the running Python's standard library, in tasks that submit tasks.

    python examples/stdlib_index.py                 the whole library
    python examples/stdlib_index.py --limit 20      its first 20 packages
    python examples/stdlib_index.py --compare       the same program on stock Dask, side by side

The program is in ``run`` and in ``stdlib_tasks.py``; it is the same for both engines, which differ
in the class of the client only.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import stdlib_tasks
from distributed import Client, as_completed
from stdlib_tasks import STDLIB, Index, index_package, merge_tree

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ImportError:  # plain text says the same
    Console = None  # type: ignore[assignment,misc]

ENGINES = {"ownership": "dask_ownership.Client", "distributed": "distributed.Client"}
PART = 20  # files of a package that one task takes
NOT_LIBRARY = {"__pycache__", "site-packages", "dist-packages", "lib-dynload"}


class Package(NamedTuple):
    """A package's name and its files, by their paths below the library."""

    name: str
    paths: list[str]


@dataclass(frozen=True)
class Run:
    """What one engine found and the seconds it took, from the first submit to the result."""

    engine: str
    index: Index
    seconds: float

    @property
    def rate(self) -> float:
        return self.index.tasks / self.seconds


def find_packages() -> list[Package]:
    """The packages of the library by name; a top-level module is a package of one file.

    A package of many files comes in parts, so that none takes long and the progress bar moves.
    """
    packages: defaultdict[str, list[str]] = defaultdict(list)
    for folder, folders, files in os.walk(STDLIB):
        folders[:] = sorted(set(folders) - NOT_LIBRARY)
        at = os.path.relpath(folder, STDLIB)
        for file in sorted(name for name in files if name.endswith(".py")):
            path = file if at == "." else os.path.join(at, file)
            packages[file[:-3] if at == "." else at.replace(os.sep, ".")].append(path)
    return [
        Package(name, paths[at : at + PART])
        for name, paths in sorted(packages.items())
        for at in range(0, len(paths), PART)
    ]


def connect(engine: str, args: argparse.Namespace) -> Client:
    """A client of ``engine``, on the cluster named on the command line or on one of its own."""
    if engine == "ownership":
        from dask_ownership import Client as Engine
    else:
        Engine = Client
    if args.scheduler is None:
        return Engine(
            n_workers=args.workers, threads_per_worker=args.threads, dashboard_address=":0"
        )
    client = Engine(args.scheduler)
    client.upload_file(stdlib_tasks.__file__)
    return client


def run(engine: str, packages: list[Package], args: argparse.Namespace) -> Run:
    """Index ``packages``: a task for each, merged in a tree."""
    with connect(engine, args) as client:
        start = time.perf_counter()
        futures = client.map(index_package, [package.paths for package in packages], pure=False)
        for future in show_progress(as_completed(futures), len(futures), ENGINES[engine]):
            if future.status == "error":
                future.result()  # raises what went wrong there
        index = merge_tree(client, futures).result()
        return Run(engine, index, time.perf_counter() - start)


def show_progress(done: Iterable[Any], total: int, title: str) -> Iterator[Any]:
    """Pass ``done`` on, with a bar on a terminal and a line every few seconds elsewhere."""
    if Console is not None and sys.stdout.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TextColumn("packages"), TimeElapsedColumn()) as progress:
            yield from progress.track(done, total=total, description=title)
        return
    start = shown = time.monotonic()
    for count, item in enumerate(done, 1):
        yield item
        now = time.monotonic()
        if now - shown > 5 or count == total:
            shown = now
            print(f"{title}: {count}/{total} packages, {now - start:.1f} s", flush=True)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; the first column is text, the others are numbers."""
    texts = [[str(cell) for cell in row] for row in rows]
    if Console is not None:
        table = Table()
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in texts:
            table.add_row(*row)
        Console().print(f"\n[bold]{title}[/bold]", table)
        return
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    print(f"\n{title}")
    for first, *others in (columns, *texts):
        numbers = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print(" ", first.ljust(widths[0]), *numbers, sep="  ")


def show_index(index: Index) -> None:
    """Print what was found."""
    show_table("Most called names", ("name", "calls"), most(index.calls))
    measures = ("function", "lines", "AST nodes", "branches")
    show_table("Functions with most lines", measures, index.longest[:5])
    show_table("Functions with most AST nodes", measures, index.largest[:5])
    show_table("Functions with most branches", measures, index.branchiest[:5])
    show_table("Most imported while modules load", ("name", "modules"), most(index.imported))
    show_table("Modules that import most", ("module", "imports"), index.importers[:5])
    cycles = [(", ".join(names), len(names)) for names in find_cycles(index.edges)]
    if cycles:
        show_table("Import cycles between top-level names", ("names", "length"), cycles)
    else:
        print("No import cycles between top-level names.")
    print(
        f"{index.modules} modules, {index.functions} functions, {index.lines} lines; "
        f"{len(index.skipped)} files do not parse."
    )


def most(counts: Counter[str]) -> list[tuple[str, int]]:
    """The ten largest counts, ties in the order of their names."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:10]


def find_cycles(edges: dict[str, frozenset[str]]) -> list[list[str]]:
    """The groups of names that all import each other, by some way: the largest first.

    Two names are in one group when each is reached from the other.
    """

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for name in edges.get(todo.pop(), frozenset()) - seen:
                seen.add(name)
                todo.append(name)
        return seen

    reach = {name: reached(name) for name in edges}
    groups = {
        tuple(sorted(other for other in reach[name] if name in reach.get(other, ())))
        for name in edges
        if name in reach[name]
    }
    return sorted(map(list, groups), key=lambda names: (-len(names), names))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="default: the cores")
    parser.add_argument("--threads", type=int, default=1, help="threads of each worker")
    parser.add_argument("--limit", type=int, metavar="PACKAGES", help="index the first ones only")
    parser.add_argument("--engine", choices=ENGINES, default="ownership")
    parser.add_argument("--compare", action="store_true", help="run both engines, side by side")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="use the cluster at this address")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    packages = find_packages()
    chosen = packages[: args.limit]
    if args.compare and args.limit is None:
        print("Without the package test, which takes stock Dask minutes; --limit takes any number.")
        chosen = [package for package in chosen if package.name.split(".")[0] != "test"]
    print(f"Python {sys.version.split()[0]}: {len(chosen)} of {len(packages)} packages", end=" ")
    own = f"{args.workers} workers of {args.threads} threads"
    print(f"in {STDLIB}, on {args.scheduler or own}")

    engines = list(ENGINES) if args.compare else [args.engine]
    runs = [run(engine, chosen, args) for engine in engines]
    show_index(runs[0].index)
    show_table(
        "Speed",
        ("engine", "tasks", "seconds", "tasks/s"),
        [(ENGINES[r.engine], r.index.tasks, f"{r.seconds:.2f}", f"{r.rate:,.0f}") for r in runs],
    )
    if args.compare:
        ours, stock = runs
        if ours.index != stock.index:
            print("The two engines found different things: one of them is wrong.")
            return 1
        print("Both engines found the same.", end=" ")
        print(f"{ENGINES[ours.engine]} is {stock.seconds / ours.seconds:.1f} times as fast.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
