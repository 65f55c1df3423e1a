"""From a Dask graph to rows.

`get`, `compute` and `persist` all arrive here. The graph is materialised, culled to the wanted keys
and the keys they need as far as this process does not know them yet, and ordered by `dask.order`;
then each task becomes a row. Simple tasks become plain calls; nested tasks travel as they are.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import dask
import distributed
from dask._expr import Expr, HLGExpr
from dask._task_spec import (
    Alias,
    DataNode,
    Dict,
    GraphNode,
    List,
    Set,
    Task,
    TaskRef,
    Tuple,
    convert_legacy_graph,
)
from dask.core import reverse_dict
from dask.highlevelgraph import MaterializedLayer
from dask.order import order
from dask.utils import key_split, parse_timedelta
from distributed.actor import Actor

from dask_ownership.core.owner.rows.options import NO_OPTIONS, Options
from dask_ownership.core.owner.rows.row import Function, Row
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.names import KEY
from dask_ownership.core.protocol.order import ordered
from dask_ownership.core.protocol.states import CANCELLED
from dask_ownership.errors import NotSerializable
from dask_ownership.futures.future import Future
from dask_ownership.futures.keys import check_key
from dask_ownership.futures.options import SAME, call_of, make_options, merged, of_key, varies
from dask_ownership.futures.replicate import wanted_copies
from dask_ownership.futures.submit import MAYBE_LARGE, Calls, submit_child, warn_if_large
from dask_ownership.runtime.functions import ManyCalls
from dask_ownership.runtime.serialize import (
    CALL,
    Slot,
    dumps,
    dumps_names,
    identity,
    literal,
    pickling,
    run_node,
)
from dask_ownership.runtime.task import current_entry

SEQUENCES: dict[type, type] = {List: list, Tuple: tuple, Set: set}
"""Dask's nodes for sequences, with the types of the sequences."""

ORDINARY = 8192
"""Bytes of the payload of a task without data: many such tasks make a large graph, of which nothing
can be scattered."""

_UUID = "[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}"
RANDOM = re.compile(f"-{_UUID}$")
"""Keys with a random UUID at the end, as Dask gives to computed and delayed objects.

A task that runs again would not make the same UUID, so inside a task such keys are replaced by keys
like those of impure calls (`Calls.child_key`). One hash token in 64 looks like a UUID, and is
replaced needlessly.
"""
RANDOM_PARTS = re.compile(_UUID.encode())
"""Random UUIDs in a pickled call: tasks that were fused into one task keep their keys inside."""


class Graph:
    """A materialised graph.

    Attributes
    ----------
    annotations : dict
        Name of the annotation to a dict of key and value.
    expr : object
        The graph as the caller gave it.
    held : mapping
        The graph before its conversion, with the futures in it.
    nodes : dict
        Key to `GraphNode`.
    """

    def __init__(self, expr: Any) -> None:
        self.annotations: dict[str, dict[Any, Any]] = {}
        raw = expr if isinstance(expr, Mapping) else expr.__dask_graph__()
        if hasattr(expr, "__dask_annotations__"):
            for name, values in expr.__dask_annotations__().items():
                self.annotations.setdefault(name, {}).update(values)
        # Futures in the graph have to live as long as this object, and the conversion keeps only
        # their keys.
        self.expr = expr
        self.held = raw
        self._futures: dict[Any, Any] | None = None
        self.nodes: dict[Any, GraphNode] = convert_legacy_graph(dict(raw))

    def central(self, keys: Iterable[Any]) -> set[Any]:
        """Return the keys that need a P2P shuffle, which only the central scheduler can run."""
        # A graph with a P2P shuffle has imported the module already; no other graph pays for the
        # import.
        shuffle = sys.modules.get("distributed.shuffle._core")
        if shuffle is None:
            return set()
        nodes = self.nodes
        barriers = [k for k, node in nodes.items() if isinstance(node, shuffle.P2PBarrierTask)]
        if not barriers:
            return set()
        dependents = reverse_dict({key: node.dependencies for key, node in nodes.items()})
        # All keys that depend on a barrier of a shuffle need the shuffle.
        need: set[Any] = set()
        while barriers:
            key = barriers.pop()
            if key not in need:
                need.add(key)
                barriers.extend(dependents[key])
        return need & set(keys)

    def futures(self) -> dict[Any, Any]:
        """Return the futures and actors of any client in the graph, by their keys."""
        if self._futures is None:
            self._futures = {}
            for value in self.held.values():
                _collect(value, self._futures)
            if isinstance(self.expr, Expr):
                # Optimising leaves only the keys of futures in a graph of layers; the layers have
                # the futures.
                for part in self.expr.walk():
                    if isinstance(part, HLGExpr):
                        for layer in getattr(part.hlg, "layers", {}).values():
                            if isinstance(layer, MaterializedLayer):
                                for value in layer.mapping.values():
                                    _collect(value, self._futures)
        return self._futures


