"""What an upstream test looks at, read from its source.

``none``: the public interface only; ``wdata``: besides that the ``data`` of workers; ``stask``:
the scheduler's tables of tasks; ``sadm``: what else a scheduler has; ``wint``: what is inside
workers; ``nc``: it has no client. A test that looks at several belongs to the first of ``stask``,
``wint``, ``sadm``, ``wdata``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

CLASSES = ("none", "wdata", "stask", "sadm", "wint", "nc")

SCHEDULER_PUBLIC = {"address", "address_safe", "close", "id", "ip", "loop", "port", "status"}
SCHEDULER_TASKS = {
    "aliases", "client_comms", "client_desires_keys", "client_releases_keys", "clients",
    "computations", "events", "extensions", "generation", "get_nbytes", "get_task_prefix_states",
    "get_task_status", "get_who_has", "get_has_what", "idle", "idle_task_count", "processing",
    "queued", "reevaluate_occupancy", "request_acquire_replicas", "request_remove_replicas",
    "rprocessing", "saturated", "spans", "story", "task_groups", "task_prefixes", "tasks",
    "total_occupancy", "transition", "transition_counter", "transition_log", "transitions",
    "unknown_durations", "unrunnable", "update_data", "update_graph", "validate_state",
    "wants_what", "who_has", "who_wants", "has_what", "nbytes",
}  # fmt: skip
WORKER_PUBLIC = {
    "address", "close", "finished", "host", "id", "ip", "kill", "local_directory", "loop", "name",
    "nthreads", "pid", "port", "resources", "set_resources", "start_time", "status",
    "worker_address", "worker_dir",
}  # fmt: skip

SCHEDULER_HELPERS = {"validate_state", "wait_for_state", "assert_story"}
"""Helpers of `distributed.utils_test` that look at tasks of what they are given."""

WORKER_HELPERS = {
    "BarrierGetData", "BlockedExecute", "BlockedGatherDep", "BlockedGetData", "BlockedInstantiate",
    "BrokenComm", "freeze_batched_send", "freeze_data_fetching", "wait_for_stimulus",
}  # fmt: skip

CLUSTERS = {"gen_cluster", "gen_tls_cluster"}
"""Decorators that pass a client, a scheduler and workers to a test."""

CLIENTS = {"Client", "c", "c1", "c2", "client", "get_client", "worker_client", "get_executor"}


def classify(path: Path) -> dict[str, str]:
    """The class of each test of a file, by its name: ``test_x`` or ``TestY::test_x``."""
    tree = ast.parse(path.read_text())
    helpers = {node.name: node for node in tree.body if isinstance(node, FUNCTIONS)}
    return {name: _class_of(function, helpers) for name, function in _tests(tree.body)}


def _tests(body: list[ast.stmt], within: str = "") -> Iterator[tuple[str, Function]]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _tests(node.body, f"{within}{node.name}::")
        elif isinstance(node, FUNCTIONS):
            if node.name.startswith("test"):
                yield within + node.name, node
        elif isinstance(node, ast.If):
            yield from _tests(node.body + node.orelse, within)


def _class_of(function: Function, helpers: dict[str, Function]) -> str:
    look = _Look(function, helpers)
    look.visit(function)
    for kind in ("stask", "wint", "sadm", "wdata"):
        if kind in look.seen:
            return kind
    return "none" if look.client else "nc"


class _Look(ast.NodeVisitor):
    """Collects what a test touches."""

    def __init__(self, function: Function, helpers: dict[str, Function]) -> None:
        self.helpers = helpers
        self.seen: set[str] = set()
        self.client = False
        self.schedulers = {"dask_scheduler", "scheduler"}
        self.workers = {"dask_worker"}
        self.clusters: set[str] = set()
        names = [a.arg for a in function.args.args]
        for argument in function.args.args:
            self._annotated(argument)
        cluster = _decorator(function)
        if cluster is not None:
            given = {k.arg: k.value for k in cluster.keywords}
            with_client = "client" in given and getattr(given["client"], "value", None) is True
            place = 1 if with_client else 0
            self.client |= with_client
            if len(names) > place:
                self.schedulers.add(names[place])
                nthreads = given.get("nthreads", cluster.args[0] if cluster.args else None)
                number = len(nthreads.elts) if isinstance(nthreads, ast.List) else 2
                self.workers.update(names[place + 1 : place + 1 + number])
            if function.args.vararg is not None:
                self.workers.add(function.args.vararg.arg)
            if "Worker" in given and getattr(given["Worker"], "id", "") != "Nanny":
                self.seen.add("wint")
        else:
            self.client |= bool({"c", "client"} & set(names))  # fixtures

    def _annotated(self, argument: ast.arg) -> None:
        kind = getattr(argument.annotation, "id", "")
        if kind == "Scheduler":
            self.schedulers.add(argument.arg)
        elif kind in ("Worker", "Nanny"):
            self.workers.add(argument.arg)

    def visit_Name(self, node: ast.Name) -> None:
        self.client |= node.id in CLIENTS

    def visit_With(self, node: ast.With) -> None:
        self._with(node)

    def visit_AsyncWith(self, node: ast.AsyncWith) -> None:
        self._with(node)

    def _with(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            if isinstance(item.optional_vars, ast.Name):
                self._bind(item.optional_vars.id, item.context_expr)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            if isinstance(target, ast.Name):
                self._bind(target.id, node.value)
        self.generic_visit(node)

    def _bind(self, name: str, value: ast.expr) -> None:
        if isinstance(value, ast.Await):
            value = value.value
        kind = self._kind(value)
        called = value.func if isinstance(value, ast.Call) else None
        if isinstance(called, ast.Name) and called.id.endswith("Cluster"):
            self.clusters.add(name)
        if kind == "scheduler":
            self.schedulers.add(name)
        elif kind == "worker" or self._all_workers(getattr(value, "elts", [])):
            self.workers.add(name)

    def _all_workers(self, nodes: list[ast.expr]) -> bool:
        return bool(nodes) and all(self._kind(node) == "worker" for node in nodes)

    def _kind(self, node: ast.expr) -> str:
        if isinstance(node, ast.Starred):
            node = node.value
        if isinstance(node, ast.Name):
            if node.id in self.schedulers:
                return "scheduler"
            return "worker" if node.id in self.workers else ""
        if isinstance(node, ast.Attribute):
            return "scheduler" if node.attr == "scheduler" and self._is_cluster(node.value) else ""
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name == "Scheduler":
                return "scheduler"
            return "worker" if name in ("Worker", "get_worker", "Nanny") else ""
        if isinstance(node, ast.Subscript):
            if isinstance(node.value, ast.Attribute) and node.value.attr == "workers":
                return "worker" if self._is_cluster(node.value.value) else ""
            return self._kind(node.value)
        return ""

    def _is_cluster(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Name):
            return "cluster" in node.id.lower() or node.id in self.clusters
        return isinstance(node, ast.Attribute) and node.attr == "cluster"

    def visit_For(self, node: ast.For) -> None:
        self._loop(node.target, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._loop(node.target, node.iter)
        self.generic_visit(node)

    def _visit_comprehension(self, node: ast.expr) -> None:
        for generator in node.generators:  # type: ignore[attr-defined]
            self.visit(generator)
        self.generic_visit(node)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _visit_comprehension

    def _loop(self, target: ast.expr, over: ast.expr) -> None:
        if not isinstance(target, ast.Name):
            return
        elements = over.elts if isinstance(over, ast.List | ast.Tuple) else [over]
        if self._all_workers(elements):
            self.workers.add(target.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        kind = self._kind(node.value)
        if kind == "scheduler" and node.attr in SCHEDULER_TASKS:
            self.seen.add("stask")
        elif kind == "scheduler" and node.attr not in SCHEDULER_PUBLIC:
            if isinstance(node.value, ast.Name):  # what a LocalCluster shows of it is public
                self.seen.add("sadm")
        elif kind == "worker" and node.attr == "data":
            self.seen.add("wdata")
        elif kind == "worker" and node.attr not in WORKER_PUBLIC:
            self.seen.add("wint")
        if node.attr in ("get_client", "cluster"):
            self.client = True
        self.generic_visit(node)

    def _helper(self, helper: Function, call: ast.Call) -> None:
        """A function of the same file looks at what it is given, or says that it takes."""
        others = {name: f for name, f in self.helpers.items() if f is not helper}
        look = _Look(helper, others)
        for parameter, argument in zip(helper.args.args, call.args, strict=False):
            kind = self._kind(argument)
            if kind == "scheduler":
                look.schedulers.add(parameter.arg)
            elif kind == "worker":
                look.workers.add(parameter.arg)
        look.visit(helper)
        self.seen |= look.seen

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in SCHEDULER_HELPERS:
            self.seen.add("stask")
        elif name in WORKER_HELPERS:
            self.seen.add("wint")
        elif name in self.helpers and isinstance(node.func, ast.Name):
            self._helper(self.helpers[name], node)
        self.generic_visit(node)


def _decorator(function: Function) -> ast.Call | None:
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") in CLUSTERS:
            return decorator
    return None
