"""Names of tasks and objects in all processes, keys of child tasks, and names of stored values."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from hashlib import blake2b
from typing import Any, TypeAlias

from dask_ownership.core.protocol.messages import Heir, Key, Origin, OwnerRef, Process


def task_identity(owner: str, key: Key, within: bytes | None) -> bytes:
    """Who a task is, the same wherever and however often it runs.

    Parameters
    ----------
    owner : str
        Incarnation of its owner. What a task submits is owned by the process that it
        runs in, so this says nothing of those.
    key : hashable
    within : bytes or None
        The identity of the task that submitted it; None for what a client submitted.
    """
    digest = blake2b(within or owner.encode(), digest_size=16)
    digest.update(repr(key).encode())
    return digest.digest()


def child_key(prefix: str, parent: bytes, fingerprint: bytes, occurrence: int) -> str:
    """Key of a task that a task submits.

    A parent that runs again makes the same calls and so the same keys: they
    depend on who the parent is (`task_identity`), what is called with what, and which
    occurrence of that same call it is, but not on a counter that two threads of one task
    would share.
    """
    digest = blake2b(fingerprint, digest_size=16)
    digest.update(parent)
    digest.update(occurrence.to_bytes(8, "little"))
    return f"{prefix}-{digest.hexdigest()}"


HEIRS = 16
"""How many levels of tasks that submitted tasks are named in an origin."""


def task_origin(process: Process, key: Key, heir: Heir | None) -> Heir:
    """How others know a task, and those who own the tasks that led to it.

    Parameters
    ----------
    process, key
        The owner of the task, and its key there.
    heir : Heir or None
        Of the task that submitted it.

    Notes
    -----
    The keys of all levels are the way from an heir down to the object, so none is left out
    (`references.reconstruction`) while there are few. When there are many: a level is the one to
    ask when its process and all above it live and the one below it does not. So one below which
    there is a process that is also above it is never asked: it is left out, unless nothing else
    tells of its process. Recursion of any depth comes to an end of `HEIRS` levels that way.
    """
    levels = []
    while heir is not None:
        levels.append(heir[:4])
        heir = heir[4]
    if len(levels) >= HEIRS - 1:
        names = [level[0] for level in levels]
        head = names[0]
        if head == process[0] or (process[0] in names and head in names[1:]):
            del levels[0]
    made: Any = None
    for level in reversed(levels[: HEIRS - 1]):
        made = (*level, made)
    return (*process, key, made)


def stored_name(owner: str, key: Hashable) -> str:
    """Name of an owned value in a worker's ``data``.

    Short, because names over 255 bytes break spill files; hashed with the owner,
    because two owners may use the same key for two objects.
    """
    digest = blake2b(repr(key).encode(), digest_size=16, key=owner.encode()[:64])
    return f"owned-{digest.hexdigest()}"


# ---- objects whose owners leave or are gone ----

Path: TypeAlias = tuple[Key, ...]
"""Keys of a task, of one that it submitted, and so on to an object."""


def adopted_key(origin: Origin) -> Key:
    """The key of an object in the table of whoever takes it over, the same everywhere."""
    key = origin[3]
    return key if is_adopted(key) else ("adopted", origin[0], key, origin[5])


def is_adopted(key: Key) -> bool:
    """Whether it is one that `adopted_key` made."""
    return isinstance(key, tuple) and len(key) == 4 and key[0] == "adopted"


def held_at(origin: Origin, process: Process) -> Origin:
    """The name of an object that a process holds."""
    return (*origin[:4], (*process, adopted_key(origin), None), origin[5])


def place_held(origin: Origin) -> OwnerRef | None:
    """Where an object of this name is held; None when it is not."""
    heir = origin[4]
    if heir is not None and heir[3] == ("adopted", origin[0], origin[3], origin[5]):
        place: OwnerRef = tuple(heir[:4])
        return place
    return None


def heir_of(origin: Origin | Heir, gone: Callable[[Process], bool]) -> Heir | None:
    """Who is asked for an object when its owner is gone: a task there.

    The owner of the task that submitted it; when that is gone too, the next one up. One
    whose own ancestors are gone is about to drop that task: it is passed over.
    """
    levels: list[Heir] = []
    heir = origin[4]
    while heir is not None:
        levels.append(heir)
        heir = heir[4]
    nearest = None
    for level in reversed(levels):
        if gone(level[:3]):
            break
        nearest = level
    return nearest


def path_from(origin: Origin, heir: Origin | Heir) -> Path:
    """The keys from the task of an heir, one of those in an origin, down to the object."""
    keys = [origin[3]]
    level: Any = origin
    while level is not heir:
        level = level[4]
        keys.append(level[3])
    return tuple(reversed(keys))


def same_task(one: Any, other: Any) -> bool:
    """Whether two names are of one task, which may have been made again by another process."""
    while one is not None and other is not None and one[3] == other[3]:
        if one[0] == other[0]:
            return True
        one, other = one[4], other[4]
    return False


def owners_of(origin: Origin | Heir) -> tuple[str, ...]:
    """Names of the owner of an object, and of those of the tasks that led to it."""
    names = []
    level: Any = origin
    while level is not None:
        names.append(level[2])
        level = level[4]
    return tuple(names)


# ---- workers and the owners at them ----

NEXT = "#"
"""Between the incarnation of a worker and the number of an owner that is not its first."""


def worker_of(incarnation: str) -> str:
    """The incarnation of the worker that an owner is at."""
    return incarnation.partition(NEXT)[0]
