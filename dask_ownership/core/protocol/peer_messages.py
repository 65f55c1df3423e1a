"""The messages between owners, carried in the batches of a `POST`.

A future that one process pickles and another unpickles makes the second process a *borrower* of
the object. The borrower tells the owner, and the owner counts the borrower until the borrower
gives the object back. ``number`` tells one borrowing of a process from its other borrowings, and
``key`` is the key at the owner. In the texts below "sender" and "receiver" are the two processes.
"""

from __future__ import annotations

from dask_ownership.core.protocol.messages import KIND, Key, Message
from dask_ownership.core.protocol.outcomes import NoValue
from dask_ownership.core.protocol.states import LOST

BORROW = 0
"""``(BORROW, key, number, life, [path, gone])``, to the owner: the sender has a future of the
object now. ``life`` tells the object from other objects that had the key (0 for any). With a
path: the receiver does not own the object, but owns the task at the head of the path, which can
make the object again (`references.reconstruction`); ``gone`` is the incarnation of the owner that
died."""

BORROW_ACK = 1
"""``(BORROW_ACK, key, number, outcome)``, from the owner: the borrower is counted. The outcome is
None until the row has ended; see `protocol.outcomes`."""

VALUE_UPDATE = 2
"""``(VALUE_UPDATE, key, number, outcome)``, from the owner: the row has ended, or its locations
have changed. The outcome is None when the value is made, or the task tried, again."""

BORROW_RELEASE = 3
"""``(BORROW_RELEASE, key, number)``, to the owner: nothing at the sender has the object any
more."""

REQUEST = 4
"""``(REQUEST, what, key, number, detail)``, to the owner: ``cancel`` or ``retry`` the row,
or ``follow`` the chain of tasks that the row waits for. ``missed`` says that the workers at the
addresses in ``detail`` do not have the value: the owner is to say where the value is now."""

LEAVE = 5
"""``(LEAVE,)``, to all peers: the sender ends. The sender borrows nothing any more, and all objects
that the sender owns are gone."""

ADOPT = 6
"""``(ADOPT, key, number, origin, pinned)``, to an heir: take the object of this origin over under
this key; the sender, which leaves, borrows the object there under this number."""

MOVED = 7
"""``(MOVED, key, number, owner_ref, outcome, path)``, from the owner: borrow the object from its
new owner, at ``owner_ref``, and give the old borrowing back then. ``path`` is None, or the path to
ask the new owner for."""

RETAIN_PARENT = 8
"""``(RETAIN_PARENT, key)``, to the owner of a task: keep the task, because futures of children that
the task submitted at the sender may be in other processes."""

RELEASE_PARENT = 9
"""``(RELEASE_PARENT, key)``, to the owner of a task: the sender needs the task no more."""

PARENT_RETAINED = 10
"""``(PARENT_RETAINED, key)``, from the owner of a task, when the owner is at a worker: the
`RETAIN_PARENT` has arrived."""

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
"""Stands in place of the kind of a failure: the owner knows no such object any more."""

LEAVES = "leaves"
"""Kind of the failure of an object that an heir does not take over, because the heir leaves,
too."""


def instead_of(message: Message, why: str) -> Message | None:
    """Return the message to send in place of a message that cannot be packed.

    Parameters
    ----------
    message : tuple
    why : str
        The reason, which the borrower sees as the reason of a lost value.

    Returns
    -------
    tuple or None
        None when nothing is sent in its place.
    """
    # The borrower must hear an outcome, or would wait for ever.
    if message[KIND] in (BORROW_ACK, VALUE_UPDATE):
        kind, key, number, _outcome = message
        return (kind, key, number, NoValue(LOST, "lost-data", key, why, ()))
    # Without the outcome the borrower asks the new owner for the value.
    if message[KIND] == MOVED:
        kind, key, number, owner_ref, _outcome, path = message
        return (kind, key, number, owner_ref, None, path)
    return None


def of_borrowing(message: Message) -> tuple[Key, int]:
    """Return the key and the number of the borrowing that a message is about.

    A message that is about no single borrowing has a key or a number of its own meaning there, or
    has neither: then the key is None and the number 0.
    """
    items = message[2:] if message[KIND] == REQUEST else message[1:]
    key = items[0] if items else None
    number = items[1] if len(items) > 1 else 0
    return key, number
