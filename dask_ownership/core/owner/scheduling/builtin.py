"""Functions that an owner has workers call on its own account."""

from __future__ import annotations

from typing import NamedTuple

from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import Function, Row
from dask_ownership.core.protocol.messages import Key
from dask_ownership.core.protocol.order import FIRST


class BuiltinFunctions(NamedTuple):
    """Functions of the owner itself, which a payload calls with a dependency.

    The runtime pickles them as it does those of users.

    Attributes
    ----------
    identity : Function
        Returns the dependency: the task is an *alias* of it.
    nothing : Function
        Returns nothing: the worker has the dependency afterwards.
    payload : bytes
        The arguments of either.
    """

    identity: Function = Function(-1, b"", "identity")
    nothing: Function = Function(-2, b"", "nothing")
    payload: bytes = b""

    def alias(self, key: Key, source: tuple[Row, ...], options: Options) -> Row:
        """A row that gets the value of the only row in ``source``, before all other tasks."""
        return Row(key, self.identity, self.payload, source, FIRST, options)


NO_FUNCTIONS = BuiltinFunctions()
"""Of an owner without a runtime."""
