"""What the random programs reach: which message meets what in which state, under which fault."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from simulation_programs import run_program
from travel_programs import run_travels

from dask_ownership.core.protocol import messages as m
from dask_ownership.testing.network import Faults

PROGRAMS = 36
"""Of each kind, under each fault."""

QUIET = Faults(0.0, 0.0)

FAULTS: dict[str, dict[str, Any]] = {
    "none": {},
    "repeated": {"faults": Faults(0.4, 0.0)},
    "broken": {"faults": Faults(0.0, 0.15)},
    "slow": {"faults": Faults(0.0, 0.0, 20_000.0)},
    "deaths": {"kills": 3},
    "frozen": {"freezes": True},
    "parted": {"partitions": True},
    "retired": {"retires": 3},
    "cancelled": {"cancels": True},
    "left": {"leaves": True},
}
"""Each fault by itself: messages that come twice, connections that break, a slow network,
workers that die, stop for a while, cannot reach others, or leave in good order, futures that
are cancelled, and clients that leave."""

OF_TRAVELS = {"retires", "cancels", "leaves"}
"""Faults that the other programs have in any case."""

GIVEN_BACK = {
    str(reason): f"GIVEN_BACK:{name}"
    for name, reason in (
        ("recalled", m.RECALLED),
        ("dropped", m.DROPPED),
        ("missing", m.MISSING),
        ("blocked", m.BLOCKED),
        ("unknown-function", m.UNKNOWN_FUNCTION),
        ("refused", m.REFUSED),
    )
}

ALWAYS = """
row       DONE                       none pushed
row       FAILED                     pushed
row       STORED                     pushed
row       PARKED                     pushed
row       GIVEN_BACK:blocked           error pushed
row       GIVEN_BACK:recalled          pushed
entry     PUSH                       none
entry     COPY                       none
entry     CANCEL                     none queued running held kept
entry     FREE                       copied kept
entry     REFS_COUNTED                       handed
lent      BORROW                     waiting pushed inline stored error
lent      BORROW_RELEASE                     none pushed inline stored error
lent      RETAIN_PARENT                       none pushed
lent      RELEASE_PARENT                     none dormant error
borrowed  BORROW_ACK                       none waiting
borrowed  VALUE_UPDATE                    waiting
"""
"""What must have been met under every fault: who is told, the message, and the states in
which it found the row or entry that it is about (``none`` when there was none)."""

ALSO = {
    "none": """
row       FAILED STORED PARKED       none
row       GIVEN_BACK:refused           none pushed
row       GIVEN_BACK:unknown-function  pushed
row       GIVEN_BACK:missing           pushed
row       CHECKPOINT                 pushed
entry     CANCEL                     blocked
""",
    "repeated": """
row       FAILED STORED PARKED       none
row       GIVEN_BACK:refused           none pushed
row       GIVEN_BACK:missing           pushed
entry     CANCEL                     blocked
""",
    "broken": """
row       FAILED STORED PARKED       none
row       GIVEN_BACK:refused           none pushed
row       CHECKPOINT                 pushed
lent      RELEASE_PARENT                     inline pushed
""",
    "slow": """
row       FAILED STORED PARKED       none
row       GIVEN_BACK:blocked           none
row       CHECKPOINT                 none pushed
lent      RELEASE_PARENT                     inline stored
""",
    "deaths": """
row       FAILED                     none
row       CHILD_SUBMITTED                       pushed
row       GIVEN_BACK:missing           pushed
entry     FREE                       none
lent      BORROW                     none ready
lent      RETAIN_PARENT                       inline
borrowed  MOVED                      waiting
""",
    "frozen": """
row       GIVEN_BACK:blocked           late-inline
lent      BORROW                     ready
""",
    "parted": """
row       GIVEN_BACK:missing           pushed
row       CHECKPOINT                 pushed
""",
    "retired": """
lent      ADOPT                      none
borrowed  BORROW_ACK                       inline stored
borrowed  MOVED                      inline stored error
borrowed  VALUE_UPDATE                    stored
""",
    "cancelled": """
lent      REQUEST:cancel             none pushed inline stored
lent      BORROW_RELEASE                     cancelled
borrowed  VALUE_UPDATE                    inline stored
""",
    "left": """
lent      LEAVE                      any
lent      BORROW                     none
borrowed  VALUE_UPDATE                    inline
""",
}
"""What must have been met under one fault."""

SOMEWHERE = """
row       DONE STORED FAILED PARKED  none pushed
row       GIVEN_BACK:blocked           none error pushed
row       GIVEN_BACK:refused           none pushed
row       GIVEN_BACK:missing           pushed
row       GIVEN_BACK:unknown-function  pushed
row       GIVEN_BACK:recalled          pushed late-inline
entry     CANCEL                     none blocked queued running held kept
entry     FREE                       none copied kept
lent      BORROW                     none waiting ready pushed inline stored error
lent      BORROW_RELEASE                     none waiting pushed inline stored error cancelled lost
lent      REQUEST:cancel             none pushed inline stored error
lent      REQUEST:retry              error
borrowed  VALUE_UPDATE                    none waiting inline stored error
borrowed  MOVED                      none waiting inline stored error
"""
"""What must have been met under any."""

Met = tuple[str, str, str]


def pairs(table: str) -> set[Met]:
    """Who is told, the message and the state, for each in a table."""
    found = set()
    for line in table.strip().splitlines():
        where, *words = line.split()
        kinds = [word for word in words if word.upper() == word or ":" in word]
        found |= {(where, kind, s) for kind in kinds for s in words if s not in kinds}
    return found


def meet(fault: dict[str, Any]) -> Counter[Met]:
    """What is met in random programs under a fault."""
    met: Counter[Met] = Counter()
    # Travels alone are quick, and what they meet is rare.
    for seed in range(PROGRAMS * (3 if OF_TRAVELS & set(fault) else 1)):
        shape = {"seed": seed, "workers": 1 + seed % 4, "slots": 1 + seed % 3, "length": 60}
        clusters = [run_travels(**shape, clients=2 + seed % 2, **{"faults": QUIET, **fault})]
        if not OF_TRAVELS & set(fault):
            clusters.append(run_program(**shape, **{"faults": QUIET, **fault}))
        for cluster in clusters:
            for (where, state, kind), count in cluster.network.met.items():
                name, _, reason = kind.partition(" ")
                kind = GIVEN_BACK[reason] if reason else name
                met[where, kind, state.replace(" ", "-")] += count
    return met


MET: dict[str, Counter[Met]] = {}


@pytest.mark.parametrize("fault", FAULTS)
def test_messages_meet_what_they_can_in_every_state(fault):
    met = MET[fault] = meet(FAULTS[fault])
    missed = (pairs(ALWAYS) | pairs(ALSO[fault])) - set(met)
    assert not missed, sorted(missed)


def test_and_some_of_it_under_any_fault():
    """Prints the table: run it with those before, and with ``-s``."""
    everything = sorted(set().union(*MET.values()))
    print("\n", " " * 49, *(f"{name:>9}" for name in MET))
    for pair in everything:
        print("{:9} {:27} {:12}".format(*pair), *(f"{met[pair]:9}" for met in MET.values()))
    if len(MET) == len(FAULTS):
        assert not pairs(SOMEWHERE) - set(everything)
