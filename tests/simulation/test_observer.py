"""The invariants are checked where something happened, and that is enough."""

from __future__ import annotations

from typing import Any

import pytest
import random_programs

from dask_ownership.testing.invariants import rows_of
from dask_ownership.testing.observer import EVERYWHERE, Observer
from dask_ownership.testing.virtual import Faults, Task, VirtualCluster


def seen(owner) -> Any:
    """What the invariants look at, of an owner and of the worker in its process."""
    core = owner.core
    rows = [
        (row, row.state, row.local_refs, row.task_refs, row.lineage_refs, row.roles, row.attempt,
        row.value,
         row.worker, row.estimate, row.waiting, row.dependencies, row.contains, row.lineage,
         tuple(row.locations), tuple(row.dependents or ()))
        for row in rows_of(core)
    ]  # fmt: skip
    views = [
        (view, view.alive, view.active, view.load, tuple(view.pushed))
        for view in core.placement.workers.values()
    ]
    worker = owner.world.workers.get(owner.home)
    sessions = worker.core.sessions.values() if worker is not None else ()
    entries = [(e, e.state, e.missing, e.stored) for s in sessions for e in s.entries.values()]
    return rows, views, core.lineages.nbytes, entries


@pytest.mark.parametrize("seed", range(12))
def test_a_process_to_which_nothing_happened_is_as_it_was(seed, monkeypatch):
    before: dict[str, Any] = {}
    compared = 0
    validate = Observer.validate

    def compare(observer: Observer, everywhere: bool = True) -> None:
        nonlocal compared
        touched = observer.clock.touched
        for owner in observer.scheduler.owners:
            now = seen(owner)
            if not everywhere and touched.isdisjoint((owner.name, owner.home)):
                assert before.get(owner.name, now) == now, owner.name
                compared += 1
            before[owner.name] = now
        validate(observer, everywhere)

    monkeypatch.setattr(Observer, "validate", compare)
    random_programs.replay(seed)
    assert compared


def test_what_changed_unseen_is_found_a_little_later():
    cluster = VirtualCluster(clients=2, faults=Faults(0.0, 0.0))
    busy, idle = cluster.clients
    row = idle.submit("x", Task(1))
    cluster.run()
    for number in range(EVERYWHERE):
        busy.submit(f"y{number}", Task(1))

    def spoil() -> None:
        row.lineage_refs += 1

    cluster.later(0.0, spoil)
    with pytest.raises(AssertionError, match="x"):
        cluster.run()
