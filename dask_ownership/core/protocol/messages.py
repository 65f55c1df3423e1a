"""The vocabulary of a link.

A link carries batches of small tuples between one owner and one executor. The
first item of each tuple is one of the integers below; the rest is described
beside it. Integers, strings, bytes and tuples only, so that msgpack carries a
batch as it is and nobody unpickles anything to route it.

``key`` is the Dask key. The owner is implied by the link, so ``(owner, key)``
identifies an object everywhere. ``attempt`` counts how often a task was handed
out; an answer with another attempt than the current one changes nothing. A *value* is
identified by the attempt that made it as well: a key may be used again for something else
while workers still have what it was before, and a value that was made again may be another one.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, TypeAlias

Key: TypeAlias = Hashable
Message: TypeAlias = tuple[Any, ...]

Process: TypeAlias = tuple[str, str, str]
"""A process as others know it: its incarnation, its address (a worker's; empty for a
client, which nobody can dial) and a name for people."""

Heir: TypeAlias = tuple[str, str, str, Key, Any]
"""A task that submitted something: the process that owns it, its key there, and the task that
submitted it in turn; None for what a client submitted."""

Origin: TypeAlias = tuple[str, str, str, Key, Any, int]
"""An object as everyone knows it: the process that owned it first, its key there, the task that
submitted it (its `Heir`: whoever owns that task is asked for the object when the first owner is
gone), and which *life* of that key it is: a key may be used again for something else."""

OwnerRef: TypeAlias = tuple[str, str, str, Key]
"""Where an object is owned now: the process, and the key there."""

ValueName: TypeAlias = tuple[str, Key, int]
"""A value as workers know it: the incarnation of its owner, its key and the attempt that made
it there."""

# ---- owner to executor ----

PUSH = 1
"""``(PUSH, key, attempt, function_id, payload, order, dependencies, options)``

``payload`` is the pickled ``(args, kwargs)``. ``order`` is the owner's number
for the task, lower first. ``dependencies`` lists what the payload's slots refer
to, as `VALUE`, `LOCAL` and `REMOTE` entries, or is ``()``. ``options`` is a dict
or None: ``depth`` (of nesting), ``heir`` (origin of the task that submitted it),
``within`` (that task's identity), ``repeats`` (the key of the task that this one runs
again for its children, and is taken for by them), ``resources``, ``moved`` (it is not
recalled again), ``inline`` (bytes of a pickled result above which it stays, when the
owner is full), ``timeout`` (seconds after which it has failed, from when it took a
slot), ``alone`` (seconds for which it is to run alone, see `executor.exclusion`),
``checkpoints`` (by name, pickled: what earlier attempts had kept), ``alias`` (its value
is that of its only input)."""

FUNCTION = 2
"""``(FUNCTION, function_id, pickled)``: sent once per link, before its first use."""

COPY = 3
"""``(COPY, key, attempt, pickled)``: a value that several tasks here use; kept until FREE."""

FREE = 4
"""``(FREE, keys, attempt)``: drop the values (and copies) of these keys, but nothing
that was put here with a higher number since (scattered values do not use the link)."""

CANCEL = 5
"""``(CANCEL, key, attempt)``: do not start it, and drop what it made or is making."""

RECALL = 6
"""``(RECALL, count)``: give back up to ``count`` tasks that did not start."""

REFS_COUNTED = 7
"""``(REFS_COUNTED, key, attempt)``: the futures inside that result are counted for its owner."""

WATCH_CHILDREN = 8
"""``(WATCH_CHILDREN, key, attempt, children)``: say `CHILD_SUBMITTED` when the task submits one of
these keys."""

FORGET = 21
"""``(FORGET, function_id)``: no task will call this function any more."""

GO = 22
"""``(GO, key, attempt, yes)``: the owner has heard `ALONE`."""

CHECKPOINTED = 9
"""``(CHECKPOINTED, key, attempt, number, problem)``: that `CHECKPOINT` is kept, or why not."""

# ---- dependencies inside a PUSH ----

VALUE = 0
"""``(VALUE, pickled)``: the value itself."""

LOCAL = 1
"""``(LOCAL, key, attempt)``: here already, or made by a task that was pushed here before."""

REMOTE = 2
"""``(REMOTE, key, attempt, nbytes, addresses, origin)``: to be fetched from one of the
addresses. ``origin`` is None, or the `ValueName` of another owner's value."""

# ---- executor to owner ----

