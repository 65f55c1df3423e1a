"""Why a task is handed out again, and whether it may have run before.

Every path on which the core starts a task a second time by itself is named here, and goes
through `may`: a task that runs at most once takes none on which it may have begun to run. Only
the user (`OwnerCore.retry`) runs such a task again.
"""

from __future__ import annotations

from typing import NamedTuple

from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.protocol import messages as m


class Path(NamedTuple):
    """One way to a second start.

    Attributes
    ----------
    name : str
    event : str
        Under which it is counted and remembered, see `History.log`.
    ran : bool
        Whether the attempt before may have begun to run.
    """

    name: str
    event: str
    ran: bool


WORKER_DIED = Path("worker died", "worker-gone", ran=True)
"""Its worker died after the push was sent, or may have been."""

NEVER_SENT = Path("never sent", "worker-gone", ran=False)
"""Its worker died before the push was sent."""

SILENT = Path("silent", "worker-silent", ran=True)
"""Its worker does not answer: the task is tried elsewhere."""

INPUT_ELSEWHERE = Path("input elsewhere", "worker-silent", ran=True)
"""The same, because an input that it waited for there is made again elsewhere. It may have had
that input all the same."""

FAILED = Path("failed", "retried", ran=True)
"""It raised an error, and has retries left."""

RESCHEDULED = Path("rescheduled", "returned", ran=True)
"""It raised ``distributed.Reschedule``."""

RECALLED = Path("recalled", "recalled", ran=False)
"""Its worker gave it back unstarted, for another that has nothing to do."""

GIVEN_BACK = Path("returned", "returned", ran=False)
"""Its worker gave it back unstarted: it does not take it, or lacks an input or the function."""

RECOVERED = Path("recovered", "recovered", ran=True)
"""Its value was lost, and is made again from its lineage."""

REPEATED = Path("repeated", "repeated", ran=True)
"""A parent runs again for what it submitted, or a bequest is made by its holder."""

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

OF_RETURN = {m.RECALLED: RECALLED, m.RESCHEDULED: RESCHEDULED}
"""Reasons of `GIVEN_BACK` that are no plain return."""


def may(path: Path, options: Options) -> bool:
    """Whether a task with these options may be started again on a path."""
    return not (path.ran and options.at_most_once)
