"""Requests about tasks that were submitted before: to cancel them, and to run them again."""

from __future__ import annotations

from typing import Any

from dask.utils import key_split

from dask_ownership.client.connection import ClusterConnection
from dask_ownership.futures.options import parent_of
from dask_ownership.runtime.task import current_entry


class Requests(ClusterConnection):
    """The part of a `dask_ownership.Client` that cancels tasks, and runs failed tasks again."""

    async def _cancel(
        self, futures: Any, reason: Any = None, msg: Any = None, force: bool = False
    ) -> None:
        self._check_open()
        mine, others = self._split(futures)
        if mine:
            detail = str(msg or reason or "cancelled by its client")
            self.owner.cancel([f._row for f in mine], detail)
        if others:
            self.central_calls += 1
            await super()._cancel(others, reason=reason, msg=msg, force=force)

    def cancel_pending(self, name: str | None = None, *, asynchronous: bool | None = None) -> Any:
        """Cancel all tasks of this client that have not ended, after a notebook's stop button.

        The stop button ends the wait of a cell, and not the tasks for which the cell waited: these
        go on as long as a variable has their futures. Values that are here already stay. In a task
        only the tasks that this task submitted are cancelled. As with `cancel`, a function that
        runs in a thread keeps its slot until it returns; ``client.ownership().lingering`` has
        these.

        Parameters
        ----------
        name : str, optional
            Cancel only tasks of functions with this name, as in the keys: ``"inc"`` for ``inc-1``.
        asynchronous : bool, optional
            Whether to return a coroutine, as for other methods of a client.

        Returns
        -------
        int
            How many tasks are cancelled. Tasks that depend on these end with them.

        Examples
        --------
        >>> client.cancel_pending()  # doctest: +SKIP
        12000
        """
        parent = parent_of(current_entry())
        return self.sync(self._cancel_pending, name, parent, asynchronous=asynchronous)

    async def _cancel_pending(self, name: str | None, parent: Any) -> int:
        self._check_open()
        self.owner.process()  # so that the rows are here which threads submitted just now
        rows = [
            row
            for row in self.owner.core.pending()
            if (name is None or key_split(row.key) == name)
            and (self._worker_side is None or row.options.parent == parent)
        ]
        self.owner.cancel(rows, "cancel_pending() of its client")
        return len(rows)

    async def _retry(self, futures: Any) -> None:
        self._check_open()
        mine, others = self._split(futures)
        if mine:
            self.owner.retry([f._row for f in mine])
        if others:
            await super()._retry(others)
