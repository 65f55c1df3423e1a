"""Private parts of the progress bars of distributed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

from dask.utils import key_split
from distributed.core import coerce_to_address
from distributed.diagnostics.progressbar import MultiProgressBar, ProgressBar, TextProgressBar

from dask_ownership.runtime.dask.doubles import copies_of, import_once


def let_bars_follow(
    split: Callable[[list[Any], str | None], tuple[list[Any], list[Any]]],
    listen: Callable[[Any, list[Any], Any, Any], Awaitable[None]],
    without_slot: Callable[[], AbstractContextManager[None]],
) -> None:
    """Have the stock progress bars show owned tasks.

    Parameters
    ----------
    split : callable
        Takes futures or keys and the address of the scheduler (or None). Gives the owned ones, as
        parts that each have the address of their ``scheduler``, and a list of the central ones.
    listen : callable
        Takes a bar, its owned parts, a silent bar of the central tasks with its coroutine (or
        None), and the grouping (None for one number). Draws until all tasks have ended.
    without_slot : callable
        Gives a context in which the calling task has no slot, for a bar that blocks.
    """
    if hasattr(ProgressBar.listen, "__wrapped__"):
        return
    import_once()
    for cls in (ProgressBar, MultiProgressBar):
        for copy in copies_of(cls):
            _let_follow(copy, split, listen)
    for cls in copies_of(TextProgressBar):
        _let_block(cls, without_slot)


def _let_block(cls: Any, without_slot: Any) -> None:
    """Have a blocking bar of this class give up the slot of the calling task."""
    stock = cls.__init__

    @wraps(stock)
    def blocks(self: Any, *args: Any, **kwargs: Any) -> None:
        with without_slot():
            stock(self, *args, **kwargs)

    cls.__init__ = blocks


def _let_follow(cls: Any, split: Any, listen: Any) -> None:
    """Have bars of this class show owned tasks together with central ones."""
    stock_init, stock_listen = cls.__init__, cls.listen

    @wraps(stock_init)
    def __init__(self: Any, keys: Any, scheduler: Any = None, *args: Any, **kwargs: Any) -> None:
        keys = list(keys)
        address = None if scheduler is None else coerce_to_address(scheduler)
        self._owned, self._others = split(keys, address)
        # Without an address the stock bar takes the scheduler of the default client.
        if scheduler is None and self._owned:
            scheduler = self._owned[0].scheduler
        stock_init(self, keys, scheduler, *args, **kwargs)

    @wraps(stock_listen)
    async def listens(self: Any) -> None:
        if not getattr(self, "_owned", None):
            await stock_listen(self)
            return
        # This bar is drawn for all tasks. The one of central tasks is silent, and only counts.
        central = None
        options: dict[str, Any] = {"interval": self.interval, "complete": self.complete}
        if cls.__name__ == MultiProgressBar.__name__:
            options["group_by"] = self.group_by
        if self._others:
            other = _silent(cls)(self._others, self.scheduler, **options)
            central = other, stock_listen(other)
        group_by = options.get("group_by")
        await listen(self, self._owned, central, "prefix" if group_by is key_split else group_by)

    cls.__init__ = __init__
    cls.listen = listens


def _silent(cls: Any) -> Any:
    """Return a subclass of a bar that is never drawn."""
    return type(f"Silent{cls.__name__}", (cls,), {"_draw_bar": lambda self, **response: None})
