"""Who is in the cluster, as the scheduler plugin tells it."""

from __future__ import annotations

from typing import Any, TypedDict


class Member(TypedDict):
    """One worker, as it travels from the scheduler to owners."""

    address: str
    nthreads: int
    name: Any
    host: str
    resources: dict[str, float]


JOIN = "ownership_join"
"""The scheduler's operation by which an owner asks for the token and the members."""

MEMBERS = "ownership-members"
"""The stream operation by which the scheduler tells owners of changes."""

OWNER_GONE = "ownership-owner-gone"
"""The stream operation by which the scheduler tells workers and clients that an owner is
gone."""

BACKLOG = "ownership-backlog"
"""The stream operation by which a client tells the scheduler about how many of its tasks
wait for a worker, for adaptive scaling."""

DIAL = "ownership_dial"
"""The operation by which a worker that has something for a client asks the scheduler to
have that client link to it, and the stream operation by which the client hears of it."""
