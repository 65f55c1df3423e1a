"""The messages of a link, between one owner and one executor.

A link carries batches of small tuples. The first item of each tuple is one of the integers below;
the text below each integer describes the other items. The items are integers, strings, bytes and
tuples only, so msgpack carries a batch as a whole, and no process unpickles anything to route a
message.

``key`` is the Dask key. The link implies the owner, so ``(owner, key)`` identifies an object
everywhere. ``attempt`` is the number of one hand-out of a task, which the owner never uses twice;
an answer with another attempt than the current one changes nothing. A *value* is identified by
owner, key and the attempt that made the value: a key may be used again for another object while
workers still have the old value, and a value that is made again may differ from the first.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final, TypeAlias

Key: TypeAlias = Hashable
Message: TypeAlias = tuple[Any, ...]

Process: TypeAlias = tuple[str, str, str]
"""A process as other processes know it: incarnation, address (of a worker; empty for a client,
which no process can dial) and a name for people."""

Heir: TypeAlias = tuple[str, str, str, Key, Any]
"""A task that submitted other tasks: the three parts of the `Process` that owns the task, the key
there, and the `Heir` of the task in turn, which is None for a task that a client submitted."""

Origin: TypeAlias = tuple[str, str, str, Key, Any, int]
"""The name of an object in all processes: the three parts of the `Process` that owned the object
first, the key there, the task that submitted the object, and the *life* of the key. The
submitting task is an `Heir`: its owner is asked for the object when the first owner is gone. The
life tells the object from other objects that had the key before, or have the key later."""

OwnerRef: TypeAlias = tuple[str, str, str, Key]
"""Where an object is owned now: the three parts of the `Process`, and the key there."""

ValueName: TypeAlias = tuple[str, Key, int]
"""The name of a value at workers: the incarnation of the value's owner, and there the key and the
attempt that made the value."""

# ---- the parts of a message, as in ``message[KIND]`` ----

KIND: Final = 0
"""Which of the messages below it is."""

SUBJECT: Final = 1
"""The key of the task or object, in all messages that are about one."""

ATTEMPT: Final = 2
"""The attempt of the task, in all messages that are about one."""

IDENTITY: Final = slice(0, 3)
"""What tells a message of a task from all others: kind, key and attempt."""

AFTER_KIND: Final = slice(1, None)
"""All items for the handler of a kind."""

AFTER_ATTEMPT: Final = slice(3, None)
"""All items for a handler that knows the task already."""

# ---- owner to executor ----

PUSH = 1
"""``(PUSH, key, attempt, function_id, payload, order, dependencies, options)``

The executor is to run a task. ``payload`` is the pickled ``(args, kwargs)``. ``order`` is the
order of the task (`protocol.order`), lower first. ``dependencies`` has one `VALUE`, `LOCAL` or
`REMOTE` entry for each slot of the payload, or is ``()``. ``options`` is None or a dict with
``depth`` and any of the other options:

- ``depth``: levels of nesting
- ``heir``: the task that submitted the task, as an `Heir`
- ``within``: the identity of the submitting task (`protocol.names.task_identity`)
- ``repeats``: the key of the task that this task runs again for the sake of the children; the
  children are named as children of that task
- ``resources``: abstract resources that the task takes
- ``ordinal``: which attempt this is, as people count, after attempts that failed or whose worker
  died (`Attempts.ordinal`)
- ``moved``: the task was recalled once, and is not recalled again
- ``inline``: bytes above which a pickled result stays at the worker: 0 for a value that belongs
  there, less than usual when the owner is full
- ``timeout``: seconds, from when the task took a slot, after which the task has failed
- ``alone``: seconds for which the task, a suspect, is to run alone (`executor.exclusion`)
- ``executor``: the name of the worker's executor (pool) that runs the task
- ``span``: the pickled span of the task, to which the tasks that it submits belong, too
- ``checkpoints``: by name, pickled: the checkpoints of earlier attempts
- ``alias``: the value of the task is the value of its only input"""

FUNCTION = 2
"""``(FUNCTION, function_id, pickled)``: a function, sent once per link before its first use, and
again after the executor forgot the function."""

COPY = 3
"""``(COPY, key, attempt, pickled)``: a value that several tasks at the worker use; the executor
keeps the value until `FREE`."""

FREE = 4
"""``(FREE, keys, number)``: drop the values (and copies) of these keys, but no value that was put
at the worker with a higher number since: scattered values do not use the link. ``number`` is the
last one that the owner gave to an attempt, a borrowing or a copy."""

CANCEL = 5
"""``(CANCEL, key, attempt)``: do not start the task, and drop the value that the task made or is
making."""

RECALL = 6
"""``(RECALL, count)``: give back up to ``count`` tasks that did not start."""

REFS_COUNTED = 7
"""``(REFS_COUNTED, key, attempt)``: the futures inside a result or an error, or the named child,
are counted for the owner; the worker may let go of those futures."""

WATCH_CHILDREN = 8
"""``(WATCH_CHILDREN, key, attempt, children)``: say `CHILD_SUBMITTED` when the task submits one of
these keys."""

FORGET = 21
"""``(FORGET, function_id)``: no task will call this function any more."""

GO = 22
"""``(GO, key, attempt, yes)``: the owner has heard `ALONE` with the same ``yes``."""

CHECKPOINTED = 9
"""``(CHECKPOINTED, key, attempt, number, problem)``: the owner keeps the `CHECKPOINT` of that
number when ``problem`` is None; else the problem says why not."""

# ---- dependencies inside a PUSH ----

VALUE = 0
"""``(VALUE, pickled)``: the value itself."""

LOCAL = 1
"""``(LOCAL, key, attempt)``: a value that the worker has already, or that a task which was pushed
there before makes."""

REMOTE = 2
"""``(REMOTE, key, attempt, nbytes, addresses, origin)``: a value that the worker has to fetch from
one of the addresses. ``origin`` is None, or the `ValueName` of another owner's value."""

