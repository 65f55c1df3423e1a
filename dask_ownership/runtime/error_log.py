"""The log of failed tasks of one worker.

A failure reaches its user in no other way when no process asks for the result
(``fire_and_forget``) or when a retry hides the failure. The records go to the logger of Dask's
workers: so ``client.get_worker_logs()``, and filters on the name of this logger, find failures
of owned tasks and of ordinary Dask tasks alike.
"""

from __future__ import annotations

import logging
import traceback
from time import monotonic

from dask.utils import key_split

from dask_ownership.core.executor import session as ex
from dask_ownership.core.executor.session import Entry

logger = logging.getLogger("distributed.worker")

AT_ONCE = 20
"""Failures to log in one second; of further failures in this second only the number is logged."""


class ErrorLog:
    """Log failed tasks, at most a given number of them in a second.

    Parameters
    ----------
    at_once : int
        Failures to log in one second.
    """

    # Any thread may log, without a lock: when two threads meet, one record more than allowed may be
    # logged, or one omitted failure not counted.

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._second = 0.0
        self._logged = 0
        self._more = 0

    def failed(self, entry: Entry, error: BaseException) -> None:
        """Log the error of a task; do nothing for a task that was cancelled or ended before."""
        if entry.cancelled or entry.state != ex.RUNNING:
            return
        now = monotonic()
        if now - self._second >= 1:
            if self._more:
                logger.error("Compute Failed: %d more tasks in the meantime", self._more)
            self._second, self._logged, self._more = now, 0, 0
        if self._logged >= self._at_once:
            self._more += 1
            return
        self._logged += 1
        function = entry.session.functions.get(entry.function)
        logger.error(
            "Compute Failed\nKey:       %s\nTask:      %s, attempt %d, of owner %s\n"
            "Exception: %s\nTraceback: %s",
            entry.key,
            getattr(function, "name", None) or key_split(entry.key),
            entry.ordinal,
            entry.session.owner,
            # As text: the worker keeps log records, and an exception object would keep the local
            # variables of its frames alive.
            _text(error),
            "".join(traceback.format_tb(error.__traceback__)),
        )


def _text(error: BaseException) -> str:
    """Return the ``repr`` of an error, or a substitute when its ``__repr__`` fails."""
    try:
        return repr(error)
    except Exception as second:
        return f"{type(error).__name__}, which cannot be shown: {type(second).__name__}"


error_log = ErrorLog()
"""The log of failed tasks of this process."""