DONE = 10
"""``(DONE, key, attempt, pickled, microseconds, inside)``: the value, small enough to
travel. ``inside`` lists the origins of the futures in it; it is left out when there are
none. The worker keeps those until it hears `REFS_COUNTED`."""

DONE_ALONE = 5
"""Items of a `DONE` whose value has no futures inside."""

STORED = 11
"""``(STORED, key, attempt, nbytes, type_name, microseconds)``: the value stays here. Without
``nbytes`` and ``type_name`` it is the very value of its only input."""

FAILED = 12
"""``(FAILED, key, attempt, pickled_error, microseconds, inside)``, as `DONE`."""

GIVEN_BACK = 13
"""``(GIVEN_BACK, key, attempt, reason, keys)``: to be run again; see the reasons below."""

PARKED = 14
"""``(PARKED, key, attempt)``: it waits for another task and gave its slot up."""

ACCEPTING = 15
"""``(ACCEPTING, yes, nthreads)``: whether new tasks are taken, and on how many slots."""

DELEGATED = 17
"""``(DELEGATED, key, attempt, None, microseconds, inside)``: its value is that of the one
future in ``inside``, as `DONE`."""

ALONE = 24
"""``(ALONE, key, attempt, yes)``: this suspect has the worker for itself, or has it no more. What
then begins waits for `GO`. See `executor.exclusion`."""

LEAVING = 18
"""``(LEAVING,)``: the worker is about to leave; values that it has are to be moved."""

CHILD_SUBMITTED = 19
"""``(CHILD_SUBMITTED, key, attempt, child, origin)``: the task submitted a child that was sought.
The worker keeps it until it hears `REFS_COUNTED` of its `made_name`."""

CHECKPOINT = 20
"""``(CHECKPOINT, key, attempt, number, name, pickled)``: keep this for later attempts of a
task that runs. ``number`` counts those of this executor."""

# ---- either way ----

POST = 16
"""``(POST, to, sender, batch)``: from one process to another, see `protocol.peer_messages`. A
worker passes on what is for another than itself. Without a batch: ``sender`` cannot be
reached."""

# ---- reasons of GIVEN_BACK ----

RECALLED = 0
"""Asked for by RECALL. One more with the key None says that the recall is over."""
DROPPED = 1
"""It was cancelled before it started."""
MISSING = 2
"""For each dependency that could not be had: its key, its attempt, and the addresses that were
asked and said that they do not have it."""
BLOCKED = 3
"""A task here that it waited for ended without a value."""
UNKNOWN_FUNCTION = 4
REFUSED = 5
"""The worker is paused or leaving, which ACCEPTING says before. Or it can never offer the
resources; then ``keys`` has what it can, as one tuple of pairs."""

RESCHEDULED = 6
"""Its function raised ``distributed.Reschedule``: it is to be run again, elsewhere if it can."""


def made_name(child: Key) -> Key:
    """Under which a worker keeps a child that was sought, for `REFS_COUNTED`."""
    return ("made", child)


def is_origin(name: Any) -> bool:
    """Whether something that came from elsewhere is an `Origin`."""
    if not isinstance(name, list | tuple) or len(name) != 6 or type(name[5]) is not int:
        return False
    level = name[:5]
    while level is not None:
        if not isinstance(level, list | tuple) or len(level) != 5:
            return False
        if not all(type(part) is str for part in level[:3]):
            return False
        level = level[4]
    return True


NAMES = {
    PUSH: "PUSH",
    FUNCTION: "FUNCTION",
    FORGET: "FORGET",
    COPY: "COPY",
    FREE: "FREE",
    CANCEL: "CANCEL",
    RECALL: "RECALL",
    WATCH_CHILDREN: "WATCH_CHILDREN",
    GO: "GO",
    ALONE: "ALONE",
    DONE: "DONE",
    STORED: "STORED",
    FAILED: "FAILED",
    GIVEN_BACK: "GIVEN_BACK",
    PARKED: "PARKED",
    ACCEPTING: "ACCEPTING",
    REFS_COUNTED: "REFS_COUNTED",
    POST: "POST",
    DELEGATED: "DELEGATED",
    LEAVING: "LEAVING",
    CHILD_SUBMITTED: "CHILD_SUBMITTED",
    CHECKPOINT: "CHECKPOINT",
    CHECKPOINTED: "CHECKPOINTED",
}
"""Kinds of messages by number, for people."""
