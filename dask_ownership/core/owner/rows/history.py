"""Unusual events of rows: tasks handed out again, values lost or moved, rows cancelled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from dask_ownership.core.owner.rows import restarts
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.messages import Key

REMEMBERED = 10_000
"""Number of events that an owner remembers."""

AGAIN = tuple(dict.fromkeys(path.event for path in restarts.PATHS))
"""Names of the events after which a task is handed out again."""


class History:
    """The latest `REMEMBERED` unusual events of one owner's rows.

    A task that runs once, without a fault, leaves no event.

    Parameters
    ----------
    clock : callable
        Returns the wall-clock time in seconds, for each event.

    Attributes
    ----------
    events : deque of tuple
        ``(key, event, detail, time)``, the oldest first.
    again : dict of str to int
        Name of each event of `AGAIN` to how often it happened.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.events: deque[tuple[Key, str, str, float]] = deque(maxlen=REMEMBERED)
        self.again = dict.fromkeys(AGAIN, 0)

    def log(self, row: Row, event: str, detail: str) -> None:
        """Remember an event of a row, and count the event when a task is handed out again."""
        if event in self.again:
            self.again[event] += 1
            detail = f"attempt {row.attempt}: {detail}"
        self.events.append((row.key, event, detail, self.clock()))

    def of(self, key: Key) -> Iterator[tuple[str, str]]:
        """Yield the remembered events of a key with their details, the latest first."""
        for name, event, detail, _ in reversed(self.events):
            if name == key:
                yield event, detail
