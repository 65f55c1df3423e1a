"""The bridge: values between owned tasks and tasks of the central scheduler.

A small task on the side that needs a value reads the value where it runs, from the workers with a
copy: neither the client nor the scheduler carries the value.

*Promotion*: a central task reads an owned value, under a name that no other process uses. The
process that promoted the object keeps it until the scheduler has forgotten the name. So the
scheduler can compute the name again, as any of its keys.

*Imports*: rows that read values of the scheduler. Such a row keeps the key at the scheduler as long
as the row lives, and runs when the key has a value.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterable
from hashlib import blake2b
from itertools import count
from typing import Any, ClassVar
from uuid import uuid4
from weakref import WeakValueDictionary

from dask._expr import LLGExpr
from dask._task_spec import Alias, GraphNode, Task
from distributed import Client as StockClient
from distributed.actor import Actor, BaseActorFuture

from dask_ownership.core.owner.rows.options import NO_OPTIONS, Options
from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.protocol.messages import Key
from dask_ownership.core.protocol.states import ERROR, STORED, WAITING
from dask_ownership.errors import ClosedOwner, FutureCancelledError, NotHere
from dask_ownership.futures.future import Future, TravelledFuture, owned_clients, task_clients
from dask_ownership.futures.graph import Graph
from dask_ownership.futures.options import PLAIN_CALL, make_options, parent_of
from dask_ownership.futures.structures import exchanged
from dask_ownership.futures.submit import submit_child
from dask_ownership.interop.tasks import bring_central, bring_owned
from dask_ownership.runtime.comm.scheduler_ops import PROMOTED, WHERE
from dask_ownership.runtime.dask.client import promote_in_clients, scheduler_id
from dask_ownership.runtime.owner.owner import LocalRef
from dask_ownership.runtime.serialize import dumps, dumps_error
from dask_ownership.runtime.task import current_entry

# ---- owned values in central tasks ----

_numbers = count()
_twins: WeakValueDictionary[tuple[str, Row], Any] = WeakValueDictionary()
"""Twins: futures of the scheduler that stand for owned futures, by the client and the row."""


class CentralGraph(LLGExpr):
    """A graph for the scheduler, with annotations by task."""

    _parameters: ClassVar = ["dsk", "annotations"]

    def __dask_annotations__(self) -> dict[str, dict[Key, Any]]:
        """Return annotations by name, each from key to value, as dask collects those of a graph."""
        annotations: dict[str, dict[Key, Any]] = self.operand("annotations")
        return annotations


def central_graph(nodes: dict[Key, GraphNode], annotations: dict[str, Any]) -> CentralGraph:
    """Make a graph for the scheduler of these nodes; its token is random, as in ``submit``."""
    return CentralGraph(nodes, annotations, _determ_token=uuid4().hex)


def promote(client: Any, futures: Iterable[Any]) -> dict[Any, Any]:
    """Promote owned futures: have central tasks read their values.

    Parameters
    ----------
    client : distributed.Client
        The client of the central futures.
    futures : iterable of Future

    Returns
    -------
    dict
        Owned future to its twin, a future of the central scheduler.

    Raises
    ------
    NotHere
        When an owner is of another cluster, or this process has no client of its cluster.
    ClosedOwner
    FutureCancelledError
        For a future that was released.
    """
    found: dict[Any, Any] = {}
    new: dict[str, Any] = {}
    nodes: dict[Key, GraphNode] = {}
    places: dict[Key, list[str]] = {}
    for future in dict.fromkeys(futures):
        _check_promotable(client, future)
        row, owner = future._row, future._owner
        # One promotion serves all tasks that use the future, unless it failed.
        twin = _twins.get((client.id, row))
        if twin is not None and twin.status in ("pending", "finished"):
            found[future] = twin
            continue
        name = f"{PROMOTED}{owner.incarnation}-{next(_numbers):x}"
        if owner.incarnation in owned_clients:
            owned_clients[owner.incarnation].central_calls += 1
        owner.promoted[name] = LocalRef(owner, row)  # until `PROMOTION_OVER` names it
        owner.export(row)
        new[name] = future
        nodes[name] = Task(name, bring_owned, name, owner.core.origin_of(row))
        if row.state == STORED:
            places[name] = _addresses(row)
    if not new:
        return found
    # Near the values when that is possible. Any other worker can fetch the values, too.
    annotations = {"workers": places, "allow_other_workers": dict.fromkeys(places, True)}
    # In an empty context: annotations of the user are not for these tasks.
    made = contextvars.Context().run(
        StockClient._graph_to_futures,
        client,
        central_graph(nodes, annotations),
        list(nodes),
        {"collections": [{"type": "Future"}]},
        internal_priority={name: place for place, name in enumerate(nodes)},
    )
    for name, future in new.items():
        found[future] = _twins[client.id, future._row] = made[name]
    return found


def _check_promotable(client: Any, future: Any) -> None:
    """Raise as `promote` does when an owned future cannot be an input for this client."""
    if isinstance(future, TravelledFuture):
        raise future._refuse()
    owner = future._owner
    if owner.closed:
        raise ClosedOwner(
            f"{future.key!r} cannot be the input of a task of {client.id}: {owner.name}, which "
            "owned it, is closed"
        )
    if future._cleared:
        raise FutureCancelledError(future.key, "released", "the future was released")
    home = owned_clients.get(owner.incarnation)
    ids = {scheduler_id(each) for each in (client, home) if each is not None} - {None}
    if len(ids) > 1:
        raise NotHere(
            f"the future {future.key!r} is owned by {owner.name} and cannot be the input of a task "
            f"of {client.id}, which is of another cluster: pass its value (future.result())"
        )


def _addresses(row: Row) -> list[str]:
    """Return addresses of the locations of a stored value."""
    if isinstance(row, Borrowed):
        return list(row.addresses)
    return [view.address for view in row.locations]


def owned_arguments(client: Any, args: Any, kwargs: Any) -> Any:
    """Promote the owned futures in the arguments of a call for the scheduler.

    Returns
    -------
    tuple, dict, tuple
        Arguments with twins in place of owned futures, and the twins, which have to live as long
        as the futures of the call.
    """
    found: dict[Any, Any] = {}

    def find(value: Any) -> Any:
        if isinstance(value, Future | TravelledFuture):
            found[value] = None
        return value

    # Without an owner in this process no argument can be an owned future: nothing is walked.
    if owned_clients or task_clients:
        exchanged((args, kwargs), find)
    if not found:
        return args, kwargs, ()
    found = promote(client, found)
    args, kwargs = exchanged((args, kwargs), lambda value: found.get(value, value))
    return args, kwargs, tuple(found.values())


def owned_inputs(client: Any, expr: Any, keys: Any) -> Any:
    """Promote the owned futures in a graph for the scheduler.

    Returns
    -------
    Expr, tuple
        The graph with names of twins in place of owned keys, and the twins.
    """
    # A client of this package has promoted them before, and empty tables have no futures.
    here = [*owned_clients.values(), *task_clients.values()]
    if hasattr(client, "imports") or not any(each.owner.core.has_rows for each in here):
        return expr, ()
    if isinstance(expr, CentralGraph):
        return expr, ()
    graph = Graph(expr)
    futures = graph.futures()
    if not any(isinstance(future, Future | TravelledFuture) for future in futures.values()):
        return expr, ()
    return promoted_graph(client, graph, keys, futures.get)


def promoted_graph(
    client: Any, graph: Graph, keys: Iterable[Key], future_of: Callable[[Key], Any]
) -> Any:
    """Cut a graph down to the nodes that keys need, and promote the owned futures among them.

    Parameters
    ----------
    client : distributed.Client
    graph : Graph
    keys : iterable
    future_of : callable
        Gives the owned future of a key, or None. The inputs of an owned task are left out.

    Returns
    -------
    CentralGraph, tuple
        The graph for the scheduler, and the twins, which have to live as long as its futures.
    """
    owned: dict[Key, Any] = {}
    nodes: dict[Key, GraphNode] = {}
    wanted = set(keys)
    stack = list(wanted)
    while stack:
        key = stack.pop()
        if key in nodes or key in owned:
            continue
        node = graph.nodes.get(key)
        target = key
        while isinstance(node, Alias):  # the name of a persisted value in one collection or another
            target = node.target
            node = graph.nodes.get(target)
        future = future_of(target)
        if isinstance(future, Future | TravelledFuture):
            owned[key] = future
        elif key in graph.nodes:
            nodes[key] = graph.nodes[key]
            stack.extend(nodes[key].dependencies)
    twins = promote(client, owned.values())
    names = {key: twins[future].key for key, future in owned.items()}
    for key, node in nodes.items():
        if not names.keys().isdisjoint(node.dependencies):
            nodes[key] = node.substitute(names)
    for key in names.keys() & wanted:
        nodes[key] = Alias(key, names[key])
    return central_graph(nodes, graph.annotations), tuple(twins.values())


def install() -> None:
    """Have all stock clients of this process take owned futures."""
    promote_in_clients(owned_arguments, owned_inputs)


# ---- central values in owned tasks ----


class Kept:
    """Keeps a key at the scheduler for as long as this object lives."""

    __slots__ = ("client", "generation", "key")

    def __init__(self, client: Any, key: Key) -> None:
        StockClient._inc_ref(client, key)
        self.client = client
        self.key = key
        self.generation = client.generation

    def __del__(self) -> None:
        client = self.client
        # A client whose cluster was restarted, or that is closed, has dropped all keys before.
        if client.generation == self.generation and client.status != "closed":
            try:
                client.loop.add_callback(client._dec_ref, self.key)
            except (RuntimeError, TypeError):
                pass  # the loop is closed, or the interpreter is being taken down


class Import(Row):
    """A row for a value of the scheduler, for an actor, or for the result of an actor's method.

    Attributes
    ----------
    kept : object
        Keeps the key or the actor at the scheduler as long as this row lives; None for a result.
    """

    __slots__ = ("kept",)

    def __init__(self, key: Key, order: int, options: Options, kept: Any) -> None:
        super().__init__(key, None, None, (), order, options)
        self.kept = kept


class Imports:
    """Makes owned futures of central ones, for one client.

    Parameters
    ----------
    client : Client

    Attributes
    ----------
    client : Client
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self._ended: list[tuple[Import, Key]] = []
        self._asking: asyncio.Task[None] | None = None

    def future(self, value: Any) -> Future:
        """Return an owned future for a future of the scheduler, an actor, or a result of an actor.

        A future of another client in this process is borrowed.

        Raises
        ------
        NotHere
            When the future is of another cluster.
        FutureCancelledError
            When the future was released or cancelled.
        """
        return Future(self.client, self.row(value))

    def row(self, value: Any) -> Row:
        """Return the row of an argument of `future`, with one local reference more."""
        if isinstance(value, Future):
            return self._borrowed(value)
        if isinstance(value, BaseActorFuture):
            return self._row_of_result(value)
        if isinstance(value, Actor):
            return self._row_of_actor(value)
        return self._row_of_key(value)

    def _borrowed(self, future: Future) -> Row:
        """Borrow an object of another owner in this process, as if its future came in a message."""
        _check_promotable(self.client, future)
        owner = self.client.owner
        future._owner.export(future._row)
        row = owner.arrive(future._owner.core.origin_of(future._row))
        # The future keeps the object until the object's owner counts this client as a borrower.
        kept = [future]
        owner.call(owner.core.when_acknowledged, [row], kept.clear)
        return row

    def _row_of_key(self, future: Any) -> Row:
        """Return the row of a central future, which runs when its key has a value."""
        client = future.client
        if client is None:  # the future was unpickled where no client was current
            client = self.client
            future.bind_client(client)
            client._send_to_scheduler({"op": "client-desires-keys", "keys": [future.key]})
        if scheduler_id(client) != scheduler_id(self.client):
            raise NotHere(
                f"the future {future.key!r} is computed by the central scheduler of another "
                f"cluster ({client.id}) and cannot be the input of a task of {self.client.id}: "
                "pass its value (future.result())"
            )
        if future._cleared or future.status == "cancelled":
            raise FutureCancelledError(future.key, "released", "or cancelled before it was used")
        row, new = self._adopt("central", future.key, Kept(client, future.key))
        if new:
            client.loop.add_callback(self._watch, client, row, future._state)
        return row

    async def _watch(self, client: Any, row: Import, state: Any) -> None:
        """Wait for a key of the scheduler, on the loop of the client of its future."""
        while state.status in ("pending", "lost") and row.state == WAITING:
            await state.wait()
        self.client.loop.add_callback(self._central_ended, row, state)

    def _central_ended(self, row: Import, state: Any) -> None:
        """Have a row run, fail or be cancelled, as the state of its key says. Loop thread."""
        core = self.client.owner.core
        if row.state != WAITING:
            return
        if state.status == "finished":
            self._ended.append((row, state.key))
            if self._asking is None:
                self._asking = asyncio.ensure_future(self._begin_all())
        elif state.status == "error":
            self._failed(row, state.exception.with_traceback(state.traceback))
        else:
            detail = f"the central scheduler's future of {state.key!r} was cancelled"
            self.client.owner.call(core.cancel, [row], detail)

    async def _begin_all(self) -> None:
        """Have rows run near the values that they read, with one question for many of them."""
        try:
            while self._ended:
                ended, self._ended = self._ended, []
                try:
                    ask = getattr(self.client.scheduler, WHERE)
                    owner = self.client.owner
                    answers = await ask(
                        keys=[key for _, key in ended],
                        asker=owner.incarnation,
                        token=owner.token,
                    )
                    places = [tuple(answer["who_has"]) for answer in answers]
                except OSError:
                    places = [()] * len(ended)  # the tasks run anywhere, and ask again
                for (row, key), addresses in zip(ended, places, strict=True):
                    if addresses:
                        row.options = row.options._replace(workers=addresses, loose=True)
                    self._begin(row, bring_central, key)
        finally:
            self._asking = None

    def _row_of_actor(self, actor: Actor) -> Row:
        """Return the row whose value is a handle on an actor."""
        row, new = self._adopt("actor", actor.key, actor)
        if new:
            self._begin(row, bring_central, actor.key)
        return row

    def _row_of_result(self, result: BaseActorFuture[Any]) -> Row:
        """Return the row of a result of an actor, which this process awaits and sends on."""
        row, new = self._adopt("actor-result", uuid4().hex, None)
        assert new

        async def watch() -> None:
            try:
                value = await result
            except Exception as error:
                self._failed(row, error)
            else:
                self._begin(row, given, value)

        getattr(result, "_io_loop", self.client.loop).add_callback(watch)
        return row

    def _adopt(self, what: str, key: Key, kept: Any) -> tuple[Any, bool]:
        """Return the row that imports a key, and whether the row is new.

        ``what`` is the kind of the import, which is a part of the row's name.
        """
        owner = self.client.owner
        name = f"{what}-{blake2b(repr(key).encode(), digest_size=16).hexdigest()}"
        entry = current_entry() if owner.executor is not None else None
        known = owner.find(name, parent_of(entry))
        if known is not None:
            if known.state < ERROR:
                return known, False
            # An import that failed is made anew: its key may have been retried at the scheduler.
            owner.drop(known)
            name = f"{name}-{uuid4().hex}"
        options = NO_OPTIONS if entry is None else make_options(PLAIN_CALL, entry)
        row = Import(name, owner.task_order.one(), options, kept)
        if entry is None:
            adopted = owner.expect(row)
        else:
            adopted = submit_child(owner, row, entry, owner.expect)
        if adopted is row:
            self.client.central_calls += 1
        return adopted, adopted is row

    def _begin(self, row: Import, function: Any, *args: Any) -> None:
        """Have a row call a function with arguments, now that its value is there. Any thread."""
        owner = self.client.owner
        try:
            row.payload = dumps((args, {}))
        except Exception as error:
            self._failed(row, error)
            return
        row.function = owner.functions.get(function)
        owner.begin(row)

    def _failed(self, row: Import, error: BaseException) -> None:
        """End a row with an error of the central side."""
        owner = self.client.owner
        # Raised and caught, because the pickle of an error is made where the error is handled.
        try:
            raise error
        except BaseException as raised:
            pickled = dumps_error(raised, row.key, "the central plane")
        finally:
            del error
        owner.call(owner.core.settle, row, pickled)


def given(value: Any) -> Any:
    """Return the value: the function of a row for a value that an actor returned."""
    return value