# ---- executor to owner ----

DONE = 10
"""``(DONE, key, attempt, pickled, microseconds, inside)``: the task has a value, small enough to
travel, and ran for so long. ``inside`` lists the origins of the futures in the value, and is left
out when there are none. The worker keeps those futures until `REFS_COUNTED`."""

DONE_ALONE = 5
"""How many items a `DONE` has whose value has no futures inside."""

STORED = 11
"""``(STORED, key, attempt, nbytes, type_name, microseconds)``: the value stays at the worker. With
None for ``nbytes`` and ``type_name`` the value is the very value of the task's only input."""

FAILED = 12
"""``(FAILED, key, attempt, pickled_error, microseconds, inside)``: the task has failed; the other
items are as in `DONE`."""

GIVEN_BACK = 13
"""``(GIVEN_BACK, key, attempt, reason, keys)``: the owner is to run the task again; see the
reasons below."""

PARKED = 14
"""``(PARKED, key, attempt)``: the task waits for another task and has given its slot up."""

ACCEPTING = 15
"""``(ACCEPTING, yes, nthreads)``: whether the worker takes new tasks, and on how many slots."""

DELEGATED = 17
"""``(DELEGATED, key, attempt, None, microseconds, inside)``: the value of the task is that of the
one future in ``inside``; the other items are as in `DONE`."""

ALONE = 24
"""``(ALONE, key, attempt, yes)``: this suspect has the worker for itself, or has the worker no
more. The next task begins after `GO`. See `executor.exclusion`."""

LINGERS = 25
"""``(LINGERS, key, attempt, yes)``: a cancelled attempt keeps its slot, because its function goes
on; with False the function has ended."""

LEAVING = 18
"""``(LEAVING,)``: the worker is about to leave; owners are to move the values there."""

CHILD_SUBMITTED = 19
"""``(CHILD_SUBMITTED, key, attempt, child, origin)``: the task submitted a child that the owner
looks for (`WATCH_CHILDREN`). The worker keeps the child until `REFS_COUNTED` names the child by
`child_name`."""

CHECKPOINT = 20
"""``(CHECKPOINT, key, attempt, number, name, pickled)``: the owner is to keep a checkpoint of a
running task for later attempts. ``number`` counts the checkpoints of this executor."""

# ---- either way ----

POST = 16
"""``(POST, to, sender, batch)``: a batch from one process to another, see
`protocol.peer_messages`. A worker passes on a post for another process. A post without a batch
(None) says that ``sender`` cannot be reached."""

# ---- reasons of GIVEN_BACK ----

RECALLED = 0
"""The owner has sent `RECALL`. One more answer with the key None says that the recall is over."""
DROPPED = 1
"""The task was cancelled before its start. No executor gives this reason today."""
MISSING = 2
"""Dependencies could not be had. ``keys`` has for each: key, attempt, and the addresses that were
asked and said that they do not have the value."""
BLOCKED = 3
"""A task or a fetch at the worker that this task waited for ended without a value."""
UNKNOWN_FUNCTION = 4
"""The executor has forgotten the function; the owner sends `FUNCTION` again."""
REFUSED = 5
"""The worker is paused or leaving, which `ACCEPTING` has said before. Or the worker can never
offer the resources; then ``keys`` has the worker's resources, as one tuple of pairs."""

RESCHEDULED = 6
"""The function raised ``distributed.Reschedule``: the owner runs the task again, at another worker
if there is one."""


def has_futures(answer: Message) -> bool:
    """Return whether a `DONE`, `FAILED` or `DELEGATED` names futures inside its value or error."""
    return len(answer) > DONE_ALONE


def child_name(child: Key) -> Key:
    """Return the key under which a worker keeps a named child, for `REFS_COUNTED`."""
    return ("made", child)


def is_origin(name: Any) -> bool:
    """Return whether a thing that another process sent is an `Origin`, with its whole chain."""
    if not isinstance(name, list | tuple) or len(name) != 6 or type(name[5]) is not int:
        return False
    # Without the life an origin has the form of an `Heir`, as each level above has.
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
    LINGERS: "LINGERS",
    LEAVING: "LEAVING",
    CHILD_SUBMITTED: "CHILD_SUBMITTED",
    CHECKPOINT: "CHECKPOINT",
    CHECKPOINTED: "CHECKPOINTED",
}
"""Kinds of messages by number, for people."""
