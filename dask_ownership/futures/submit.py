"""From a call to a row: keys, options and arguments of `submit` and `map`."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import count
from typing import Any

import dask
import distributed
from dask.utils import format_bytes, funcname, parse_bytes
from distributed.actor import Actor, BaseActorFuture
from distributed.protocol.pickle import loads as _loads  # noqa: F401  (installs tblib's support)

from dask_ownership.core.owner.rows.options import NO_OPTIONS
from dask_ownership.core.owner.rows.row import Function, Row
from dask_ownership.core.protocol.names import child_key
from dask_ownership.core.protocol.order import ordered
from dask_ownership.errors import NotHere, NotSerializable
from dask_ownership.futures.client_like import ClientLike
from dask_ownership.futures.future import Future, TravelledFuture
from dask_ownership.futures.keys import check_key, token_of
from dask_ownership.futures.options import (
    FIFO_TIMEOUT,
    PLAIN_CALL,
    CallOptions,
    given_in,
    make_options,
    parent_of,
    with_annotations,
)
from dask_ownership.futures.structures import exchanged
from dask_ownership.runtime.functions import ManyCalls, dumps_function
from dask_ownership.runtime.owner.owner import Owner
from dask_ownership.runtime.serialize import ATOMS, CALL, dumps, dumps_call, dumps_names, sizeof
from dask_ownership.runtime.task import current_entry

MAYBE_LARGE = 1_000_000
"""Bytes of a call above which the size is compared with the configured threshold."""

SHARED_ARGUMENT = "100 kB"
"""Size of a keyword argument of `map` above which the argument becomes an object of its own."""


FOREIGN = (distributed.Future, Actor, BaseActorFuture)
"""Types of arguments that stand for a value elsewhere."""


class ForeignInput(Exception):
    """Raised for an argument that is a future of the central scheduler or of another client."""


class Calls:
    """Makes the rows of one client's calls.

    Parameters
    ----------
    client : ClientLike
        Its owner owns the rows.

    Attributes
    ----------
    client : ClientLike
    owner : Owner
        The owner of the client.
    """

    def __init__(self, client: ClientLike) -> None:
        self.client = client
        self.owner = client.owner
        self._unique = uuid.uuid4().hex[:16]
        self._numbers = count()
        self._shared_bytes = parse_bytes(SHARED_ARGUMENT)

    # ---- one call ----

    def row(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        key: Any,
        pure: bool,
        call: CallOptions | None = None,
        *,
        function: Function | None = None,
    ) -> Row:
        """Return the row of one `submit`, with a local reference for its future.

        ``call`` is None when the call has no options. ``function`` is the record of ``func`` if the
        caller makes many calls of the function at one moment.
        """
        owner = self.owner
        if key is not None:
            key = check_key(key)
        if function is None:
            function = owner.functions.get(func)
        find = owner.find
        if key is None and pure:
            key = self._pure_key(func, function, args, kwargs)
            find = owner.known
        executor = owner.executor
        # Only a worker's owner can be called by a task.
        entry = current_entry() if executor is not None else None
        if key is not None and (known := find(key, parent_of(entry))) is not None:
            # Other processes look for children that an earlier attempt of the task had submitted:
            # if this key is one of them, the task's owner is told.
            if executor is not None and entry is not None and entry.watched:
                executor.child_submitted(entry, key)
            return known
        if function.pickled is CALL:
            # A function with state travels with the arguments of each call.
            args = (func, *args)
        name = function.name
        try:
            payload, dependencies, contains = dumps_call(args, kwargs, name, self.row_of, FOREIGN)
        except ForeignInput:
            # Arguments with futures of this owner, which live until the row below needs their rows.
            args, kwargs = self.imported(args, kwargs)
            payload, dependencies, contains = dumps_call(args, kwargs, name, self.row_of, FOREIGN)
        except NotSerializable:
            if function.pickled is CALL:
                # Raises an error about the function if the function cannot be pickled.
                dumps_function(func, name)
            raise
        if len(payload) + len(function.pickled) > MAYBE_LARGE:
            nbytes = len(payload) + len(function.pickled)
            warn_if_large(nbytes, f"call of {name!r}")
        if key is None and entry is None:
            key = f"{name}-{self._unique}{next(self._numbers):x}"
        elif key is None:
            # The payload names the owners of futures inside, which change when this task runs
            # again.
            pickled = dumps_names((args, kwargs)) if contains else payload
            key = self.child_key(entry, function, pickled, dependencies)
        if annotations := dask.get_annotations():
            call = with_annotations(call, annotations, key)
        plain = call is None and entry is None
        options = NO_OPTIONS if plain else make_options(call or PLAIN_CALL, entry)
        fifo_timeout = FIFO_TIMEOUT if call is None else call.fifo_timeout
        place = owner.place(dependencies, options.depth, fifo_timeout)
        if call is not None and call.priority:
            place = ordered(place, call.priority)
        row = Row(key, function, payload, dependencies, place, options)
        if contains:
            row.contains = contains
        return owner.submit(row) if entry is None else submit_child(owner, row, entry)

    def row_of(self, future: Any, inside: bool = False) -> Row | None:
        """Return the row of a future of this owner.

        ``inside`` says that the future is inside an object: it travels as a future.

        Raises
        ------
        NotHere
            For a future of a process without a client here, or of another client inside an object.
        ForeignInput
            For a future of the central scheduler or of another client, as an argument.
        """
        if type(future) is Future:
            if future._owner is self.owner:
                return future._row
            if inside:
                raise NotHere(
                    f"the future {future.key!r} belongs to {future._owner.name} and cannot travel "
                    f"inside an object to a task of {self.owner.name}: pass it as an argument, or "
                    "its value"
                )
        elif isinstance(future, TravelledFuture):
            raise future._refuse()
        raise ForeignInput

    def imported(self, args: Any, kwargs: Any) -> Any:
        """Return arguments with futures of this owner in place of all other futures and actors."""
        imports = self.client.imports

        def take(value: Any) -> Any:
            mine = isinstance(value, Future) and value._owner is self.owner
            return value if mine else imports.future(value)

        return exchanged((args, kwargs), take)

    def _pure_key(
        self, func: Any, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> str:
        """Return a key that is the same for the same call.

        Calls of importable functions with plain arguments are hashed here, about ten times faster
        than by `dask.tokenize`, which hashes all other calls.
        """
        if not kwargs and function.token is not None:
            for value in args:
                if type(value) not in ATOMS:
                    break
            else:
                # The representation of plain values tells their types and values apart.
                digest = blake2b(repr(args).encode("utf-8", "surrogatepass"), digest_size=16,
                                 key=function.token)  # fmt: skip
                return f"{function.name}-{digest.hexdigest()}"
        return f"{function.name}-{token_of(subject_of(func, function), kwargs, *args)}"

    def child_key(
        self, entry: Any, function: Function, call: bytes, dependencies: tuple[Row, ...]
    ) -> str:
        """Return the key of a call made by a task, the same key when the task runs again."""
        fingerprint = function.pickled + call
        if dependencies:  # the payload has only slots for dependencies
            origin_of = self.owner.core.origin_of
            fingerprint += repr([origin_of(row)[3] for row in dependencies]).encode()
        occurrences = entry.occurrences
        if occurrences is None:
            occurrences = entry.occurrences = {}
        digest = blake2b(fingerprint, digest_size=16).digest()
        # A task may make the same impure call several times: the keys differ by the number of the
        # call.
        occurrence = occurrences[digest] = occurrences.get(digest, -1) + 1
        return child_key(function.name, entry.identity, digest, occurrence)

    # ---- many calls ----

    def map_futures(
        self,
        func: Callable[..., Any],
        iterables: Sequence[Any],
        kwargs: dict[str, Any],
        key: Any,
        pure: bool,
        call: CallOptions | None = None,
    ) -> list[Future]:
        """Return the futures of one `map`; an interrupt drops the futures and their rows.

        The function is pickled once, and large keyword arguments become objects that are sent once
        per worker.
        """
        keys = list(key) if isinstance(key, list) else None
        if keys is None and key is not None and type(key) is not str:
            raise TypeError(f"map takes a list of keys or a string to begin them, not {key!r}")
        if kwargs:
            kwargs = self.share(kwargs)  # futures of shared arguments live as long as this call
        futures: list[Future] = []
        items = list(zip(*iterables, strict=False))
        if keys is not None and len(keys) != len(items):
            raise ValueError(f"map got {len(keys)} keys for {len(items)} items")
        function = ManyCalls(self.owner.functions, func, FOREIGN)
        made = self.map_keys(func, function.record, key, pure, kwargs)
        for number, args in enumerate(items):
            one = keys[number] if keys is not None else made.of(number, args)
            record = function.record_for(args, kwargs)
            row = self.row(func, args, kwargs, one, pure, call, function=record)
            futures.append(Future(self.client, row))
        return futures

    def map_keys(
        self, func: Any, function: Function, key: Any, pure: bool, kwargs: dict[str, Any]
    ) -> MapKeys:
        """Return the keys of one `map`; ``key`` is the argument of `map`.

        ``function`` is the record of ``func``.
        """
        prefix = key if isinstance(key, str) else None
        unique = ""
        if not pure:
            name = funcname(func) if prefix is None else prefix
            unique = f"{name}-{self._unique}{next(self._numbers):x}"
        return MapKeys(prefix, unique, subject_of(func, function), kwargs)

    def share(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return keyword arguments of many calls, with futures in place of large values."""
        return {name: self._share(value) for name, value in kwargs.items()}

    def _share(self, value: Any) -> Any:
        """Return a large value as the future of an object of its own, any other value as it is."""
        if isinstance(value, Future) or type(value) in ATOMS:
            return value
        if sizeof(value) <= self._shared_bytes:
            return value
        row = self.literal(f"{type(value).__name__}-{token_of(value)}", value)
        return Future(self.client, row)

    def literal(self, key: Any, value: Any) -> Row:
        """Return a row with a known value.

        The value is pickled here, and sent once to each worker that needs it.
        """
        known = self.owner.known(key)
        if known is not None:
            return known
        try:
            pickled = dumps(value)
        except Exception as error:
            raise NotSerializable(
                f"could not pickle the {type(value).__name__} under {key!r}: {error!r}"
            ) from error
        return self.owner.submit(Row.with_value(key, pickled, given_in(current_entry())))


