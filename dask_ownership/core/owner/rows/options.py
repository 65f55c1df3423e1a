"""Options of a row: what the user, or the submitting task, says of the row's task.

A new option is a field below; ``CONTRIBUTING.md`` lists the other places (*The path of a first
change*).

An `Options` object is shared by rows and cannot be written to; a row with other options gets
another object, by `Options._replace`. What becomes of the attempts of a row is no option, see
`rows.attempts`.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Replication(NamedTuple):
    """How many copies of a value are kept, and where."""

    #: How many copies, as far as there are workers.
    number: int
    #: Addresses, names or hosts of workers: only copies at these workers count.
    workers: tuple[str, ...] | None = None
    #: How many further copies each location may give at once.
    branching: int = 2


class Options(NamedTuple):
    """Options of one task or of many. Few tasks have any, so options are kept off the row.

    There are as many attributes as options of a task and its places among other tasks. A named
    tuple cannot be written to, and is made as fast as an object with slots: a frozen dataclass
    takes three times as long, and each task that a task submits has options of its own.
    """

    #: Addresses, names or hosts where the task may run.
    workers: tuple[str, ...] | None = None
    #: ``allow_other_workers``: ``workers`` is a preference only.
    loose: bool = False
    #: How often the task is tried again after an error.
    retries: int = 0
    #: Amounts of the worker's abstract resources that the task takes while it runs.
    resources: dict[str, float] | None = None
    #: Seconds for which one attempt may run.
    timeout: float | None = None
    #: The task is not pushed again when it may have started.
    at_most_once: bool = False
    #: Which of the worker's executors runs the task; None for the threads of its slots.
    executor: str | None = None
    #: Pickled span in which the task was submitted; the tasks that it submits belong there, too.
    span: bytes | None = None
    #: Nesting: 0 for a task that a client submits, else one more than the submitting task's.
    depth: int = 0
    #: Owner, key and attempt of the submitting task, as long as no other process or task has the
    #: row: the row is cancelled together with that task.
    parent: Any = None
    #: The submitting task, under the name that its owner gave it (`protocol.messages.Heir`).
    heir: Any = None
    #: Identity of the submitting task (`protocol.names.task_identity`).
    within: bytes | None = None
    #: Key of the task that the row runs once more for the sake of its children; None otherwise.
    repeats: Any = None
    #: Name (`protocol.messages.Origin`) of an object that another process owned and handed over.
    adopted: Any = None
    #: How a detached object that this process holds is made (`references.detached.LineageSpec`).
    lineage_spec: Any = None
    #: How many copies of the value are kept, when the value is stored.
    replicas: Replication | None = None
    #: The value stays at the worker that makes it, however small the value is.
    stays: bool = False

    @property
    def restricted(self) -> bool:
        """Whether the task may not simply go to any worker that has room for it.

        `Placement` queues restricted tasks apart, and `Dispatch` pushes none behind its inputs.
        """
        return self.workers is not None or bool(self.resources) or self.at_most_once

    def restriction(self) -> tuple[Any, ...]:
        """Return the kind of a restricted task: tasks of one kind wait for the same workers."""
        resources = self.resources or {}
        return (self.workers, self.loose, tuple(sorted(resources.items())), self.at_most_once)


NO_OPTIONS = Options()
"""The options of most tasks. Compared by identity, which is faster than looking at the fields."""
