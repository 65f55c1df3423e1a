"""Who is in the cluster, as the scheduler plugin tells it."""

from __future__ import annotations

from typing import Any, TypedDict


class Member(TypedDict):
    """One worker, as it travels from the scheduler to owners."""

    address: str
    incarnation: str
    nthreads: int
    name: Any
    host: str
    resources: dict[str, float]


def incarnation_of(server_id: str) -> str:
    """The incarnation of a worker, from the id that Dask gave its process."""
    return server_id.replace("-", "")


JOIN = "ownership_join"
"""The scheduler's operation by which an owner asks for the token and the members. It has to
prove who it is."""

WORD = "ownership-word"
"""The stream operation by which a client says its word: over the connection that is registered
for it, so that only the client itself can join as that client."""

MEMBERS = "ownership-members"
"""The stream operation by which the scheduler tells owners of changes: members that were added,
and the address and the incarnation of each that is gone."""

OWNER_GONE = "ownership-owner-gone"
"""The stream operation by which the scheduler tells workers and clients that an owner is
gone."""

BACKLOG = "ownership-backlog"
"""The stream operation by which a client tells the scheduler about how many of its tasks
wait for a worker, for adaptive scaling."""

HOLD = "ownership_hold"
"""The scheduler's operation by which a client has the cluster hold objects."""

RELEASE_HOLD = "ownership-let-go"
"""The stream operation by which a client says that it has no need of a hold any more."""

DIAL = "ownership_dial"
"""The operation by which a worker that has something for a client asks the scheduler to
have that client link to it, and the stream operation by which the client hears of it."""

RELAY = "ownership_relay"
"""The scheduler's operation by which it takes a connection over and splices it to one to a worker,
see `scheduler.relay`."""

WHERE = "ownership_where"
"""The scheduler's operation that says where the values of its own keys are."""

PROMOTED = "promoted-"
"""What the names of owned objects at the scheduler begin with; the incarnation of the process
that keeps the object for it follows."""

PROMOTION_OVER = "ownership-promotion-over"
"""The stream operation by which the scheduler tells that process that a name is forgotten."""


WATCH = "ownership-watch"
"""The stream operation by which the scheduler tells clients that somebody looks at what they
own, or that nobody does any more."""

REPORT = "ownership_report"
"""The stream operation by which clients tell what they own, while somebody looks; and the
operation by which the scheduler asks a worker for the same and for what ran there."""

ACTIVITY = "ownership_activity"
"""The scheduler's operation that tells what all of them do."""


class Found(TypedDict, total=False):
    """What the scheduler knows of one of its keys, as `WHERE` answers."""

    state: str
    who_has: list[str]
    exception: Any
    traceback: Any