def warn_if_large(nbytes: int, what: str = "graph") -> None:
    """Warn of a call or graph that is larger than ``admin.large-graph-warning-threshold``.

    The text about a graph begins as in Dask, for filters of warnings.
    """
    threshold = dask.config.get("distributed.admin.large-graph-warning-threshold", "10MB")
    if nbytes > parse_bytes(threshold):
        warnings.warn(
            f"Sending large {what} of size {format_bytes(nbytes)}: it travels with each task that "
            "needs it. Have the workers load the data, or scatter it and pass its future",
            stacklevel=4,
        )


def subject_of(func: Any, function: Function) -> Any:
    """Return the object that stands for a function in a token.

    A function that is pickled already is represented by the hash of its pickle, so that it is not
    pickled again.
    """
    return func if function.named or function.token is None else function.token


class MapKeys:
    """The keys of one `map` without a key for each call.

    Parameters
    ----------
    prefix : str or None
        The user's prefix for the keys of pure calls.
    unique : str
        Beginning of the keys of impure calls; empty for pure calls.
    subject : object
        Stands for the function in tokens.
    kwargs : dict
        Arguments of all calls.
    """

    def __init__(
        self, prefix: str | None, unique: str, subject: Any, kwargs: dict[str, Any]
    ) -> None:
        self._prefix = prefix
        self._unique = unique
        self._subject = subject
        self._kwargs = kwargs

    def of(self, number: int, args: Any) -> str | None:
        """Return the key of one call, or None if `Calls.row` makes the key.

        `Calls.row` makes the keys of impure calls inside a task, because the children must have the
        same keys when the task runs again.
        """
        if self._unique:
            return f"{self._unique}-{number}" if current_entry() is None else None
        if self._prefix is not None:
            return f"{self._prefix}-{token_of(self._subject, self._kwargs, *args)}"
        return None


def submit_child(
    owner: Owner, row: Row, entry: Any, submit: Callable[[Row], Row] | None = None
) -> Row:
    """Submit a row for a task; the row does not run if that task was cancelled."""
    row = (owner.expect if entry.cancelled else submit or owner.submit)(row)
    # As in `Calls.row`: this child may be one that other processes look for.
    if entry.watched:
        assert owner.executor is not None
        owner.executor.child_submitted(entry, row.key)
    # Checked again after the row is in the table: a cancellation that comes now either finds the
    # row among the children, or is seen here.
    if entry.cancelled:
        detail = f"the task {entry.key!r} that submitted it was cancelled"
        owner.call(owner.core.cancel_children, parent_of(entry), detail, (row,))
    return row
