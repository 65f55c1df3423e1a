"""What deaths cost one process: names of what `OwnerCore.losses` counts.

Kills are about what this process owns, owner losses about what others own and this process
needs. All are counted since the start of the process, when they happen and not per task.
"""

from __future__ import annotations

WORKERS_DIED = "workers-died"
"""Workers that went away while a task of this owner may have been running there."""

KILLED_WORKER = "killed-worker"
"""Tasks that were given up as `KilledWorker`: too many workers died under them."""

UNCERTAIN = "uncertain"
"""Tasks that run at most once of which nobody knows whether they ran."""

LOST_DATA = "lost-data"
"""Values that somebody here needed, and that are gone and cannot be made again."""

OWNERS_GONE = "owners-gone"
"""Processes that went away while this one still borrowed something of theirs."""

ORPHANED = "orphaned"
"""Tasks that waited or ran at the worker of this process when their owner died."""

OWNER_LOST = "owner-lost"
"""Borrowed futures that failed as their owner is gone and nobody can make them again."""

KILLS = (WORKERS_DIED, KILLED_WORKER, UNCERTAIN, LOST_DATA)

OWNER_LOSSES = (OWNERS_GONE, ORPHANED, OWNER_LOST)

LOSSES = KILLS + OWNER_LOSSES
