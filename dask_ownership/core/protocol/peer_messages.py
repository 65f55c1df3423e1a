"""What owners say to each other, in the batches of a `POST`.

A future that is pickled in one process and unpickled in another makes the other a *borrower* of
the object. It tells the owner, which counts it until it gives the object back. ``number`` tells
one borrowing of a process from its others.
"""

from __future__ import annotations

from dask_ownership.core.protocol.messages import Message
from dask_ownership.core.protocol.states import LOST

BORROW = 0
"""``(BORROW, key, number, life, [path, gone])``, to the owner: I have it now. ``life`` tells the
object from others that had its key (0 for any). With a path: the receiver does not own it, but
its task can make it (`references.reconstruction`); ``gone`` is the incarnation of the owner that
died."""

BORROW_ACK = 1
"""``(BORROW_ACK, key, number, outcome)``, from the owner: you are counted. The outcome is None
while there is none; see `Lending.outcome_of`."""

VALUE_UPDATE = 2
"""``(VALUE_UPDATE, key, number, outcome)``, from the owner: it ended, or its holders changed; None
when it is made or tried again."""

BORROW_RELEASE = 3
"""``(BORROW_RELEASE, key, number)``, to the owner: nobody here has it any more."""

REQUEST = 4
"""``(REQUEST, what, key, number, detail)``, to the owner: ``cancel`` or ``retry`` it, or ``follow``
what it waits for; or it was ``missed`` by those of some addresses, which do not have it: say where
it is now."""

LEAVE = 5
"""``(LEAVE,)``: the sender ends. It borrows nothing any more, and what it owns is gone."""

ADOPT = 6
"""``(ADOPT, key, number, origin, pinned)``, to an heir: take this object over under that key,
which I borrow."""

MOVED = 7
"""``(MOVED, key, number, place, outcome, path)``, from the owner: borrow it from its new owner, and
return it to me then. ``path`` is None, or what to ask the new owner for."""

RETAIN_PARENT = 8
"""``(RETAIN_PARENT, key)``, to the owner of a task: what it submitted may be known elsewhere."""

RELEASE_PARENT = 9
"""``(RELEASE_PARENT, key)``, to the owner of a task: that is so no more."""

PARENT_RETAINED = 10
"""``(PARENT_RETAINED, key)``, from the owner of a task, if it is a worker: the `RETAIN_PARENT` has
arrived."""

NAMES = (
    "BORROW",
    "BORROW_ACK",
    "VALUE_UPDATE",
    "BORROW_RELEASE",
    "REQUEST",
    "LEAVE",
    "ADOPT",
    "MOVED",
    "RETAIN_PARENT",
    "RELEASE_PARENT",
    "PARENT_RETAINED",
)
"""Kinds of messages by number, for people."""

FREED = "freed"
"""In place of the kind of a failure: nothing is known of such an object any more."""

LEAVES = "leaves"
"""Kind of the failure of an object that an heir does not take over, because it leaves too."""


def instead_of(message: Message, why: str) -> Message | None:
    """What is said in place of something that cannot be sent to another process; None for
    nothing."""
    if message[0] in (BORROW_ACK, VALUE_UPDATE):
        return (*message[:3], (LOST, "lost-data", message[1], why, ()))
    if message[0] == MOVED:
        return (*message[:4], None, message[5])
    return None
