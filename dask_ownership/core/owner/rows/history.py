"""What happened to rows that does not happen to most: handed out again, lost, cancelled, moved."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from dask_ownership.core.owner.rows import restarts
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.messages import Key

REMEMBERED = 10_000
"""How many events are remembered."""

AGAIN = tuple(dict.fromkeys(path.event for path in restarts.PATHS))
"""Events after which a task is handed out again."""


class History:
    """The unusual events of one owner, the latest `REMEMBERED` of them.

    A task that just runs leaves none.

    Parameters
    ----------
    clock : callable
        The time, which is written beside each event.

    Attributes
    ----------
    events : deque of tuple
        ``(key, event, detail, time)``, the oldest first.
    again : dict of str to int
        How often tasks were handed out again, by each event of `AGAIN`.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.events: deque[tuple[Key, str, str, float]] = deque(maxlen=REMEMBERED)
        self.again = dict.fromkeys(AGAIN, 0)

    def log(self, row: Row, event: str, detail: str) -> None:
        """Remember an event of a row."""
        if event in self.again:
            self.again[event] += 1
            detail = f"attempt {row.attempt}: {detail}"
        self.events.append((row.key, event, detail, self.clock()))

    def of(self, key: Key) -> Iterator[tuple[str, str]]:
        """Events of a key with their details, the latest first."""
        for name, event, detail, _ in reversed(self.events):
            if name == key:
                yield event, detail