def _collect(value: Any, found: dict[Any, Any]) -> None:
    """Add the futures and actors inside a value of a graph to ``found``."""
    if isinstance(value, distributed.Future | Actor):
        found[value.key] = value
    elif isinstance(value, Task):
        for argument in (*value.args, *value.kwargs.values()):
            _collect(argument, found)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            _collect(item, found)
    elif type(value) is dict:
        for item in value.values():
            _collect(item, found)


def graph_futures(
    client: Any,
    graph: Graph,
    keys: set[Any],
    internal_priority: Any,
    call: dict[str, Any],
    fifo_timeout: Any = 0,
) -> dict[Any, Future]:
    """Submit all that the keys need, and return the futures of the keys.

    Parameters
    ----------
    client : Client
    graph : Graph
    keys : set
        The wanted keys.
    internal_priority : dict or None
        Order of the keys; `dask.order` when None.
    call : dict
        Options of the call: ``workers``, ``allow_other_workers``, ``resources``, ``retries``,
        ``priority``. Annotations of a task win over the call.
    fifo_timeout : float, str or timedelta
        Seconds, or a text such as ``"60s"``. A graph that comes within this time after the last
        graph runs beside the last graph and not behind it.
    """
    for key in keys:
        check_key(key)
    builder = _Builder(client, graph, keys, call)
    try:
        found = builder.build(internal_priority, fifo_timeout)
        builder.keep_copies()
        if builder.nbytes > MAYBE_LARGE:
            warn_if_large(builder.nbytes)
        return found
    finally:
        builder.let_go()


persisting: ContextVar[bool] = ContextVar("persisting", default=False)
"""Whether the wanted values of a graph stay at the workers, as `persist` has it."""


class TaskSettings:
    """Options of each task of a graph, from the call and the annotations.

    Parameters
    ----------
    call : dict
        Options of the call. Annotations of a task win over the call.
    annotations : dict
        Name of the annotation to a dict of key and value.
    entry : object or None
        The entry of the task that submits the graph.
    """

    def __init__(
        self, call: dict[str, Any], annotations: dict[str, dict[Any, Any]], entry: Any
    ) -> None:
        self._call = merged(call, dask.get_annotations())
        self._annotations = annotations
        self._entry = entry
        self._per_key = varies(self._call)
        self._common = NO_OPTIONS
        if not self._per_key:
            self._common = make_options(call_of(of_key(self._call, None)), entry)

    def of(self, key: Any) -> tuple[Any, Options]:
        """Return priority and options of a task.

        Raises
        ------
        TypeError, ValueError
            When an option has a wrong value.
        """
        # The usual case: all tasks of the graph share one `Options`.
        if not self._annotations and not self._per_key:
            return self._call.get("priority") or 0, self._common
        settings = dict(self._call)
        for name, values in self._annotations.items():
            value = values.get(key)
            if value is not None:
                settings[SAME.get(name, name)] = value
        settings = of_key(settings, key)
        return settings.get("priority") or 0, make_options(call_of(settings), self._entry)


