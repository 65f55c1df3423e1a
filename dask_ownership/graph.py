"""From a Dask graph to rows.

`get`, `compute` and `persist` all arrive here. The graph is materialised, culled
to what is asked for and not known yet, ordered by `dask.order`, and each task
becomes a row. Simple tasks become plain calls; nested ones travel as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import dask
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
from dask.order import order
from dask.utils import key_split

from dask_ownership.calls import Calls, make_options, named
from dask_ownership.core.table import CANCELLED, NO_OPTIONS, Failure, Function, Options, Row
from dask_ownership.errors import NotSerializable
from dask_ownership.runtime.keys import check_key
from dask_ownership.runtime.owner import prioritised
from dask_ownership.runtime.runner import current_entry
from dask_ownership.runtime.serialize import CALL, Slot, dumps, identity, pickling, run_node

SEQUENCES: dict[type, type] = {List: list, Tuple: tuple, Set: set}


class Graph:
    """A materialised graph.

    Attributes
    ----------
    nodes : dict
        Key to `GraphNode`.
    annotations : dict
        Name of the annotation to a dict of key and value.
    """

    def __init__(self, expr: Any) -> None:
        self.annotations: dict[str, dict[Any, Any]] = {}
        raw = expr if isinstance(expr, Mapping) else expr.__dask_graph__()
        if hasattr(expr, "__dask_annotations__"):
            for name, values in expr.__dask_annotations__().items():
                self.annotations.setdefault(name, {}).update(values)
        # Futures in the graph live as long as it does; conversion keeps their keys only.
        self.held = raw
        self.nodes: dict[Any, GraphNode] = convert_legacy_graph(dict(raw))

    @property
    def central(self) -> bool:
        """Whether it holds tasks that only the central scheduler can run (P2P shuffles)."""
        shuffle = sys.modules.get("distributed.shuffle._core")
        if shuffle is None:
            return False
        return any(isinstance(node, shuffle.P2PBarrierTask) for node in self.nodes.values())

    def outside(self) -> set[Any]:
        """Keys that the graph needs and does not make."""
        nodes = self.nodes
        return {key for node in nodes.values() for key in node.dependencies if key not in nodes}


def graph_rows(
    calls: Calls,
    graph: Graph,
    keys: set[Any],
    internal_priority: Any,
    call: dict[str, Any],
) -> dict[Any, Row]:
    """Rows of the keys, each with a handle; all that they need is submitted.

    Parameters
    ----------
    calls : Calls
    graph : Graph
    keys : set
        What is asked for.
    internal_priority : dict or None
        Order of the keys; `dask.order` when None.
    call : dict
        Options of the call: ``workers``, ``allow_other_workers``, ``resources``,
        ``retries``, ``priority``. Annotations of a task win over them.
    """
    for key in keys:
        check_key(key)
    builder = _Builder(calls, graph, keys, call)
    try:
        return builder.build(internal_priority)
    finally:
        builder.let_go()


class _Builder:
    """The making of one graph's rows."""

    def __init__(self, calls: Calls, graph: Graph, keys: set[Any], call: dict[str, Any]) -> None:
        self.calls = calls
        self.owner = calls.owner
        self.graph = graph
        self.keys = keys
        self.rows: dict[Any, Row] = {}
        self.handles: list[Row] = []
        self.functions: dict[int, Function] = {}
        self.nodes_by_prefix: dict[str, Function] = {}
        self.run_node = dumps(run_node)
        self.entry = current_entry() if self.owner.executor is not None else None
        everywhere = dict(dask.get_annotations())
        self.call = {
            "workers": named(call.get("workers"))
            or named(_either(everywhere, "workers", "restrictions")),
            "allow_other_workers": call.get("allow_other_workers")
            or _either(everywhere, "allow_other_workers", "loose_restrictions"),
            "resources": call.get("resources") or everywhere.get("resources"),
            "retries": call.get("retries") or everywhere.get("retries"),
            "priority": call.get("priority") or everywhere.get("priority") or 0,
        }
        self.per_key = any(map(callable, self.call.values()))
        self.common = self._options(self.call)

    def build(self, internal_priority: Any) -> dict[Any, Row]:
        needed = self._needed()
        places = internal_priority or (
            order(needed) if len(needed) > 1 else dict.fromkeys(needed, 0)
        )
        ordered = sorted(needed, key=places.__getitem__)
        base = self.owner.next_order(len(ordered))
        for place, key in enumerate(ordered):
            self._add(key, needed[key], base + place)
        found: dict[Any, Row] = {}
        for key in self.keys:
            row = self.rows.get(key)
            if row is None:
                row = self._lost(key)
            with self.owner.lock:
                row.handles += 1
            found[key] = row
        return found

    def let_go(self) -> None:
        """Drop the handles that kept rows while the graph was being made."""
        for row in self.handles:
            self.owner.drop(row)

    def _needed(self) -> dict[Any, GraphNode]:
        """Nodes that the keys need and that are not owned already."""
        nodes = self.graph.nodes
        needed: dict[Any, GraphNode] = {}
        stack = list(self.keys)
        find = self.owner.find
        while stack:
            key = stack.pop()
            if key in needed or key in self.rows:
                continue
            known = find(key)
            if known is not None:
                self.rows[key] = known
                self.handles.append(known)
                continue
            node = nodes.get(key)
            if node is not None:
                needed[key] = node
                stack.extend(node.dependencies)
        return needed

    def _add(self, key: Any, node: GraphNode, place: int) -> None:
        check_key(key)
        if isinstance(node, Alias):
            target = self.rows.get(node.target) or self._lost(node.target)
            if key not in self.keys:
                self.rows[key] = target
                return
            slots = {target: Slot(0)}
            function = self.owner.functions.get(identity)
            payload = dumps(((slots[target],), {}))
            self._adopt(Row(key, function, payload, (target,), place, self._options_of(key)))
            return
        if isinstance(node, DataNode):
            row = self.calls.literal(key, node.value)
            self.rows[key] = row
            self.handles.append(row)
            return
        slots = {}
        outer, pickling.found = pickling.found, []
        try:
            try:
                function, args, kwargs = self._plain_call(node, slots)
            except _Nested:
                slots.clear()
                function, args, kwargs = self._whole_node(key, node, slots)
            try:
                payload = dumps((args, kwargs))
            except Exception as error:
                raise NotSerializable(
                    f"could not pickle the task {key!r} to send it to a worker: {error!r}"
                ) from error
            rows = {self.calls.row_of(future) for future in pickling.found}
        finally:
            pickling.found = outer
        priority = self._priority_of(key)
        if priority:
            place = prioritised(place, priority)
        row = Row(key, function, payload, tuple(slots), place, self._options_of(key))
        row.contains = tuple(r for r in rows if r is not None and r not in slots)
        self._adopt(row)

    def _adopt(self, row: Row) -> None:
        adopted = self.owner.submit(row)
        self.rows[row.key] = adopted
        self.handles.append(adopted)

    def _plain_call(self, node: GraphNode, slots: dict[Row, Slot]) -> tuple[Function, Any, Any]:
        """A task without nested tasks as a call of its function."""
        if type(node) is not Task:
            raise _Nested
        args = tuple([self._argument(a, slots) for a in node.args])
        kwargs = {name: self._argument(a, slots) for name, a in node.kwargs.items()}
        # One graph is one moment: a function is pickled once however many tasks call it.
        function = self.functions.get(id(node.func))
        if function is None:
            function = self.functions[id(node.func)] = self.owner.functions.get(node.func)
        if function.pickled is CALL:
            args = (node.func, *args)
        return function, args, kwargs

    def _argument(self, argument: Any, slots: dict[Row, Slot]) -> Any:
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
        """A task that holds others: it travels as it is."""
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
        row = self.rows.get(key)
        if row is None:
            row = self._lost(key)
        slot = slots.get(row)
        if slot is None:
            slot = slots[row] = Slot(len(slots))
        return slot

    def _lost(self, key: Any) -> Row:
        """A row for what nobody here owns and the graph does not make.

        It stands in no table: the key itself is free.
        """
        row = self.rows[key] = Row(key, None, None, (), 0)
        detail = (
            "lost dependencies: the graph needs this key, does not make it, and this client does "
            "not own it; was its future cancelled, or is it another client's?"
        )
        row.value = Failure("cancelled", key, detail)
        row.state = CANCELLED
        self.handles.append(row)
        return row

    # ---- options ----

    def _priority_of(self, key: Any) -> Any:
        own = self.graph.annotations.get("priority", {}).get(key)
        priority = self.call["priority"] if own is None else own
        return priority(key) if callable(priority) else priority

    def _options_of(self, key: Any) -> Options:
        annotations = self.graph.annotations
        if not annotations and not self.per_key:
            return self.common
        merged = {k: v(key) if callable(v) else v for k, v in self.call.items()}
        for name, values in annotations.items():
            value = values.get(key)
            if value is not None:
                merged[_SAME.get(name, name)] = value
        return self._options(merged)

    def _options(self, call: dict[str, Any]) -> Options:
        call = {**call, "workers": named(call["workers"])}
        if (
            self.entry is None
            and not call["workers"]
            and not call["resources"]
            and not call["retries"]
        ):
            return NO_OPTIONS
        call = {k: None if callable(v) else v for k, v in call.items()}
        return make_options(
            call["workers"], call["resources"], call["retries"], call["allow_other_workers"],
            self.entry,
        )  # fmt: skip


class _Nested(Exception):
    """The task is more than one call."""


_SAME = {"restrictions": "workers", "loose_restrictions": "allow_other_workers"}


def _either(annotations: dict[str, Any], *names: str) -> Any:
    return next((annotations[name] for name in names if annotations.get(name) is not None), None)
