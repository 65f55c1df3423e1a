"""Restarts: why a task is handed out again, and whether the task may have run before.

Every path on which the core starts a task a second time of its own accord is named here, and
passes through `may`: a task that runs at most once takes no path on which the task may have begun
to run. Only the user (`OwnerCore.retry`) runs such a task again.
"""

from __future__ import annotations

from typing import NamedTuple

from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.protocol import messages as m


class Path(NamedTuple):
    """One way to a further start of a task."""

    #: Names the path in tests.
    name: str
    #: Name under which a restart is counted and remembered, see `History.log`.
    event: str
    #: Whether the attempt before may have begun to run.
    ran: bool


WORKER_DIED = Path("worker died", "worker-gone", ran=True)
"""The worker died when the push was sent, or may have been."""

NEVER_SENT = Path("never sent", "worker-gone", ran=False)
"""The worker died before the push was sent."""

SILENT = Path("silent", "worker-silent", ran=True)
"""The worker is silent: the task is tried elsewhere."""

INPUT_ELSEWHERE = Path("input elsewhere", "worker-silent", ran=True)
"""The worker is silent, and an input of the task is made again elsewhere. The task may have begun
all the same, because the worker may have had the input."""

FAILED = Path("failed", "retried", ran=True)
"""The task raised an error, and has retries left."""

RESCHEDULED = Path("rescheduled", "returned", ran=True)
"""The task raised ``distributed.Reschedule``."""

RECALLED = Path("recalled", "recalled", ran=False)
"""The worker gave the task back unstarted, for another worker with nothing to do."""

GIVEN_BACK = Path("returned", "returned", ran=False)
"""The worker gave the task back unstarted: the worker does not take the task, or lacks an input or
the function."""

RECOVERED = Path("recovered", "recovered", ran=True)
"""The value of the task was lost, and is made again from its lineage."""

REPEATED = Path("repeated", "repeated", ran=True)
"""A parent runs again for the children that it submitted, or the holder makes a detached object."""

PATHS = (
    WORKER_DIED,
    NEVER_SENT,
    SILENT,
    INPUT_ELSEWHERE,
    FAILED,
    RESCHEDULED,
    RECALLED,
    GIVEN_BACK,
    RECOVERED,
    REPEATED,
)

OF_REASON = {m.RECALLED: RECALLED, m.RESCHEDULED: RESCHEDULED}
"""Reason in a `GIVEN_BACK` message to the path; all other reasons take the path `GIVEN_BACK`."""


def may(path: Path, options: Options) -> bool:
    """Return whether a task with these options may be started again on a path."""
    return not (path.ran and options.at_most_once)
