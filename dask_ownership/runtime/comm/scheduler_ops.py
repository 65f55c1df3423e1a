"""Names of the operations between the scheduler plugin, clients and workers, and what they carry.

By these operations owners learn from the scheduler plugin who is in the cluster. The text below
each name has the name and the arguments of the message. Arguments travel by their names, and with
the ``token`` of the caller where the handler checks who calls.
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


# ---- owner to scheduler, with an answer ----

JOIN = "ownership_join"
"""``(JOIN, owner, client, worker, protocol, secret, known)``: an owner proves who it is, and asks
for its token and the members."""

HOLD = "ownership_hold"
"""``(HOLD, hold, asker, owner, origins, functions, tasks)``: a client asks the holder to hold
objects."""

DIAL = "ownership_dial"
"""``(DIAL, owner, dialler)``: a worker with a message for a client asks that the client link to the
worker. The scheduler tells the client by the stream operation ``(DIAL, address)``."""

RELAY = "ownership_relay"
"""``(RELAY, target, asker, token)``: an owner asks the scheduler to take the connection over and to
splice it to a connection to a worker, see `scheduler.relay`."""

WHERE = "ownership_where"
"""``(WHERE, keys, asker)``: a process asks where the values of the scheduler's keys are."""

ACTIVITY = "ownership_activity"
"""``(ACTIVITY, history)``: a process asks for the activity of all owners and workers."""

# ---- client to scheduler, on the stream ----

WORD = "ownership-word"
"""``(WORD, word)``: a client says its word to the scheduler, over the connection registered for the
client. So only the client itself can join as this client, see `comm.secret`."""

CLOSES = "ownership-closes"
"""``(CLOSES,)``: a client tells the scheduler that it closes, and so will not come back."""

BACKLOG = "ownership-backlog"
"""``(BACKLOG, tasks)``: a client tells the scheduler about how many of its tasks wait for a worker,
for adaptive scaling."""

RELEASE_HOLD = "ownership-let-go"
"""``(RELEASE_HOLD, hold, owner, taken)``: a client tells the scheduler that it does not need a hold
any more."""

REPORT = "ownership_report"
"""``(REPORT, owner, report)``: a client reports to the scheduler what it owns, between two `WATCH`.
By the operation ``(REPORT, watch, note, again, gap, failed)`` of a worker the scheduler asks for
the same, and for the tasks that ran there."""

# ---- scheduler to owners, on the stream ----

MEMBERS = "ownership-members"
"""``(MEMBERS, added, removed)``: the scheduler tells owners of changes, with the members added, and
a `Removed` for each worker gone."""

EXITED = "ownership-exited"
"""``(EXITED, incarnation, how)``: the scheduler tells owners what ended the process of a worker
that is gone, by its incarnation, when the nanny of the worker has said so."""

OWNER_GONE = "ownership-owner-gone"
"""``(OWNER_GONE, owner)``: the scheduler tells workers and clients that an owner is gone."""

PROMOTION_OVER = "ownership-promotion-over"
"""``(PROMOTION_OVER, names)``: the scheduler tells the process that keeps a promoted object that
the name is forgotten."""

WATCH = "ownership-watch"
"""``(WATCH, on)``: the scheduler tells clients to begin with reports of what they own (a dashboard
page or another observer looks), or to end them."""

TOLD = (MEMBERS, EXITED, OWNER_GONE, DIAL, PROMOTION_OVER, WATCH)
"""Stream operations by which the scheduler tells a client with an owner that joined."""

# ---- values ----

PROMOTED = "promoted-"
"""Prefix of the names of owned objects at the scheduler. The incarnation of the process that keeps
the object for the scheduler follows."""


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
