"""What a worker logs of tasks that fail.

Where nobody asks for the result (``fire_and_forget``), and where a retry hides the failure,
this is all that a user learns. It goes to the logger of Dask's workers, so that
``client.get_worker_logs()`` and what filters logs for it find both kinds of tasks.
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
"""Failures that are logged in any second; of the others only how many there were."""


class ErrorLog:
    """Logs failures, and not all of them when there are very many.

    Any thread may call it: two that meet may log one more or count one less.

    Parameters
    ----------
    at_once : int
        How many in a second.
    """

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._second = 0.0
        self._logged = 0
        self._more = 0

    def failed(self, entry: Entry, error: BaseException) -> None:
        """A task raised an error. Nothing is logged when nobody wants its outcome any more."""
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
            entry.attempt,
            entry.session.owner,
            # Text: the worker keeps records, and an error keeps what its frames have.
            _text(error),
            "".join(traceback.format_tb(error.__traceback__)),
        )


def _text(error: BaseException) -> str:
    try:
        return repr(error)
    except Exception as second:  # of its own __repr__
        return f"{type(error).__name__}, which cannot be shown: {type(second).__name__}"


error_log = ErrorLog()
"""That of this process."""
