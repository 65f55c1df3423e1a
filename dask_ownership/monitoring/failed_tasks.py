"""Tasks that failed, with their errors: each of the latest, and counts by name and error."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from typing import Any

from dask_ownership.monitoring.census import GROUPS, OTHERS
from dask_ownership.monitoring.owner_report import group_of

LATEST = 200
"""Failed tasks that are remembered one by one."""

ERROR = re.compile(r"([A-Za-z_][\w.]*)\((.*?),?\)", re.DOTALL)
"""The ``repr`` of most exceptions: a type, and its arguments."""


def parted(text: str) -> tuple[str, str]:
    """Return the type and the message of an error, from its ``repr``."""
    found = ERROR.fullmatch(text)
    if found is None:
        # An exception may have any ``repr``.
        return text.partition(":")[0].strip("<>").partition(" ")[0], text
    kind, message = found.groups()
    if len(message) > 1 and message[0] == message[-1] and message[0] in "'\"":
        message = message[1:-1]
    return kind, message


class FailedTasks:
    """Collects the failed attempts that workers report.

    Attributes
    ----------
    latest : deque of dict
        The latest `LATEST`, oldest first, see `feed.Feed.activity`.
    """

    def __init__(self) -> None:
        self.latest: deque[dict[str, Any]] = deque(maxlen=LATEST)
        self._groups: dict[tuple[str, str], dict[str, Any]] = {}

    def took(self, worker: str, failures: Iterable[Any]) -> None:
        """Add failures as `worker_report.described_failure` describes them."""
        for _, key, when, text, traceback, owner, attempt in failures:
            exception, message = parted(text)
            failure = {
                "time": when,
                "name": group_of(key),
                "exception": exception,
                "message": message,
                "key": key,
                "owner": owner,
                "worker": worker,
                "attempt": attempt,
                "traceback": traceback,
            }
            self.latest.append(failure)
            self._count(failure)

    def _count(self, failure: dict[str, Any]) -> None:
        """Count a failure under its name and error."""
        group = failure["name"], failure["exception"]
        if group not in self._groups and len(self._groups) >= GROUPS:
            group = OTHERS, failure["exception"]
        times = self._groups.get(group, {"times": 0})["times"]
        # The rest of a group is that of its latest failure.
        self._groups[group] = {**failure, "name": group[0], "times": times + 1}

    def groups(self) -> list[dict[str, Any]]:
        """Return the latest failure of each name and error, with ``times``; most frequent first."""
        return sorted(self._groups.values(), key=lambda group: -group["times"])
