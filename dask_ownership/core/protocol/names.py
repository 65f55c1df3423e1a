"""Names of tasks and objects in all processes, keys of child tasks, and names of stored values."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from hashlib import blake2b
from typing import Any, Final, TypeAlias

from dask_ownership.core.protocol.messages import Heir, Key, Origin, OwnerRef, Process

# ---- the parts of a `Process`, `OwnerRef`, `Heir` or `Origin`, as in ``origin[KEY]`` ----
# Names arrive in messages as plain tuples and are kept as such: an object per name would cost more
# time than all that is done with most of them.

INCARNATION: Final = 0
"""The process that owns, or owned first: its incarnation."""

ADDRESS: Final = 1
"""The address of that process; empty for a client."""

NAME: Final = 2
"""The name of that process for people."""

KEY: Final = 3
"""The key of the object or task at that process."""

HEIR: Final = 4
"""The submitting task, as an `Heir`; None for a task that a client submitted."""

LIFE: Final = 5
"""The life of the key, see `Origin`."""


def process_of(name: Origin | Heir | OwnerRef) -> Process:
    """Return the process in the name of an object or task."""
    return name[:3]


def owner_ref_of(name: Origin | Heir | OwnerRef) -> OwnerRef:
    """Return the process and the key in the name of an object or task."""
    return name[:4]


def task_identity(owner: str, key: Key, within: bytes | None) -> bytes:
    """Return the identity of a task, the same wherever and however often the task runs.

    Parameters
    ----------
    owner : str
        Incarnation of the task's owner. Counts only for a task that a client submitted: the
        process in which a task runs owns the children, and a second run may be elsewhere.
    key : hashable
        Key of the task at the owner.
    within : bytes or None
        The identity of the submitting task; None for a task that a client submitted.
    """
    # The chain of keys down from the client, folded into one digest level by level.
    digest = blake2b(within or owner.encode(), digest_size=16)
    digest.update(repr(key).encode())
    return digest.digest()


def child_key(prefix: str, parent: bytes, fingerprint: bytes, occurrence: int) -> str:
    """Return the key of a task that another task, the parent, submits.

    A parent that runs again makes the same calls and so the same keys. A key depends on the
    parent, on the call, and on the occurrence of the call.

    Parameters
    ----------
    prefix : str
    parent : bytes
        Identity of the parent (`task_identity`).
    fingerprint : bytes
        Of the function and its arguments.
    occurrence : int
        How often the parent made the same call before. Not a counter of all calls: two threads
        of one task would share it.
    """
    digest = blake2b(fingerprint, digest_size=16)
    digest.update(parent)
    digest.update(occurrence.to_bytes(8, "little"))
    return f"{prefix}-{digest.hexdigest()}"


HEIRS = 16
"""Levels of submitting tasks that an origin names, at most."""


def task_origin(process: Process, key: Key, heir: Heir | None) -> Heir:
    """Return the name of a task for the tasks that it submits, with the owners above the task.

    Parameters
    ----------
    process, key
        The owner of the task, and the key there.
    heir : Heir or None
        The submitting task; None for a task that a client submitted.

    Notes
    -----
    The keys of all levels are the path from an heir down to the object
    (`references.reconstruction`), so no level is left out while there are few. From `HEIRS - 1`
    levels on, a level is left out that can never be asked. A level is asked when its process and
    all processes above live, and the process below does not. Suppose that one
    process is both below and above a level: while it lives the level is not needed, and when it is
    dead the level may not be asked. Such a level is left out, unless no other level names its own
    process. In this way a recursion of any depth between the same workers ends in
    `HEIRS` levels, and its client is still named.
    """
    # Nearest level first: the submitting task, then the task that submitted the submitting task.
    levels = []
    while heir is not None:
        levels.append(owner_ref_of(heir))
        heir = heir[HEIR]
    if len(levels) >= HEIRS - 1:
        # Only the nearest level is new: all levels above were judged when it got its name.
        names = [level[INCARNATION] for level in levels]
        head = names[0]
        if head == process[INCARNATION] or (process[INCARNATION] in names and head in names[1:]):
            del levels[0]
    made: Any = None
    for level in reversed(levels[: HEIRS - 1]):
        made = (*level, made)
    return (*process, key, made)


def stored_name(owner: str, key: Hashable) -> str:
    """Return the name of an owned value in a worker's ``data``.

    The name is short, because names over 255 bytes break spill files. The owner is a part of
    the hash, because two owners may use the same key for two objects.
    """
    digest = blake2b(repr(key).encode(), digest_size=16, key=owner.encode()[:64])
    return f"owned-{digest.hexdigest()}"


# ---- objects whose owners leave or are gone ----

Path: TypeAlias = tuple[Key, ...]
"""Keys of a task, of a task that the first submitted, and so on down to an object."""


def adopted_key(origin: Origin) -> Key:
    """Return the key of an object in the table of an owner that takes the object over.

    The key is the same in all tables, however often the object is taken over.
    """
    # An object that is taken over from an heir keeps the key of the first time.
    key = origin[KEY]
    return key if is_adopted(key) else ("adopted", origin[INCARNATION], key, origin[LIFE])


def is_adopted(key: Key) -> bool:
    """Return whether `adopted_key` made a key."""
    return isinstance(key, tuple) and len(key) == 4 and key[0] == "adopted"


def held_at(origin: Origin, process: Process) -> Origin:
    """Return the name of an object that a process, the holder, has for the cluster.

    The heir in the name is the object's own row at that process (`holder_ref`).
    """
    return (*owner_ref_of(origin), (*process, adopted_key(origin), None), origin[LIFE])


def holder_ref(origin: Origin) -> OwnerRef | None:
    """Return where an object is held for the cluster; None unless `held_at` made the name."""
    heir = origin[HEIR]
    # Only an object's own row has this key: the task that submitted the object has another.
    own = ("adopted", origin[INCARNATION], origin[KEY], origin[LIFE])
    return owner_ref_of(heir) if heir is not None and heir[KEY] == own else None


def heir_of(origin: Origin | Heir, gone: Callable[[Process], bool]) -> Heir | None:
    """Return the task whose owner is asked for an object when the object's owner is gone.

    The heir is the nearest task up the chain whose process lives together with all processes
    above it. A process with a gone ancestor is about to drop the task, and so is passed over.

    Parameters
    ----------
    origin : Origin or Heir
        Name of the object, or of a task in its place.
    gone : callable
        Whether a process is gone.

    Returns
    -------
    Heir or None
        None when no process lives that can be asked.
    """
    levels: list[Heir] = []
    heir = origin[HEIR]
    while heir is not None:
        levels.append(heir)
        heir = heir[HEIR]
    nearest = None
    # From the client's task downwards, up to the first process that is gone.
    for level in reversed(levels):
        if gone(process_of(level)):
            break
        nearest = level
    return nearest


def path_from(origin: Origin, heir: Origin | Heir) -> Path:
    """Return the path from an heir, one of the levels in an origin, down to the object.

    The heir has to be the very tuple in the origin, as `heir_of` returns.
    """
    keys = [origin[KEY]]
    level: Any = origin
    while level is not heir:
        level = level[HEIR]
        keys.append(level[KEY])
    # The levels lead upwards, the path leads downwards.
    return tuple(reversed(keys))


def same_task(one: Any, other: Any) -> bool:
    """Return whether two names are of one task, which two processes may own in turn.

    A parent that runs again at another worker submits the same keys there. So two names are of
    one task when their keys agree from the task upwards to a level of one process.
    """
    while one is not None and other is not None and one[KEY] == other[KEY]:
        if one[INCARNATION] == other[INCARNATION]:
            return True
        one, other = one[HEIR], other[HEIR]
    return False


def owners_of(origin: Origin | Heir) -> tuple[str, ...]:
    """Return the names of an object's owner and of the owners of the tasks above, nearest first.

    The names are those for people.
    """
    names = []
    level: Any = origin
    while level is not None:
        names.append(level[NAME])
        level = level[HEIR]
    return tuple(names)


# ---- workers and the owners at them ----

NEXT = "#"
"""Stands between the incarnation of a worker and the number of a second, third ... owner there."""


def worker_of(incarnation: str) -> str:
    """Return the incarnation of the worker that an owner is at.

    A client's owner is at no worker: the function then returns the owner's own incarnation.
    """
    return incarnation.partition(NEXT)[0]
