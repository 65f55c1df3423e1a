"""The decisions of ownership, without any input or output.

Nothing in this package imports asyncio, distributed, threading, time or random.
Each class is told what happened and leaves the work to do in plain lists, so
the same code runs on a real cluster (`dask_ownership.runtime`) and in the
virtual one (`dask_ownership.testing`).

Only the event loop of a process calls the core of its owner, with these exceptions for other
threads: `Table`, which takes its lock itself, but for ``release``, ``release_task_refs`` and
``unneeded``; so also ``hold``, ``rows``, ``row``, ``origin_of`` and ``value_name`` of `OwnerCore`;
`Borrowing.arrive`; `TaskOrder`; and `Infeasible.why`, which only looks. The core of an executor is
called by any thread, which holds the lock of the executor then; only the number of leased slots
(``queue.slots``) is the event loop's.

The rules that comments name are those of ``docs/architecture.md``. R1: every object has one owner,
which alone writes the object's row. R5: a wait ends with a value, an error or another attempt, and
only membership says that a process is dead. R6: when no process has a future, every table is empty.
"""