class _Builder:
    """Makes the rows of one graph.

    Parameters
    ----------
    client : Client
    graph : Graph
    keys : set
        The wanted keys.
    call : dict
        Options of the call.

    Attributes
    ----------
    calls : Calls
        Makes rows of single calls for the client.
    owner : Owner
        The owner of the client.
    graph, keys
        The parameters.
    rows : dict
        Key to its row, for all rows made or found so far.
    kept : list of Row
        One item for each local reference that this object has, until `let_go`.
    nbytes : int
        Bytes of all payloads and literals with data in them: of those above `ORDINARY`.
    functions : dict of int to ManyCalls
        Functions of the graph's tasks by their ``id``.
    nodes_by_prefix : dict of str to Function
        Records of `run_node` by the prefix of keys.
    run_node : bytes
        The pickled function that runs a nested task.
    entry : Entry or None
        The task that submits the graph.
    depth : int
        Nesting of the graph's tasks.
    settings : TaskSettings
    persists : bool
        Whether the wanted values stay at workers.
    """

    def __init__(self, client: Any, graph: Graph, keys: set[Any], call: dict[str, Any]) -> None:
        self.calls: Calls = client.calls
        self.owner = self.calls.owner
        self.graph = graph
        self.keys = keys
        self.rows: dict[Any, Row] = {}
        self.kept: list[Row] = []
        self.nbytes = 0
        self.functions: dict[int, ManyCalls] = {}
        # One record of `run_node` for each prefix, because a record has one name and one running
        # time.
        self.nodes_by_prefix: dict[str, Function] = {}
        self.run_node = dumps(run_node)
        self.entry = current_entry() if self.owner.executor is not None else None
        self.depth = self.entry.depth + 1 if self.entry is not None else 0
        self.settings = TaskSettings(call, graph.annotations, self.entry)
        self.persists = persisting.get()

    def build(self, internal_priority: Any, fifo_timeout: Any) -> dict[Any, Future]:
        """Submit all needed tasks in order, and return the futures of the wanted keys."""
        needed = self._needed()
        places = internal_priority or (
            order(needed) if len(needed) > 1 else dict.fromkeys(needed, 0)
        )
        in_order = sorted(needed, key=places.__getitem__)
        base = self.owner.task_order.graph(len(in_order), parse_timedelta(fifo_timeout))
        for place, key in enumerate(in_order):
            self._add(key, needed[key], base + place)
        found: dict[Any, Future] = {}
        for key in self.keys:
            row = self.rows.get(key)
            if row is None:
                row = self._outside(key)
            # The local reference of the future; `let_go` drops the one that the row was made with.
            self.owner.core.hold(row)
            found[key] = Future(self.calls.client, row)
        return found

    def keep_copies(self) -> None:
        """Have several copies kept of values that are annotated with ``replicas``."""
        annotated = self.graph.annotations.get("replicas", {})
        everywhere = dask.get_annotations().get("replicas")
        if not annotated and everywhere is None:
            return
        want = self.owner.core.keep_copies
        # `dask.annotate` around the call counts for the wanted keys only; annotations of layers
        # count for any task.
        for key, row in self.rows.items():
            number = annotated.get(key, everywhere if key in self.keys else None)
            if number is not None:
                self.owner.call(want, row, wanted_copies(self.owner, number))

    def let_go(self) -> None:
        """Drop the local references that kept rows while the graph was being made."""
        self.owner.drop_all(self.kept)

    def _needed(self) -> dict[Any, GraphNode]:
        """Return the nodes that the wanted keys need and that have no row here yet."""
        nodes = self.graph.nodes
        needed: dict[Any, GraphNode] = {}
        stack = list(self.keys)
        find = self.owner.find
        while stack:
            key = stack.pop()
            if key in needed or key in self.rows:
                continue
            # A row that is known here keeps its own inputs: the graph is not followed beyond it.
            known = find(key)
            if known is not None:
                self.rows[key] = known
                self.kept.append(known)
                continue
            node = nodes.get(key)
            if node is not None:
                needed[key] = node
                stack.extend(node.dependencies)
            elif (row := self.borrowed.get(key)) is not None:
                self.owner.core.hold(row)
                self.rows[key] = row
                self.kept.append(row)
        return needed

    @cached_property
    def borrowed(self) -> dict[Any, Row]:
        """Borrowed rows by their owners' keys: Dask lowers futures in a collection to keys."""
        return {row.origin[KEY]: row for row in self.owner.core.rows() if row.borrowed}

    def _add(self, key: Any, node: GraphNode, place: int) -> None:
        """Make the row of one node, unless the node is only another name of a row."""
        key = check_key(key)
        if isinstance(node, Alias):
            target = self.rows.get(node.target) or self._outside(node.target)
            if key not in self.keys:
                self.rows[key] = target
                return
            slots = {target: Slot(0)}
            # A persisted value stays at a worker, also as another name of a value that does not.
            stays = self.persists and key in self.keys
            function = self.owner.functions.get(literal if stays else identity)
            payload = dumps(((slots[target],), {}))
            name = self._name(key, function, payload, (target,))
            priority, options = self._wishes(key)
            place = ordered(place, priority, self.depth)
            self._adopt(Row(name, function, payload, (target,), place, options), key)
            return
        stays = self.persists and key in self.keys
        if isinstance(node, DataNode) and not stays:
            row = self.calls.literal(key, node.value)
            self.nbytes += row.nbytes
            self.rows[key] = row
            self.kept.append(row)
            return
        slots = {}
        # Pickling collects the futures inside the call. A call that pickles in the middle of
        # another pickling must not add to the list of the outer one.
        outer = pickling.found
        try:
            pickling.found = []
            if isinstance(node, DataNode):
                function, args = self.owner.functions.get(literal), (node.value,)
                kwargs: Any = {}
            else:
                function, args, kwargs = self._call_of(key, node, slots)
            try:
                payload = dumps((args, kwargs))
            except Exception as error:
                raise NotSerializable(
                    f"could not pickle the task {key!r} to serialize it for a worker: {error!r}"
                ) from error
            if len(payload) > ORDINARY:
                self.nbytes += len(payload)
            rows = {self.calls.row_of(future, True) for future in pickling.found}
        finally:
            pickling.found = outer
        priority, options = self._wishes(key)
        place = ordered(place, priority, self.depth)
        dependencies = tuple(slots)
        contains = tuple(r for r in rows if r is not None and r not in slots)
        # The key must not depend on who owns the futures inside: that changes when the task runs
        # again.
        call = dumps_names((args, kwargs)) if contains and self.entry is not None else payload
        name = self._name(key, function, call, dependencies)
        row = Row(name, function, payload, dependencies, place, options)
        row.contains = contains
        self._adopt(row, key)

    def _name(
        self, key: Any, function: Function, call: bytes, dependencies: tuple[Row, ...]
    ) -> Any:
        """Return the key of a row: the key in the graph, unless a new run would change that key."""
        if self.entry is not None and type(key) is str and RANDOM.search(key):
            call = RANDOM_PARTS.sub(b"", call)
            return self.calls.child_key(self.entry, function, call, dependencies)
        return key

    def _adopt(self, row: Row, key: Any) -> None:
        """Submit a row, and remember the row under its key in the graph."""
        entry = self.entry
        owner = self.owner
        adopted = owner.submit(row) if entry is None else submit_child(owner, row, entry)
        self.rows[key] = adopted
        self.kept.append(adopted)

    def _call_of(
        self, key: Any, node: GraphNode, slots: dict[Row, Slot]
    ) -> tuple[Function, Any, Any]:
        """Return function, arguments and keyword arguments of the call that runs a node."""
        try:
            return self._plain_call(node, slots)
        except _Nested:
            slots.clear()
            return self._whole_node(key, node, slots)

    def _plain_call(self, node: GraphNode, slots: dict[Row, Slot]) -> tuple[Function, Any, Any]:
        """Return a task without nested tasks as a call of its function."""
        if type(node) is not Task:
            raise _Nested
        args = tuple([self._argument(a, slots) for a in node.args])
        kwargs = {name: self._argument(a, slots) for name, a in node.kwargs.items()}
        # All tasks of one graph are made at one moment: a function is pickled once for all of its
        # tasks.
        function = self.functions.get(id(node.func))
        if function is None:
            function = self.functions[id(node.func)] = ManyCalls(self.owner.functions, node.func)
        record = function.record_for(args, kwargs)
        # Such a function carries state: it travels with the arguments of each call.
        if record.pickled is CALL:
            args = (node.func, *args)
        return record, args, kwargs

    def _argument(self, argument: Any, slots: dict[Row, Slot]) -> Any:
        """Return an argument with slots in place of tasks; raise `_Nested` for a nested task."""
        kind = type(argument)
        if isinstance(argument, TaskRef):
            return self._slot(argument.key, slots)
        if kind is Alias:
            return self._slot(argument.target, slots)
        if kind is DataNode:
            return argument.value
        if kind in SEQUENCES:
            return SEQUENCES[kind](self._argument(a, slots) for a in argument.args)
        if kind is Dict:
            flat = [self._argument(a, slots) for a in argument.args]
            return dict(zip(flat[::2], flat[1::2], strict=True))
        if isinstance(argument, GraphNode):
            raise _Nested
        return argument

    def _whole_node(
        self, key: Any, node: GraphNode, slots: dict[Row, Slot]
    ) -> tuple[Function, Any, Any]:
        """Return a task with nested tasks as a call of `run_node`, which does as Dask does."""
        values = {name: self._slot(name, slots) for name in node.dependencies}
        prefix = key_split(key)
        function = self.nodes_by_prefix.get(prefix)
        if function is None:
            functions = self.owner.functions
            if node.is_coro:
                raise NotImplementedError(f"{key!r} nests a coroutine function in another task")
            function = functions.by_value(self.run_node, prefix, kind=prefix)
            self.nodes_by_prefix[prefix] = function
        return function, (node, values), {}

    def _slot(self, key: Any, slots: dict[Row, Slot]) -> Slot:
        """Return the slot of a key among the dependencies of a call, if need be a new slot."""
        row = self.rows.get(key)
        if row is None:
            row = self._outside(key)
        slot = slots.get(row)
        if slot is None:
            slot = slots[row] = Slot(len(slots))
        return slot

    def _outside(self, key: Any) -> Row:
        """Return a row for a key that the graph does not make: the row of a future."""
        client = self.calls.client
        future = self.graph.futures().get(key)
        if future is None and key in client.futures:
            future = distributed.Future(key, client)
        if future is None:
            return self._lost(key)
        if isinstance(future, Future) and future._owner is self.owner:
            row = future._row
            self.owner.core.hold(row)
        else:
            row = client.imports.row(future)
        self.rows[key] = row
        self.kept.append(row)
        return row

    def _lost(self, key: Any) -> Row:
        """Return a row without a value for a key that neither the graph nor a future has.

        The row stands in no table: the key itself is free.
        """
        detail = (
            "lost dependencies: the graph needs this key, does not make it, and this client does "
            "not own it; was its future cancelled, or is it another client's?"
        )
        failure = Failure("cancelled", key, detail)
        row = self.rows[key] = Row.without_value(key, CANCELLED, failure)
        self.kept.append(row)
        return row

    def _wishes(self, key: Any) -> tuple[Any, Options]:
        """Return priority and options of a task; the value of a persisted key stays at a worker."""
        priority, options = self.settings.of(key)
        if self.persists and key in self.keys:
            options = options._replace(stays=True)
        return priority, options


class _Nested(Exception):
    """Raised for a task that is more than one call."""
