"""The tables of ``docs/results.md``, from the record that is written as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dask_ownership.benchmarks.paper.programs import percentile

__all__ = ["write_tables"]

Points = list[dict[str, Any]]

NOT_SUSTAINED = " (not sustained)"

DEATHS = {
    "none": "",
    "worker": ", a worker dies",
    "owner": ", an owner dies",
    "owner, checkpoints": ", an owner dies, checkpoints",
}


def write_tables(page: str, found: dict[str, Points]) -> str:
    """Return a page with the tables of experiments written anew.

    Parameters
    ----------
    page
        Has the tables between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``.
    found
        The points of each experiment, by name; others are left as they are.
    """
    for name, points in found.items():
        begin, end = (f"<!-- {name}: {which} -->" for which in ("begin", "end"))
        if name in TABLES and points and begin in page:
            before, _, rest = page.partition(begin)
            after = rest.partition(end)[2]
            page = "\n".join([before + begin, "", *TABLES[name](points), "", end + after])
    return page


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")


def _row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _head(first: str, *others: str) -> list[str]:
    return [_row(first, *others), _row("---", *["--:"] * len(others))]


def _video(points: Points) -> Iterable[str]:
    yield from _head("late, ms", "p50", "p99", "max")
    for point in points:
        late, n = point["all_ms"], point["videos"]
        what = f"{point['system']}, {n} video{'s' * (n > 1)}{DEATHS[point['failure']]}"
        yield _row(what, *map(_number, (percentile(late, 50), percentile(late, 99), max(late))))


def _serving(points: Points) -> Iterable[str]:
    yield from _head("ms", "rate", "p50", "p99", "whole, p50", "bytes through the router")
    for point in points:
        beyond = point["all_ms"]
        times = (percentile(beyond, 50), percentile(beyond, 99), percentile(point["whole_ms"], 50))
        yield _row(
            f"{point['system']}, by {point['passed']}{'' if point['sustained'] else NOT_SUSTAINED}",
            point["rate"],
            *map(_number, times),
            f"{_number(point['router_bytes'] / 1e6)} MB",
        )


def _latency(points: Points) -> Iterable[str]:
    systems = ("ownership", "synchronous", "distributed")
    yield from _head("mean of a call, ms", *systems)
    kinds = dict.fromkeys((p["mode"], p["passed"], p["place"]) for p in points)
    for mode, passed, place in sorted(kinds, key=lambda kind: kind[0], reverse=True):
        means = {
            point["system"]: f"{point['ms']:.3g}"
            for point in points
            if (point["mode"], point["passed"], point["place"]) == (mode, passed, place)
        }
        where = f", {place}" * (passed == "reference")
        yield _row(f"by {passed}{where}, {mode}", *(means.get(system, "-") for system in systems))


def _borrow(points: Points) -> Iterable[str]:
    counts = dict.fromkeys(point["borrowers"] for point in points)
    yield from _head("tasks/s, with so many borrowers (0: the client)", *map(str, counts))
    for system in dict.fromkeys(point["system"] for point in points):
        yield _row(system, *(_number(p["rate"]) for p in points if p["system"] == system))


def _leases(points: Points) -> Iterable[str]:
    yield from _head("a worker", "lease, s", "p50, ms", "p99", "max", "run again")
    for point in points:
        took = point["all_ms"]
        times = (percentile(took, 50), percentile(took, 99), max(took))
        what = "dies" if point["event"] == "death" else "pauses for 3 s"
        yield _row(what, point["lease_s"] or "none", *map(_number, times), point["again"])


def _recovery(points: Points) -> Iterable[str]:
    lengths = dict.fromkeys(point["task_ms"] for point in points)
    columns = (f"{length} ms" for length in lengths)
    yield from _head("s, without and with a death (ratio)", *columns)
    for system, size in dict.fromkeys((point["system"], point["size"]) for point in points):
        yield _row(
            f"{system}, {size} values",
            *(
                f"{p['without_s']:.1f}, {p['with_s']:.1f} ({p['ratio']:.2f})"
                for p in points
                if (p["system"], p["size"]) == (system, size)
            ),
        )


TABLES: dict[str, Callable[[Points], Iterable[str]]] = {
    "video": _video,
    "serving": _serving,
    "latency": _latency,
    "borrow": _borrow,
    "leases": _leases,
    "recovery": _recovery,
}
