"""Names of things: keys of child tasks and names under which values are stored."""

from __future__ import annotations

from collections.abc import Hashable
from hashlib import blake2b
from typing import Any

from dask_ownership.core.messages import Heir, Key, Process


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
    (`core.climbing`) while there are few. When there are many: a level is the one to ask when
    its process and all above it live and the one below it does not. So one below which there
    is a process that is also above it is never asked: it is left out, unless nothing else
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
