"""From a call to a row: keys, options and arguments of `submit` and `map`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import count
from numbers import Real
from typing import Any

import dask
import distributed
from dask.tokenize import tokenize
from dask.utils import funcname, parse_bytes
from distributed.protocol.pickle import loads as _loads  # noqa: F401  (installs tblib's support)

from dask_ownership.core.identity import child_key
from dask_ownership.core.table import INLINE, NO_OPTIONS, Function, Options, Row
from dask_ownership.errors import NotHere, NotSerializable
from dask_ownership.future import Future, TravelledFuture
from dask_ownership.runtime.keys import check_key
from dask_ownership.runtime.owner import Owner
from dask_ownership.runtime.runner import current_entry
from dask_ownership.runtime.serialize import ATOMS, CALL, dumps, dumps_call

SHARED_ARGUMENT = "100 kB"
"""Size of a keyword argument of `map` above which it becomes an object of its own."""


class Calls:
    """Makes the rows of one owner's calls.

    Parameters
    ----------
    owner : Owner
    """

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
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
        workers: Any,
        resources: Any,
        retries: Any,
        priority: Any,
        loose: Any,
    ) -> Row:
        """The row of one `submit`, with a handle for its future."""
        owner = self.owner
        if key is not None:
            check_key(key)
        function = owner.functions.get(func)
        find = owner.find
        if key is None and pure:
            key = self._pure_key(func, function, args, kwargs)
            find = owner.known
        entry = current_entry() if owner.executor is not None else None
        if key is not None:
            known = find(key, parent_of(entry))
            if known is not None:
                return known
        if function.pickled is CALL:
            args = (func, *args)
        payload, dependencies, contains = dumps_call(
            args, kwargs, function.name, self.row_of, distributed.Future
        )
        annotations = dask.get_annotations()
        if workers is not None:
            workers = named(workers)
        if annotations:
            workers = workers or named(annotations.get("workers", annotations.get("restrictions")))
            resources = resources or annotations.get("resources")
            retries = retries or annotations.get("retries")
            priority = priority or annotations.get("priority", 0)
            loose = loose or annotations.get("allow_other_workers")
        if workers or resources or retries or entry is not None:
            options = make_options(workers, resources, retries, loose, entry)
        else:
            options = NO_OPTIONS
        if key is None:
            if entry is not None:
                key = self._child_key(entry, function, payload)
            else:
                key = f"{function.name}-{self._unique}{next(self._numbers):x}"
        row = Row(
            key,
            function,
            payload,
            dependencies,
            owner.next_order(1, priority),
            options,
        )
        if contains:
            row.contains = contains
        return owner.submit(row)

    def row_of(self, future: Any) -> Row | None:
        """The row of a future that this owner owns.

        Raises
        ------
        NotHere
            For a future of another process, another client or the central scheduler.
        """
        if type(future) is Future:
            if future._owner is self.owner:
                return future._row
            raise NotHere(
                f"the future {future.key!r} belongs to {future._owner.name} and cannot be an "
                f"argument of a task of {self.owner.name}: pass its value"
            )
        if isinstance(future, TravelledFuture):
            raise future._refuse()
        raise NotHere(
            f"the future {future.key!r} is computed by the central scheduler and cannot be an "
            "argument of an owned task: pass its value (future.result())"
        )

    def _pure_key(
        self, func: Any, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> str:
        """The same key for the same call.

        Calls of importable functions with plain arguments are hashed here, about ten
        times faster than by `dask.tokenize`, which does the others.
        """
        if not kwargs and function.token is not None:
            for value in args:
                if type(value) not in ATOMS:
                    break
            else:
                digest = blake2b(repr(args).encode("utf-8", "surrogatepass"), digest_size=16,
                                 key=function.token)  # fmt: skip
                return f"{function.name}-{digest.hexdigest()}"
        return f"{function.name}-{tokenize(func, kwargs, *args)}"

    def _child_key(self, entry: Any, function: Function, payload: bytes) -> str:
        fingerprint = function.pickled + payload
        occurrences = entry.occurrences
        if occurrences is None:
            occurrences = entry.occurrences = {}
        digest = blake2b(fingerprint, digest_size=16).digest()
        occurrence = occurrences[digest] = occurrences.get(digest, -1) + 1
        parent = f"{entry.session.owner}:{entry.key!r}"
        return child_key(function.name, parent, digest, occurrence)

    # ---- many calls ----

    def map_rows(
        self,
        func: Callable[..., Any],
        iterables: Sequence[Any],
        kwargs: dict[str, Any],
        key: Any,
        pure: bool,
        workers: Any,
        resources: Any,
        retries: Any,
        priority: Any,
        loose: Any,
    ) -> list[Row]:
        """The rows of one `map`, each with a handle for its future.

        The function is pickled once, and large keyword arguments become objects that
        are sent once per worker.
        """
        keys = list(key) if isinstance(key, list) else None
        if keys is None and key is not None and type(key) is not str:
            raise TypeError(f"map takes a list of keys or a string to begin them, not {key!r}")
        if kwargs:
            kwargs = self.share(kwargs)  # futures that live as long as this call
        rows: list[Row] = []
        items = list(zip(*iterables, strict=False))
        if keys is not None and len(keys) != len(items):
            raise ValueError(f"map got {len(keys)} keys for {len(items)} items")
        unique = self.unique_name(func, key) if not pure and keys is None else ""
        for number, args in enumerate(items):
            if keys is not None:
                one = keys[number]
            else:
                one = map_key(func, args, kwargs, key, f"{unique}-{number}" if unique else None)
            try:
                row = self.row(
                    func, args, kwargs, one, pure, workers, resources, retries, priority, loose
                )
            except BaseException:
                for row in rows:
                    self.owner.drop(row)
                raise
            rows.append(row)
        return rows

    def unique_name(self, func: Any, key: Any) -> str:
        """What the keys of one impure `map` begin with."""
        name = key if isinstance(key, str) else funcname(func)
        return f"{name}-{self._unique}{next(self._numbers):x}"

    def share(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments of many calls, the large ones as futures of objects of their own."""
        return {name: self._share(value) for name, value in kwargs.items()}

    def _share(self, value: Any) -> Any:
        """A large value as a future of an object of its own."""
        if isinstance(value, Future) or type(value) in ATOMS:
            return value
        from distributed.sizeof import safe_sizeof

        if safe_sizeof(value) <= self._shared_bytes:
            return value
        row = self.literal(f"{type(value).__name__}-{tokenize(value)}", value)
        return Future(self.client_of(), row)

    def client_of(self) -> Any:
        """The client that futures made here belong to."""
        from dask_ownership.future import owned_clients

        return owned_clients[self.owner.incarnation]

    def literal(self, key: Any, value: Any) -> Row:
        """A row whose value is known: here pickled, sent once to each worker that needs it."""
        known = self.owner.known(key)
        if known is not None:
            return known
        try:
            pickled = dumps(value)
        except Exception as error:
            raise NotSerializable(
                f"could not pickle the {type(value).__name__} under {key!r}: {error!r}"
            ) from error
        row = Row(key, None, None, (), 0, given_in(current_entry()))
        row.value = pickled
        row.nbytes = len(pickled)
        row.state = INLINE
        return self.owner.submit(row)


