"""What a client shows of its owned objects: texts, snapshots and stories."""

from __future__ import annotations

import asyncio
from typing import Any

import distributed

from dask_ownership.client.connection import ClusterConnection
from dask_ownership.monitoring.lookup import find, history, look, present, take
from dask_ownership.monitoring.representation import client_html, client_text


def _on_loop(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether the caller is on an event loop."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


class Inspection(ClusterConnection):
    """The part of a `dask_ownership.Client` for people who look at it."""

    def __repr__(self) -> str:
        stock = super().__repr__()
        return client_text(stock, self.owner) if hasattr(self, "owner") else stock

    def _repr_html_(self) -> str:
        stock = super()._repr_html_()
        return client_html(stock, self.owner) if hasattr(self, "owner") else stock

    def ownership(self, key: Any = None, *, asynchronous: bool | None = None) -> Any:
        """Return what this process owns, borrows and lends now; or all facts about one object.

        Inside a task this is about the worker's process. No other process is asked, and the
        snapshot keeps nothing alive. The time grows with the number of objects (about a second for
        a million), during which the event loop does nothing else.

        Parameters
        ----------
        key : hashable or Future, optional
            One object, owned or borrowed.
        asynchronous : bool, optional
            Whether to return a coroutine, as for other methods of a client.

        Returns
        -------
        dask_ownership.monitoring.snapshot.Snapshot
            Or, for one object, `dask_ownership.monitoring.snapshot.ObjectSnapshot`. Both are
            readable in a terminal and a notebook, have plain attributes, and ``to_dict()``. On an
            asynchronous client the snapshot is here at once, and may be awaited as well.

        Raises
        ------
        KeyError
            When nothing with this key is owned or borrowed here.
        ClosedOwner

        Examples
        --------
        >>> client.ownership().objects["inline"]  # doctest: +SKIP
        3
        >>> client.ownership(future).locations  # doctest: +SKIP
        ['tcp://127.0.0.1:40331']
        """
        self._check_open()
        if asynchronous is None and _on_loop(self.loop.asyncio_loop):
            return self._look_up(key)  # nothing has to be waited for
        return self.sync(self._ownership, key, asynchronous=asynchronous)

    async def _ownership(self, key: Any = None) -> Any:
        return self._look_up(key)

    def _look_up(self, key: Any) -> Any:
        """Return the snapshot for `ownership`. Loop thread."""
        self._check_open()
        # So that the snapshot has what threads submitted just now.
        self.owner.process()
        if key is None:
            return take(self.owner, self.central_calls)
        row = key._row if self._owned(key) else None
        if isinstance(key, distributed.Future):
            key = key.key
        else:
            row = find(self.owner, key)
        if row is None:
            raise KeyError(
                f"{key!r} is neither owned nor borrowed by {self.owner.name}: it never was, or "
                "nobody here holds its future any more"
            )
        return look(self.owner, row)

    def story(self, *keys_or_futures: Any, on_error: str = "raise") -> Any:
        """Return the unusual events of some keys; see `distributed.Client.story`.

        Owned tasks leave no trace while all goes well: writing it would cost more than running
        them. This process remembers its latest 10 000 events: ``returned`` and ``recalled`` (by a
        worker), ``retried``, ``worker-gone`` (under the task), ``worker-silent`` (the worker did
        not answer), ``recovered`` (from lineage), ``repeated`` (for what the task submitted),
        ``copy-gone`` (the last copy), ``not-copied`` (a replica could not be made), ``withdrawn``
        (from borrowers), ``evicted`` (the lineage), ``handed-over`` (by a leaving worker),
        ``adopted`` (from a leaving worker), ``error``, ``cancelled`` and ``lost``. The last entry
        of each key is the present state, if the object is still there. The first seven events have
        a task handed out again, and their details begin with the attempt that is over;
        ``client.ownership().handed_out_again`` counts them all. The cluster is not asked.

        Keys that are not owned or borrowed here go to the scheduler and the workers, as in Dask.

        Parameters
        ----------
        *keys_or_futures : hashable or Future
            Or, for keys of the scheduler, ids of stimuli.
        on_error : {"raise", "ignore"}
            What to do when the scheduler or a worker cannot be asked.

        Returns
        -------
        list of tuple
            ``(key, event, detail, time)``, oldest first; then the present states; then Dask's
            answer about all other keys, in Dask's format.
        """
        return self.sync(self._story, *keys_or_futures, on_error=on_error)

    async def _story(self, *keys_or_futures: Any, on_error: str = "raise") -> list[Any]:
        if on_error not in ("raise", "ignore"):
            raise ValueError(f"on_error= must be 'raise' or 'ignore', not {on_error!r}")
        self._check_open()
        owner = self.owner
        owner.process()
        mine: dict[Any, Any] = {}
        others = []
        for what in keys_or_futures:
            known = isinstance(what, distributed.Future)
            key = what.key if known else what
            row = what._row if self._owned(what) else None if known else find(owner, key)
            # A key whose row is gone may still have events. A stock future is of the scheduler in
            # any case.
            if row is not None or (not known and history(owner, {key})):
                mine[key] = row
            else:
                others.append(key)
        story: list[Any] = list(history(owner, mine.keys()))
        story += [present(owner, row) for row in mine.values() if row is not None]
        if others or not keys_or_futures:
            story += await super()._story(*others, on_error=on_error)
        return story
