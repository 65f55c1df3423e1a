"""Everything of distributed that is private and that this project touches.

Other modules import these names from here, so that a new release of distributed
is looked at in one place.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from inspect import isawaitable
from threading import current_thread, get_ident
from time import time
from typing import Any

from dask.context import thread_state
from dask.tokenize import tokenize_lock
from dask.utils import key_split
from distributed import (
    Client,
    Event,
    MultiLock,
    Queue,
    Semaphore,
    Variable,
    as_completed,
    rejoin,
    secede,
    threadpoolexecutor,
)
from distributed import client as client_module
from distributed.actor import ActorFuture
from distributed.client import Future, _current_client
from distributed.core import Status, clean_exception, coerce_to_address
from distributed.diagnostics.progressbar import MultiProgressBar, ProgressBar, TextProgressBar
from distributed.worker import _worker_cvar
from distributed.worker_state_machine import SecedeEvent, UnpauseEvent

__all__ = [
    "DefaultPool",
    "HiddenData",
    "Lending",
    "LentResources",
    "Sender",
    "before_retirement",
    "before_workers_restart",
    "block_in",
    "clean_exception",
    "complete_by",
    "copies_of",
    "count_owned_work",
    "cross_in_clients",
    "current_client",
    "current_worker",
    "find_clients",
    "import_once",
    "keep",
    "keep_awake",
    "let_bars_follow",
    "members_after_resources",
    "moved_bytes",
    "name_senders",
    "pages_open",
    "pool_state",
    "runs_here",
    "scheduler_gone",
    "scheduler_id",
    "secede_coroutine",
    "share_data",
    "thread_of_task",
    "thread_state",
    "tokenizing",
    "watch_stimuli",
    "without_slot",
]

current_client: contextvars.ContextVar[Any] = _current_client
current_worker: contextvars.ContextVar[Any] = _worker_cvar
DefaultPool = threadpoolexecutor.ThreadPoolExecutor
"""What a worker makes for its tasks when it is not given executors."""

pool_state = threadpoolexecutor.thread_state
"""What ``secede()`` and ``rejoin()`` look at in a thread."""

PREFIX = "owned-"


DOUBLE = "dask."
"""What is before the name of a module of distributed that is imported a second time."""


def copies_of(cls: Any) -> Iterator[Any]:
    """A class of distributed, and its double where a program made one.

    ``dask.distributed.diagnostics.progressbar`` and the like are second copies of those modules,
    with classes of their own.
    """
    yield cls
    double = getattr(sys.modules.get(DOUBLE + cls.__module__), cls.__name__, cls)
    if double is not cls:
        yield double


class OneCopy(MetaPathFinder, Loader):
    """Has ``import dask.distributed.something`` give distributed's module, not a double of it."""

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
        self._own = module.__spec__, module.__loader__
        return module

    def exec_module(self, module: Any) -> None:
        module.__spec__, module.__loader__ = self._own


def import_once() -> None:
    """Have no more doubles made."""
    if not any(isinstance(finder, OneCopy) for finder in sys.meta_path):
        sys.meta_path.insert(0, OneCopy())


class CurrentClient:
    """Stands for the context variable of the current client in distributed's module.

    What a task has there is made a client when somebody asks for it: most tasks need none.
    """

    set = staticmethod(_current_client.set)
    reset = staticmethod(_current_client.reset)
    name = _current_client.name

    def get(self, *default: Any) -> Any:
        found = _current_client.get(*default)
        made = getattr(found, "made_client", None)
        return found if made is None else made()


NOT_OF_TASKS = ("Dask-", "Profile")
"""How the names of threads begin that no task started: Dask's own."""

LOOPS = ("MainThread", "IO loop")
"""How those begin in which a worker's loop runs, which unpacks what comes."""


def find_clients(of_threads: Callable[[], Any]) -> None:
    """Have tasks find their client, and threads which they started, too.

    Parameters
    ----------
    of_threads : callable
        Gives the client for a thread that a task started, when the process has no other; or None.
    """
    stock = client_module._get_global_client
    if hasattr(stock, "__wrapped__"):
        return

    @wraps(stock)
    def _get_global_client() -> Any:
        found = stock()
        if found is not None or _worker_cvar.get(None) is not None:
            return found
        thread = current_thread().name
        if thread.startswith(NOT_OF_TASKS):
            return None
        # A future of an ordinary task that is unpacked there is that task's client's.
        if thread.startswith(LOOPS) and sys._getframe(1).f_code is Future.__init__.__code__:
            return None
        return of_threads()

    client_module._current_client = CurrentClient()
    client_module._get_global_client = _get_global_client


