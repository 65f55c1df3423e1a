"""What nannies of distributed know of the processes of their workers, as their logs say it."""

from __future__ import annotations

import asyncio
import re
from typing import Any

PAUSES = (0.1, 0.3, 0.6, 1.0, 2.0)
"""Seconds before each question to a nanny, which notices the end of a process a little later."""

ANSWER = 5.0
"""Seconds that a nanny may take for an answer."""

ENDED = r"Worker process {pid} (was killed by (unknown signal|signal \d+)|exited with status \d+)"
"""The line of a nanny's log about the end of a worker's process."""


async def exit_of(scheduler: Any, nanny: str, pid: int) -> str | None:
    """Return what ended the process of a worker, in the words of the worker's nanny.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    nanny : str
        Address of the nanny.
    pid : int
        The process. Nannies in one process share a log.

    Returns
    -------
    str or None
        As "was killed by signal 9"; None when the nanny does not say so, or is gone as well.
    """
    line = re.compile(ENDED.format(pid=pid))
    for pause in PAUSES:
        await asyncio.sleep(pause)
        try:
            log = await asyncio.wait_for(scheduler.rpc(nanny).get_logs(), ANSWER)
        except Exception:  # of the connection, or any of the nanny's own: then nobody knows
            return None
        for _, text in log:
            if found := line.search(text):
                return found[1]
    return None