def map_key(func: Any, args: Any, kwargs: dict[str, Any], key: Any, unique: str | None) -> Any:
    """The key of one call of a `map`; None where `Calls.row` makes it.

    ``unique`` is its key when it is impure, except inside a task, whose children have the
    same keys when it runs again.
    """
    if unique is not None:
        return unique if current_entry() is None else None
    if isinstance(key, str):
        return f"{key}-{tokenize(func, kwargs, *args)}"
    return None


def parent_of(entry: Any) -> Any:
    """How rows name the task that submitted them."""
    return (entry.session.owner, entry.key, entry.attempt) if entry is not None else None


def given_in(entry: Any) -> Options:
    """Options of a row for a value that the task of an entry has, if it is one."""
    return NO_OPTIONS if entry is None else Options(heir=entry.heir)


def named(workers: Any) -> Any:
    """``workers=`` with a number as the name that it is: 0 is a worker of every `LocalCluster`."""
    return str(workers) if isinstance(workers, Real) else workers


def make_options(workers: Any, resources: Any, retries: Any, loose: Any, entry: Any) -> Options:
    """Options of a row from what the user wrote."""
    names: tuple[str, ...] | None = None
    if workers:
        if isinstance(workers, list | tuple | set | frozenset):
            names = tuple(str(name) for name in workers)
        elif isinstance(workers, str | Real):
            names = (str(workers),)
        else:
            raise TypeError(
                "workers= takes an address, a name, a host or a list of them, "
                f"not a {type(workers).__name__}: {workers!r}"
            )
    if retries and not isinstance(retries, int):
        raise TypeError(f"retries= takes a whole number, not {retries!r}")
    if resources and not (
        isinstance(resources, dict)
        and all(isinstance(k, str) and isinstance(v, Real) for k, v in resources.items())
    ):
        raise TypeError(f"resources= takes a dict of names and numbers, not {resources!r}")
    return Options(
        workers=names,
        loose=bool(loose),
        retries=int(retries or 0),
        resources={k: float(v) for k, v in resources.items()} if resources else None,
        depth=entry.depth + 1 if entry is not None else 0,
        parent=parent_of(entry),
        heir=entry.heir if entry is not None else None,
    )