def moved_bytes(comm: Any) -> tuple[int, int] | None:
    """What changes whenever bytes move over a connection; None when nothing shows it."""
    stream = getattr(comm, "stream", None)
    if stream is None or not hasattr(stream, "_total_write_done_index"):
        return None
    return stream._total_write_done_index, stream._read_buffer_size


def pages_open(scheduler: Any) -> bool:
    """Whether a page of the dashboard is open in any browser."""
    application = getattr(scheduler, "http_application", None)
    return any(
        session.connection_count
        for app in getattr(application, "applications", ())
        for context in getattr(app, "_applications", {}).values()  # of Bokeh
        for session in context.sessions
    )


@contextmanager
def thread_of_task(worker: Any, pool: Any) -> Iterator[None]:
    """Make another's thread look like one of an owned task while the body runs.

    ``pool`` is what ``secede()`` and ``rejoin()`` find.
    """
    new = {"executor": pool, "proceed": True}
    before = {name: getattr(pool_state, name) for name in new if hasattr(pool_state, name)}
    pool_state.__dict__.update(new)
    thread_state.execution_state = worker.execution_state
    try:
        yield
    finally:
        for name in new:
            delattr(pool_state, name)
        pool_state.__dict__.update(before)
        for name in ("execution_state", "key", "start_time"):
            if hasattr(thread_state, name):
                delattr(thread_state, name)
        worker.active_threads.pop(get_ident(), None)


def tokenizing() -> bool:
    """Whether this thread pickles only to make a token: that pickle is read by nobody."""
    return bool(tokenize_lock._is_owned())


