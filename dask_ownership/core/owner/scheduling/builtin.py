"""Built-in functions: workers call them for an owner and not for a user."""

from __future__ import annotations

from typing import NamedTuple

from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import Function, Row
from dask_ownership.core.protocol.messages import Key
from dask_ownership.core.protocol.order import FIRST


class BuiltinFunctions(NamedTuple):
    """Built-in functions of an owner, each called with one dependency.

    The runtime pickles the built-in functions like functions of users.
    """

    #: Returns the dependency: a task with this function is an *alias* of the dependency.
    identity: Function = Function(-1, b"", "identity")
    #: Returns nothing: the worker has a copy of the dependency afterwards.
    nothing: Function = Function(-2, b"", "nothing")
    #: The pickled arguments of either function, with a slot for the dependency.
    payload: bytes = b""

    def alias(self, key: Key, source: tuple[Row, ...], options: Options) -> Row:
        """Return a new alias of the only row in ``source``, ordered before all tasks of users."""
        return Row(key, self.identity, self.payload, source, FIRST, options)


NO_FUNCTIONS = BuiltinFunctions()
"""The built-in functions of an `OwnerCore` that is made without a runtime."""
