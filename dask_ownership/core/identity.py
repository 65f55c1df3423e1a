"""Names of things: keys of child tasks and names under which values are stored."""

from __future__ import annotations

from collections.abc import Hashable
from hashlib import blake2b


def child_key(prefix: str, parent: str, fingerprint: bytes, occurrence: int) -> str:
    """Key of a task that a task submits.

    A parent that runs again makes the same calls and so the same keys: they
    depend on who the parent is, what is called with what, and which occurrence
    of that same call it is, but not on a counter that two threads of one task
    would share.
    """
    digest = blake2b(fingerprint, digest_size=16)
    digest.update(parent.encode())
    digest.update(occurrence.to_bytes(8, "little"))
    return f"{prefix}-{digest.hexdigest()}"


def stored_name(owner: str, key: Hashable) -> str:
    """Name of an owned value in a worker's ``data``.

    Short, because names over 255 bytes break spill files; hashed with the owner,
    because two owners may use the same key for two objects.
    """
    digest = blake2b(repr(key).encode(), digest_size=16, key=owner.encode()[:64])
    return f"owned-{digest.hexdigest()}"
