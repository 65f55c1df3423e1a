"""Doubles: modules of distributed that a program also imports by way of ``dask.distributed``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

DOUBLE = "dask."
"""Stands before the name of a module of distributed in the name of its double."""


def copies_of(cls: Any) -> Iterator[Any]:
    """Yield a class of distributed, and its double when a program has imported one.

    ``dask.distributed.diagnostics.progressbar`` and the like are second copies of modules, with
    classes of their own.
    """
    yield cls
    double = getattr(sys.modules.get(DOUBLE + cls.__module__), cls.__name__, cls)
    if double is not cls:
        yield double


class OneCopy(MetaPathFinder, Loader):
    """Has ``import dask.distributed.something`` give distributed's own module and no double."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if not name.startswith(DOUBLE + "distributed."):
            return None
        try:
            import_module(name.removeprefix(DOUBLE))
        except ModuleNotFoundError:
            return None
        return ModuleSpec(name, self)

    def create_module(self, spec: ModuleSpec) -> Any:
        module = sys.modules[spec.name.removeprefix(DOUBLE)]
        # The import system writes the double's spec and loader into the module meanwhile.
        self._own = module.__spec__, module.__loader__
        return module

    def exec_module(self, module: Any) -> None:
        module.__spec__, module.__loader__ = self._own


def import_once() -> None:
    """Have imports make no more doubles, in this process and from now on."""
    if not any(isinstance(finder, OneCopy) for finder in sys.meta_path):
        sys.meta_path.insert(0, OneCopy())
