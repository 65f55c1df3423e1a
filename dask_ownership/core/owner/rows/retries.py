"""Retries: failed rows run again, and so do all rows that failed because of them."""

from __future__ import annotations

from collections.abc import Iterable

from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.protocol.states import ERROR


def failed_for(rows: Iterable[Row]) -> tuple[list[Row], list[Borrowed]]:
    """Find the failed rows that have to run again for ``rows``, the failed inputs included.

    Returns
    -------
    list of Row
        Failed rows of this owner.
    list of Borrowed
        Borrowed rows, whose owners are to be asked for a retry.
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
    """Have failed rows wait again, together with all rows that inherited their errors.

    A borrowed root is not run here: the row waits for the owner's answer, and only the rows that
    inherited the error of the borrowed row run again.

    Parameters
    ----------
    lifecycle : Lifecycle
    roots : iterable of Row
        Rows that did not end with an error are left out.
    """
    roots = [row for row in roots if row.state == ERROR]
    if not roots:
        return
    failed_with: dict[Row, list[Row]] = {}
    for row in lifecycle.table.all():
        if row.state == ERROR and row.function is not None:
            for dependency in row.dependencies:
                # The same object, not an equal one: the row inherited this very error.
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
                # A retry clears the suspicion: the task need not run alone.
                record = lifecycle.attempts.change(row)
                record.died, record.deaths = (), 0
    lifecycle.retry(revived)
