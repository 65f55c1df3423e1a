"""What deaths cost one process: names of the counts in `OwnerCore.losses`.

Kills concern tasks and values of this process. Owner losses concern objects of other owners, which
this process needs. All counts begin with the process. Each grows when a death happens, which costs
nothing per task.
"""

from __future__ import annotations

WORKERS_DIED = "workers-died"
"""Workers that went away while a task of this owner may have been running there."""

KILLED_WORKER = "killed-worker"
"""Tasks that this owner gave up as `KilledWorker`: too many workers died under them."""

UNCERTAIN = "uncertain"
"""Tasks with ``at_most_once`` of which no process knows whether they ran."""

LOST_DATA = "lost-data"
"""Values that are gone and cannot be made again, though a future or a row here needed them."""

OWNERS_GONE = "owners-gone"
"""Owners that went away while this process still borrowed objects from them."""

ORPHANED = "orphaned"
"""Tasks that waited or ran at the worker in this process when their owner died."""

OWNER_LOST = "owner-lost"
"""Borrowed futures that failed: the owner is gone, and no process can make the object again."""

KILLS = (WORKERS_DIED, KILLED_WORKER, UNCERTAIN, LOST_DATA)
"""Counts that concern what this process owns."""

OWNER_LOSSES = (OWNERS_GONE, ORPHANED, OWNER_LOST)
"""Counts that concern what other processes own."""

LOSSES = KILLS + OWNER_LOSSES
"""All counts."""
