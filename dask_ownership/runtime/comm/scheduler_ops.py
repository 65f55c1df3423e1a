"""Names of the operations between the scheduler plugin, clients and workers, and what they carry.

By these operations owners learn from the scheduler plugin who is in the cluster.
"""

from __future__ import annotations

from typing import Any, TypeAlias, TypedDict


class Member(TypedDict):
    """One worker, as the scheduler describes the worker to owners.

    Attributes
    ----------
    address : str
    incarnation : str
    nthreads : int
    name : object
        The worker's name in Dask: text or a number.
    host : str
    resources : dict
        Abstract resources, and how much of each.
    """

    address: str
    incarnation: str
    nthreads: int
    name: Any
    host: str
    resources: dict[str, float]


Removed: TypeAlias = tuple[str, str, str]
"""A worker that is gone: its address, its incarnation, and what became of it, for people."""

LEFT = "left the cluster"
"""What became of a worker of which no more is known."""


def incarnation_of(server_id: str) -> str:
    """Return the incarnation of a worker, made from the id that Dask gave its process."""
    return server_id.replace("-", "")


JOIN = "ownership_join"
"""Operation of the scheduler: an owner proves who it is, and asks for its token and the members."""

WORD = "ownership-word"
"""Stream operation: a client says its word to the scheduler, over the connection registered for the
client. So only the client itself can join as this client, see `comm.secret`."""

MEMBERS = "ownership-members"
"""Stream operation: the scheduler tells owners of changes, with the members added, and a `Removed`
for each worker gone."""

EXITED = "ownership-exited"
"""Stream operation: the scheduler tells owners what ended the process of a worker that is gone, by
its incarnation, when the nanny of the worker has said so."""

CLOSES = "ownership-closes"
"""Stream operation: a client tells the scheduler that it closes, and so will not come back."""

OWNER_GONE = "ownership-owner-gone"
"""Stream operation: the scheduler tells workers and clients that an owner is gone."""

BACKLOG = "ownership-backlog"
"""Stream operation: a client tells the scheduler about how many of its tasks wait for a worker, for
adaptive scaling."""

HOLD = "ownership_hold"
"""Operation of the scheduler: a client asks the holder to hold objects."""

RELEASE_HOLD = "ownership-let-go"
"""Stream operation: a client tells the scheduler that it does not need a hold any more."""

DIAL = "ownership_dial"
"""Operation of the scheduler: a worker with a message for a client asks that the client link to the
worker. Also the stream operation by which the scheduler tells the client."""

RELAY = "ownership_relay"
"""Operation of the scheduler: an owner asks the scheduler to take the connection over and to splice
it to a connection to a worker, see `scheduler.relay`."""

WHERE = "ownership_where"
"""Operation of the scheduler: a process asks where the values of the scheduler's keys are."""

PROMOTED = "promoted-"
"""Prefix of the names of owned objects at the scheduler. The incarnation of the process that keeps
the object for the scheduler follows."""

PROMOTION_OVER = "ownership-promotion-over"
"""Stream operation: the scheduler tells the process that keeps a promoted object that the name is
forgotten."""


WATCH = "ownership-watch"
"""Stream operation: the scheduler tells clients to begin with reports of what they own (a dashboard
page or another observer looks), or to end them."""

TOLD = (MEMBERS, EXITED, OWNER_GONE, DIAL, PROMOTION_OVER, WATCH)
"""Stream operations by which the scheduler tells a client with an owner that joined."""

REPORT = "ownership_report"
"""Stream operation: a client reports to the scheduler what it owns, between two `WATCH`. Also the
operation of a worker by which the scheduler asks for the same, and for the tasks that ran there."""

ACTIVITY = "ownership_activity"
"""Operation of the scheduler: a process asks for the activity of all owners and workers."""


class Found(TypedDict, total=False):
    """The scheduler's knowledge of one of its keys, as an answer to `WHERE`.

    Attributes
    ----------
    state : str
        The state of the scheduler's task, or ``"unknown"``.
    who_has : list of str
        Addresses of the workers with the value.
    exception, traceback : object
        Set for a task that failed.
    """

    state: str
    who_has: list[str]
    exception: Any
    traceback: Any
