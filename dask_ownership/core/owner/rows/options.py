"""Options of a row: what its user, or the task that submitted it, says of it.

An `Options` is shared by rows and never written to; a row that is to differ gets another one, by
`dataclasses.replace`. What becomes of the attempts of a row is no option, see `rows.attempts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


class Replication(NamedTuple):
    """How many copies of a value are kept."""

    #: As far as there are workers.
    number: int
    #: Addresses, names or hosts: only copies there count.
    workers: tuple[str, ...] | None = None
    #: How many copies each that is there may give at once.
    branching: int = 2


@dataclass(slots=True, kw_only=True, eq=False)
class Options:
    """What few tasks have, kept off the row."""

    #: Addresses, names or hosts where the task may run.
    workers: tuple[str, ...] | None = None
    #: ``allow_other_workers``: ``workers`` is a preference only.
    loose: bool = False
    #: How often a failure is tried again.
    retries: int = 0
    #: Amounts of the worker's abstract resources that the task takes while it runs.
    resources: dict[str, float] | None = None
    #: Seconds for which one attempt may run.
    timeout: float | None = None
    #: The task is not pushed again when it may have started.
    at_most_once: bool = False
    #: Which of the worker's executors runs the task; None for the threads of its slots.
    executor: str | None = None
    #: Pickled: the span in which the task was submitted; what it submits is of it, too.
    span: bytes | None = None
    #: Nesting: 0 for what a client submits, one more than the submitting task's.
    depth: int = 0
    #: Owner, key and attempt of the task that submitted it and alone has it.
    parent: Any = None
    #: The task that submitted it, as its owner names it (`protocol.messages.Heir`).
    heir: Any = None
    #: Identity of the task that submitted it (`protocol.names.task_identity`).
    within: bytes | None = None
    #: Key of the task that this one runs again, for the sake of its children.
    repeats: Any = None
    #: Name (`protocol.messages.Origin`) of an object that another process owned and handed over.
    adopted: Any = None
    #: Of an object that this process holds: how it is made (`references.detached.LineageSpec`).
    lineage_spec: Any = None
    #: The copies that are kept of its value, when it is stored.
    replicas: Replication | None = None
    #: Its value belongs to the worker that makes it, however small it is.
    stays: bool = False


NO_OPTIONS = Options()
"""Of most tasks."""
