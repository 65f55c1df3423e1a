"""Retries: failed rows run again, and all rows that failed because one of these did."""

from __future__ import annotations

from collections.abc import Iterable

from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.protocol.states import ERROR


def failed_for(rows: Iterable[Row]) -> tuple[list[Row], list[Borrowed]]:
    """What has to run again for these rows: those that failed, and the failed rows they need.

    Returns
    -------
    list of Row, list of Borrowed
        The owned ones, and those that their owners are asked to retry.
    """
    owned: dict[Row, None] = {}
    borrowed: dict[Borrowed, None] = {}
    stack = list(rows)
    while stack:
        row = stack.pop()
        if isinstance(row, Borrowed):
            borrowed[row] = None
        elif row.state == ERROR and row.function is not None and row not in owned:
            owned[row] = None
            stack.extend(d for d in row.dependencies if d.state == ERROR)
    return list(owned), list(borrowed)


def revive(lifecycle: Lifecycle, roots: Iterable[Row]) -> None:
    """Have failed rows wait again, and all that ended with the very error of one of them.

    Of a borrowed row only those: it waits for what its owner says.
    """
    roots = [row for row in roots if row.state == ERROR]
    if not roots:
        return
    failed_with: dict[Row, list[Row]] = {}
    for row in lifecycle.table.all():
        if row.state == ERROR and row.function is not None:
            for dependency in row.dependencies:
                if dependency.value is row.value:
                    failed_with.setdefault(dependency, []).append(row)
    revived = dict.fromkeys(roots)
    stack = list(roots)
    while stack:
        for row in failed_with.get(stack.pop(), ()):
            if row not in revived:
                revived[row] = None
                stack.append(row)
    for row in revived:
        if not row.borrowed:
            asked = "it was asked for" if row in roots else "what it failed with runs again"
            lifecycle.log(row, "retried", asked)
            if lifecycle.attempts.of(row).died:
                record = lifecycle.attempts.change(row)
                record.died, record.deaths = (), 0
    lifecycle.retry(revived)