class HiddenData(MutableMapping[Any, Any]):
    """A worker's ``data`` as its state machine sees it: without owned values.

    The state machine takes every key of ``data`` for one of its tasks.
    """

    def __init__(self, data: MutableMapping[Any, Any]) -> None:
        self.data = data

    def __getitem__(self, key: Any) -> Any:
        return self.data[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.data[key] = value

    def __delitem__(self, key: Any) -> None:
        del self.data[key]

    def __contains__(self, key: object) -> bool:
        return key in self.data

    def __iter__(self) -> Iterator[Any]:
        for key in list(self.data):
            if not (isinstance(key, str) and key.startswith(PREFIX)):
                yield key

    def __len__(self) -> int:
        return sum(1 for _ in self)


def share_data(worker: Any, shown: Callable[[MutableMapping[Any, Any]], Any]) -> Any:
    """Hide owned values from the worker's state machine, and show them in `Worker.data`.

    Parameters
    ----------
    worker : distributed.Worker
    shown : callable
        From the mapping where values stand to what is shown of it.

    Returns
    -------
    MutableMapping
        Where values stand.
    """
    data = worker.memory_manager.data
    if isinstance(worker.state.data, HiddenData):  # the plugin was set up before
        data = worker.state.data.data
    worker.state.data = HiddenData(data)
    worker.memory_manager.data = shown(data)
    return data


def watch_stimuli(worker: Any, owned: Any, after: Callable[[], None]) -> None:
    """Keep ``secede()`` inside owned tasks from the state machine, and tell of all else.

    It would look for the key among its own tasks, and close the worker when it has
    the same key in another state. ``owned`` says whether a key is an owned task's
    that runs here. ``after`` is called when the state machine did something: a slot may be free.
    """
    stock = worker.handle_stimulus

    def handle_stimulus(*events: Any) -> None:
        kept = [e for e in events if not (isinstance(e, SecedeEvent) and owned(e.key))]
        if kept or not events:
            stock(*kept)
            after()

    worker.handle_stimulus = handle_stimulus


@contextmanager
def without_slot(worker: Any) -> Iterator[None]:
    """Secede while the caller waits, when it is an ordinary Dask task of this worker.

    What it waits for may need the very slot that it holds.
    """
    task = None
    if getattr(pool_state, "executor", None) is worker.executors.get("default") and getattr(
        pool_state, "proceed", False
    ):
        task = worker.state.tasks.get(getattr(thread_state, "key", None))
    if task is None or task.state != "executing":
        yield
        return
    secede()
    try:
        yield
    finally:
        rejoin()


def runs_here(worker: Any, key: Any) -> bool:
    """Whether a worker's state machine has an ordinary Dask task running."""
    task = worker.state.tasks.get(key)
    return task is not None and task.state in ("executing", "long-running")


def secede_coroutine(worker: Any, key: Any) -> None:
    """As ``secede()``, for an ordinary Dask task that is a coroutine: it has no thread."""
    task = worker.state.tasks.get(key)
    if task is not None and task.state == "executing":
        worker.handle_stimulus(
            SecedeEvent(key=key, compute_duration=0.0, stimulus_id=f"ownership-{time()}")
        )


def scheduler_id(client: Any) -> Any:
    """What tells the scheduler of a client from any other; None while it is not connected."""
    return client._scheduler_identity.get("id")


def scheduler_gone(worker: Any) -> bool:
    """Whether a worker that closes does so because its stream to the scheduler broke."""
    return bool(worker.batched_stream is not None and worker.batched_stream.closed())


def keep_awake(scheduler: Any, yes: bool) -> None:
    """Hold a scheduler's ``idle-timeout``, as it does itself while it takes a graph in."""
    scheduler._active_graph_updates += 1 if yes else -1


TOLD = 0.02
"""Seconds after which a worker has heard what the scheduler said to it over its stream."""


def before_retirement(scheduler: Any, leave: Callable[[list[str]], Awaitable[None]]) -> None:
    """Call ``leave(addresses)`` before a scheduler retires workers, whoever asks for it."""
    stock = scheduler.retire_workers

    @wraps(stock)
    async def retire_workers(
        workers: list[str] | None = None, *, names: list[Any] | None = None, **kwargs: Any
    ) -> Any:
        options = {k: v for k, v in kwargs.items() if k in RETIREMENT}
        if names is not None:
            wanted = {str(name) for name in names}
            leaving = [a for a, ws in scheduler.workers.items() if str(ws.name) in wanted]
        elif workers is not None:
            # ``SpecCluster.scale`` names workers here; stock finds none of them and moves nothing.
            workers = leaving = [
                address
                for address, ws in scheduler.workers.items()
                if address in workers or ws.name in workers
            ]
        else:
            closing = {k: v for k, v in kwargs.items() if k not in RETIREMENT}
            if closing.get("attribute", "address") == "address":
                workers = leaving = scheduler.workers_to_close(**closing)
                kwargs = options
            else:
                leaving = []
        if leaving:
            await leave(leaving)
        retired = await stock(workers=workers, names=names, **kwargs)
        if leaving:
            # The scheduler has told them so. Who asked may have their nannies end them now, and
            # a worker that hears the scheduler after its nanny logs an error.
            await asyncio.sleep(TOLD)
        return retired

    scheduler.retire_workers = retire_workers
    scheduler.handlers["retire_workers"] = retire_workers


def before_workers_restart(scheduler: Any, leave: Callable[[list[str]], Awaitable[None]]) -> None:
    """Call ``leave(addresses)`` before workers that a client names are restarted.

    Not when the whole cluster is: that cancels everything.
    """
    stock = scheduler.restart_workers

    @wraps(stock)
    async def restart_workers(workers: list[str] | None = None, **kwargs: Any) -> Any:
        leaving = [address for address in workers or () if address in scheduler.workers]
        if leaving:
            await leave(leaving)
        return await stock(workers=workers, **kwargs)

    scheduler.handlers["restart_workers"] = restart_workers


def members_after_resources(scheduler: Any, tell: Callable[[str], None]) -> None:
    """Call ``tell(address)`` when a worker has other resources than before."""
    stock = scheduler.handlers["set_resources"]

    def set_resources(worker: str, resources: dict[str, float] | None = None) -> Any:
        answer = stock(worker=worker, resources=resources)
        tell(worker)
        return answer

    scheduler.handlers["set_resources"] = set_resources


RETIREMENT = {"close_workers", "remove", "stimulus_id"}
"""Options of ``Scheduler.retire_workers`` that do not choose workers."""


class Sender(str):
    """Id of the client over whose connection something came, as the scheduler knows it."""

    __slots__ = ()


def name_senders(scheduler: Any, operations: Iterable[str]) -> None:
    """Have messages of these operations say whose they are, as ``sender=Sender(client)``.

    Dask passes the client on as an argument, which one in the message itself replaces.
    """
    ours = frozenset(operations)

    def watch(comm: Any, client: str) -> None:
        stock = comm.read

        @wraps(stock)
        async def read(*args: Any, **kwargs: Any) -> Any:
            messages = await stock(*args, **kwargs)
            for message in messages if isinstance(messages, tuple | list) else (messages,):
                if isinstance(message, dict) and message.get("op") in ours:
                    message["sender"] = Sender(client)
            return messages

        comm.read = read

    stock = scheduler.handle_stream

    @wraps(stock)
    async def handle_stream(comm: Any, extra: dict[str, Any] | None = None) -> None:
        if extra and "client" in extra:
            watch(comm, extra["client"])
        await stock(comm, extra)

    scheduler.handle_stream = handle_stream
    for client, batched in scheduler.client_comms.items():
        if batched.comm is not None:
            watch(batched.comm, client)


def count_owned_work(scheduler: Any, backlog: Callable[[], int]) -> None:
    """Have adaptive scaling see owned tasks: busy workers stay, and a backlog asks for more.

    ``backlog`` counts tasks that wait at clients for a worker.
    """
    stock_close = scheduler.workers_to_close
    stock_target = scheduler.adaptive_target

    @wraps(stock_close)
    def workers_to_close(*args: Any, **kwargs: Any) -> Any:
        attribute = kwargs.get("attribute", "address")
        busy = {
            getattr(ws, attribute)
            for ws in scheduler.workers.values()
            if ws.metrics.get("owned_tasks")
        }
        return [worker for worker in stock_close(*args, **kwargs) if worker not in busy]

    @wraps(stock_target)
    def adaptive_target(*args: Any, **kwargs: Any) -> int:
        owned = [ws.metrics.get("owned_tasks") or 0 for ws in scheduler.workers.values()]
        busy = sum(1 for tasks in owned if tasks)
        waiting = backlog()
        wanted = min(busy + waiting, max(1, 2 * busy)) if waiting else busy
        return max(int(stock_target(*args, **kwargs)), wanted)

    for function in (workers_to_close, adaptive_target):
        setattr(scheduler, function.__name__, function)
        scheduler.handlers[function.__name__] = function


COORDINATION = (
    (Semaphore, "acquire"),  # and of `Lock`, which calls it
    (MultiLock, "acquire"),
    (Event, "wait"),
    (Queue, "get"),
    (Queue, "put"),
    (Variable, "get"),
)
"""What waits for others by way of the scheduler."""

WAIT_FOR_TASKS = {"_exception", "_gather", "_result", "_traceback", "_wait"}
"""Coroutine functions by which a client waits for what the scheduler runs."""


def block_in(
    without_slot: Callable[[], AbstractContextManager[None]],
    await_without_slot: Callable[[Any], Any],
    without_slot_if_long: Callable[[], AbstractContextManager[None]],
    await_without_slot_if_long: Callable[[Any], Any],
) -> None:
    """Have what blocks in Dask wait without a slot inside owned tasks.

    ``as_completed`` and results of actors at once, as futures; what coordinates tasks when it
    lasts, and as well what a client that a task connects itself waits for. What only asks the
    scheduler something keeps the slot.
    """
    if hasattr(as_completed.__next__, "__wrapped__"):
        return
    import_once()
    stock_sync = Client.sync

    @wraps(stock_sync)
    def sync(self: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(func, "__name__", "") not in WAIT_FOR_TASKS:
            return stock_sync(self, func, *args, **kwargs)
        with without_slot_if_long():
            answer = stock_sync(self, func, *args, **kwargs)
        return await_without_slot_if_long(answer) if isawaitable(answer) else answer

    Client.sync = sync
    for cls, name in COORDINATION:
        for copy in copies_of(cls):
            _let_wait(copy, name, without_slot_if_long, await_without_slot_if_long)
    stock = as_completed.__next__

    @wraps(stock)
    def __next__(self: Any) -> Any:
        if not self.queue.empty():
            return stock(self)
        with without_slot():
            return stock(self)

    stock_async = as_completed.__anext__

    @wraps(stock_async)
    async def __anext__(self: Any) -> Any:
        if not self.queue.empty() or not self.futures:
            return await stock_async(self)
        return await await_without_slot(stock_async(self))

    stock_await = ActorFuture.__await__

    @wraps(stock_await)
    def __await__(self: Any) -> Any:
        return await_without_slot(self._result()).__await__()

    stock_result = ActorFuture.result

    @wraps(stock_result)
    def result(self: Any, timeout: Any = None) -> Any:
        if self.done():
            return stock_result(self, timeout)
        with without_slot():
            return stock_result(self, timeout)

    as_completed.__next__ = __next__
    as_completed.__anext__ = __anext__
    ActorFuture.result = result
    ActorFuture.__await__ = __await__


def complete_by(takes: Callable[[Any, list[Any]], bool]) -> None:
    """Have ``distributed.as_completed`` leave futures to another who waits faster for them.

    ``takes(waits, futures)`` may take over an `as_completed` that has no futures yet.
    """
    stock = as_completed.update
    if hasattr(stock, "__wrapped__"):
        return

    @wraps(stock)
    def update(self: Any, futures: Any) -> None:
        futures = list(futures)
        fresh = type(self) is as_completed and not self.futures and self.queue.empty()
        if not (fresh and takes(self, futures)):
            stock(self, futures)

    as_completed.update = update


def _let_wait(cls: Any, name: str, without_slot: Any, await_without_slot: Any) -> None:
    """Have a method of a class wait without a slot, whether it blocks or is awaited."""
    stock = getattr(cls, name)

    @wraps(stock)
    def waits(self: Any, *args: Any, **kwargs: Any) -> Any:
        with without_slot():
            answer = stock(self, *args, **kwargs)
        return await_without_slot(answer) if isawaitable(answer) else answer

    setattr(cls, name, waits)


def cross_in_clients(
    arguments: Callable[[Any, Any, Any], Any],
    graph: Callable[[Any, Any, Any], Any],
) -> None:
    """Have all clients of this process take owned futures where they take their own.

    They see a future by its key only, which means nothing to the scheduler, so what a user
    gives is looked at before they see it: by ``arguments(client, args, kwargs)`` in ``submit``
    and ``map``, and by ``graph(client, expr, keys)`` in all else. Both return what to use in
    place of it, and what must live as long as the futures that come of it.
    """
    stock_submit, stock_map, stock_graph = Client.submit, Client.map, Client._graph_to_futures
    if hasattr(stock_submit, "__wrapped__"):
        return

    @wraps(stock_submit)
    def submit(self: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs, inputs = arguments(self, args, kwargs)
        return keep(inputs, stock_submit(self, func, *args, **kwargs))

    @wraps(stock_map)
    def map(self: Any, func: Any, *iterables: Any, **kwargs: Any) -> Any:
        iterables, kwargs, inputs = arguments(self, iterables, kwargs)
        return keep(inputs, stock_map(self, func, *iterables, **kwargs))

    @wraps(stock_graph)
    def _graph_to_futures(self: Any, expr: Any, keys: Any, *args: Any, **kwargs: Any) -> Any:
        expr, inputs = graph(self, expr, keys)
        return keep(inputs, stock_graph(self, expr, keys, *args, **kwargs))

    Client.submit, Client.map, Client._graph_to_futures = submit, map, _graph_to_futures


def keep(inputs: Any, futures: Any) -> Any:
    """Futures of the scheduler, each with the futures that it was made of."""
    if inputs:
        made = futures.values() if isinstance(futures, dict) else futures
        for future in made if isinstance(futures, dict | list) else (futures,):
            future._crossed = inputs
    return futures


def let_bars_follow(
    split: Callable[[list[Any], str | None], tuple[list[Any], list[Any]]],
    listen: Callable[[Any, list[Any], Any, Any], Awaitable[None]],
    without_slot: Callable[[], AbstractContextManager[None]],
) -> None:
    """Have the stock progress bars show owned tasks.

    Parameters
    ----------
    split : callable
        Takes futures or keys and the scheduler's address; gives what of them is owned, each
        with the address of its ``scheduler``, and the others.
    listen : callable
        Takes a bar, what of its keys is owned, a bar of the others with what has it listen (or
        None), and how they are grouped (None for one number). Draws until all has ended.
    without_slot : callable
        Covers a bar that blocks.
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
    stock = cls.__init__

    @wraps(stock)
    def blocks(self: Any, *args: Any, **kwargs: Any) -> None:
        with without_slot():
            stock(self, *args, **kwargs)

    cls.__init__ = blocks


def _let_follow(cls: Any, split: Any, listen: Any) -> None:
    stock_init, stock_listen = cls.__init__, cls.listen

    @wraps(stock_init)
    def __init__(self: Any, keys: Any, scheduler: Any = None, *args: Any, **kwargs: Any) -> None:
        keys = list(keys)
        address = None if scheduler is None else coerce_to_address(scheduler)
        self._owned, self._others = split(keys, address)
        if scheduler is None and self._owned:
            scheduler = self._owned[0].scheduler
        stock_init(self, keys, scheduler, *args, **kwargs)

    @wraps(stock_listen)
    async def listens(self: Any) -> None:
        if not getattr(self, "_owned", None):
            await stock_listen(self)
            return
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
    """A kind of bar that is not drawn."""
    return type(f"Silent{cls.__name__}", (cls,), {"_draw_bar": lambda self, **response: None})


class Lending:
    """Slots that the worker's state machine lends to owned tasks.

    The state machine runs ``nthreads`` tasks at once. While it looks whether to start
    one, that number is lower by what is lent, so that the worker never runs more than it has
    threads for, whoever sent the work. Tasks that ask how many threads their worker has
    find all of them. Loop thread only.

    Attributes
    ----------
    lent : int
        Slots that owned tasks may use now.
    """

    FAIR_TURN = 0.05
    """Seconds for which either side may go on to use a slot while the other waits for one."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.lent = 0
        self._taken_at = 0.0
        self._given_at = 0.0
        self._reserved = 0
        self._stock: type | None = None

    def start(self) -> None:
        """Have the state machine start no more than what is left to it."""
        lending = self
        stock = self._stock = type(self.worker.state)

        class LendingState(stock):  # type: ignore[misc, valid-type]
            __slots__ = ()

            def _ensure_computing(self) -> Any:
                state: Any = self
                nthreads = state.nthreads
                state.nthreads = lending.left
                try:
                    return super()._ensure_computing()
                finally:
                    state.nthreads = nthreads

        LendingState.__name__ = LendingState.__qualname__ = stock.__name__
        self.worker.state.__class__ = LendingState

    def close(self) -> None:
        """Undo `start`, and return what is lent."""
        self.give_back(self.lent)
        if self._stock is not None:
            self.worker.state.__class__ = self._stock
            self._stock = None

    @property
    def nthreads(self) -> int:
        """All slots of the worker, lent and not."""
        return int(self.worker.state.nthreads)

    @property
    def left(self) -> int:
        """Slots of the state machine."""
        return self.nthreads - self.lent - self._reserved

    @property
    def reserved(self) -> bool:
        """Whether a slot that is not free yet is kept for `borrow`."""
        return self._reserved > 0

    @property
    def stock_waits(self) -> bool:
        """Whether ordinary Dask tasks could start if they had a slot."""
        state = self.worker.state
        return bool(
            state.ready
            or (
                state.constrained
                and state._resource_restrictions_satisfied(state.constrained.peek())
            )
        )

    @property
    def running(self) -> bool:
        """Whether the worker takes new tasks at all."""
        return bool(self.worker.status == Status.running)

    def borrow(self, wanted: int) -> int:
        """Take up to ``wanted`` more slots; how many were had now.

        What cannot be had now is reserved: it comes free when an ordinary task
        ends, and `borrow` gets it when it is called again. But not while it is the turn of
        ordinary tasks.
        """
        free = self.nthreads - self.lent - len(self.worker.state.executing)
        got = max(0, min(wanted, free))
        self._reserved = 0
        self.lent += got
        if got:
            self._taken_at = time()
        elif (
            wanted
            and self.nthreads > 0
            and self.lent == 0
            and time() - self._given_at > self.FAIR_TURN
        ):
            self._reserved = 1
        return got

    def give_back(self, count: int) -> None:
        """Return slots, and let the state machine use them if the worker runs."""
        if self.overdue:
            self._given_at = time()
        count = min(count, self.lent) + self._reserved
        self.lent -= count - self._reserved
        self._reserved = 0
        if count and self.running and self.stock_waits:
            # Never sent to a paused worker, which it would set going again.
            self.worker.handle_stimulus(UnpauseEvent(stimulus_id=f"ownership-{time()}"))

    @property
    def overdue(self) -> bool:
        """Whether ordinary tasks have waited for a lent slot long enough."""
        return self.lent > 0 and self.stock_waits and time() - self._taken_at > self.FAIR_TURN


class _Totals(dict[str, float]):
    """A worker's resources, of which its state machine does not count what is lent."""

    lent: dict[str, float]

    def copy(self) -> dict[str, float]:
        """What the state machine compares with what is free and what its own tasks have."""
        return {name: amount - self.lent.get(name, 0.0) for name, amount in self.items()}


class LentResources:
    """Abstract resources that the worker's state machine lends to owned tasks.

    What is lent is not in its ``available_resources``, so that tasks of both kinds together
    never take more than there is. Loop thread only.

    Attributes
    ----------
    lent : dict
        How much of each owned tasks have, or may take.
    """

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.lent: dict[str, float] = {}
        self._reserved: dict[str, float] = {}
        self._taken_at = 0.0
        state = worker.state
        state.total_resources = _Totals(state.total_resources)
        state.total_resources.lent = self.lent

    @property
    def totals(self) -> dict[str, float]:
        """All that the worker has, lent and not; ``set_resources`` changes it."""
        totals: dict[str, float] = self.worker.state.total_resources
        return totals

    @property
    def reserved(self) -> bool:
        """Whether some that are not free yet are kept for `borrow`."""
        return bool(self._reserved)

    @property
    def stock_waits_for(self) -> frozenset[str]:
        """What is lent and an ordinary Dask task waits for."""
        constrained = self.worker.state.constrained
        if not constrained or not self.lent:
            return frozenset()
        return frozenset(self.lent.keys() & constrained.peek().resource_restrictions.keys())

    @property
    def overdue(self) -> frozenset[str]:
        """What is lent and an ordinary task has waited for long enough."""
        waits_for = self.stock_waits_for
        if waits_for and time() - self._taken_at > Lending.FAIR_TURN:
            return waits_for
        return frozenset()

    def borrow(self, wanted: dict[str, float]) -> bool:
        """Take all of what is wanted, or nothing and return False.

        What cannot be had now is reserved: ordinary tasks get none of it until `borrow` did,
        or `let_go` is called.
        """
        self.let_go(wanted)
        free = self.worker.state.available_resources
        if all(free.get(name, 0) >= amount for name, amount in wanted.items()):
            for name, amount in wanted.items():
                free[name] -= amount
                if not self.lent:
                    self._taken_at = time()
                self.lent[name] = self.lent.get(name, 0.0) + amount
            return True
        # The validation of the state machine, which is for tests, takes no number below zero.
        if not self.worker.state.validate and self.lent.keys().isdisjoint(wanted):
            for name, amount in wanted.items():
                if name in free:
                    free[name] -= amount
                    self._reserved[name] = amount
        return False

    def let_go(self, names: Iterable[str] | None = None) -> None:
        """Reserve no more of these, or of any."""
        for name in list(self._reserved if names is None else names):
            if name in self._reserved:
                self.worker.state.available_resources[name] += self._reserved.pop(name)

    def give_back(self, amounts: dict[str, float], done: bool) -> None:
        """Return what was borrowed, and let the state machine use it if the worker runs.

        ``done`` when no owned task waits for more: then nothing stays reserved.
        """
        if done:
            self.let_go()
        free = self.worker.state.available_resources
        for name, amount in amounts.items():
            amount = min(amount, self.lent.get(name, 0.0))  # all may have been returned before
            free[name] += amount
            left = self.lent.get(name, 0.0) - amount
            if left > 1e-9:
                self.lent[name] = left
            else:
                self.lent.pop(name, None)
        state = self.worker.state
        if state.constrained and self.worker.status == Status.running:
            self.worker.handle_stimulus(UnpauseEvent(stimulus_id=f"ownership-{time()}"))
