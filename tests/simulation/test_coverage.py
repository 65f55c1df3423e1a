"""What the random programs reach: which message meets what in which state."""

from __future__ import annotations

from collections import Counter

from simulation_programs import run_program
from travel_programs import run_travels

from dask_ownership.core import messages as m

REASONS = {
    str(reason): name
    for name, reason in (
        ("recalled", m.RECALLED),
        ("dropped", m.DROPPED),
        ("missing", m.MISSING),
        ("blocked", m.BLOCKED),
        ("unknown function", m.UNKNOWN_FUNCTION),
        ("refused", m.REFUSED),
    )
}

REQUIRED = {
    "row": {
        # An answer finds its row pushed with that attempt, or gone from the table, or failed
        # with what it waited for.
        "pushed": "DONE STORED FAILED PARKED RETURNED:recalled RETURNED:missing RETURNED:blocked "
        "RETURNED:unknown_function RETURNED:refused",
        "none": "DONE STORED FAILED PARKED RETURNED:blocked RETURNED:refused",
        "error": "RETURNED:blocked",
    },
    "entry": {
        "none": "PUSH COPY CANCEL FREE",
        "blocked": "CANCEL",
        "queued": "CANCEL",
        "running": "CANCEL",
        "held": "CANCEL",
        "copied": "FREE",
        "kept": "FREE CANCEL",
    },
}
"""Kinds of messages by what they must have found, in which state."""


def test_messages_meet_rows_and_entries_in_every_state_that_they_can():
    met: Counter[tuple[str, str, str]] = Counter()
    for seed in range(120):
        cluster = run_program(
            seed, workers=1 + seed % 4, slots=1 + seed % 3, length=60, kills=seed % 4
        )
        for (where, state, kind), count in cluster.network.met.items():
            name, _, reason = kind.partition(" ")
            if reason:
                name = f"{name}:{REASONS[reason].replace(' ', '_')}"
            met[where, state, name] += count
    for where, state, kind in sorted(met):
        print(f"{where:6} {state:14} {kind:28} {met[where, state, kind]:6}")
    required = {
        (where, state, kind)
        for where, states in REQUIRED.items()
        for state, kinds in states.items()
        for kind in kinds.split()
    }
    missed = sorted(required - set(met))
    assert not missed, f"never reached: {missed}"


EVERY = "waiting ready pushed inline stored error"

TRAVELS = {
    "BORROW": ("lent", f"none {EVERY}"),
    "LENT": ("borrowed", "none waiting"),
    "OUTCOME": ("borrowed", "none waiting stored error inline"),
    "RETURN": ("lent", "none waiting pushed inline stored error cancelled lost"),
    "REQUEST:cancel": ("lent", "none pushed inline stored error"),
    "REQUEST:retry": ("lent", "error"),
    "LEAVE": ("lent", "any"),
    "ADOPT": ("lent", "none"),
    "MOVED": ("borrowed", "inline stored error"),
    "TOOK": ("entry", "handed"),
}
"""By what one process says to another about references: the states in which it must have
found the row there that it is about."""


def test_what_is_said_about_references_meets_rows_in_every_state_that_it_can():
    met: Counter[tuple[str, str, str]] = Counter()
    for seed in range(130):
        cluster = run_travels(
            seed,
            workers=1 + seed % 4,
            slots=1 + seed % 3,
            clients=2 + seed % 2,
            length=60,
            kills=seed % 3,
            cancels=seed % 4 < 3,
            leaves=seed % 5 == 0,
            retires=seed % 3,
        )
        met.update(cluster.network.met)
    for where, state, kind in sorted(met, key=lambda k: (k[0], k[2], k[1])):
        if where in ("lent", "borrowed") or kind == "TOOK":
            print(f"{where:9} {kind:16} {state:10} {met[where, state, kind]:6}")
    required = {
        (where, state, kind)
        for kind, (where, states) in TRAVELS.items()
        for state in states.split()
    }
    missed = sorted(required - set(met))
    assert not missed, f"never reached: {missed}"
