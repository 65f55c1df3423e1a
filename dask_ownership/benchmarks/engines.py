"""The engines that are measured, each with what it can do."""

from __future__ import annotations

import contextlib
import gc
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import dask_ownership
from dask_ownership.benchmarks import functions
from dask_ownership.benchmarks.floors import FloorClient
from dask_ownership.benchmarks.ray_client import RayClient
from dask_ownership.benchmarks.timing import round_trips

__all__ = ["ENGINES", "Engine", "Unavailable", "make_engine"]

#: Every engine, in the order of the columns.
ENGINES = ("ownership", "distributed", "tuned", "ray", "threads", "floor")

#: What a case may need of an engine.
TASKS = "tasks"
COLLECTIONS = "collections"
SCHEDULER = "scheduler"
PENDING = "pending"
TRAVEL = "travel"
RECOVERY = "recovery"

#: Of these, what can be asked of a cluster that others use: nothing is killed or looked into.
ELSEWHERE = frozenset({TASKS, COLLECTIONS, TRAVEL})

#: Seconds for which a cluster that is there is waited for.
CONNECTING = 10


class Unavailable(Exception):
    """An engine cannot be run here; the text says why."""


class Engine:
    """One way to run tasks.

    Parameters
    ----------
    n_workers
        The number of worker processes.
    threads_per_worker
        The number of threads of each.
    address
        The scheduler of a cluster that is there, in place of one that is started.
    """

    name = ""
    #: The packages whose versions are reported.
    packages: tuple[str, ...] = ()
    #: What the engine can do, of the words that cases ask for.
    speaks: frozenset[str] = frozenset()
    #: How many tasks may wait at the owner in the case that measures memory: normal, quick.
    pending = (20_000, 20_000)

    def __init__(self, n_workers: int = 2, threads_per_worker: int = 1, address: str = "") -> None:
        self.address = address
        if address:
            self.speaks = self.speaks & ELSEWHERE
        self.n_workers = n_workers
        self.threads_per_worker = threads_per_worker
        self.client: Any = None
        self.stack = contextlib.ExitStack()

    @property
    def slots(self) -> int:
        """The number of tasks that can run at once."""
        return self.n_workers * self.threads_per_worker

    @property
    def own(self) -> Mapping[str, Callable[[int], dict[str, float]]]:
        """Cases that this engine measures by code of its own, by the case's name."""
        return {}

    def start(self) -> None:
        """Start whatever runs tasks."""

    def close(self) -> None:
        """End everything that ``start`` started."""
        self.client = None
        self.stack.close()

    def workers(self) -> list[str | None]:
        """Return the addresses of the workers; None where a task cannot be sent to one."""
        return [None] * self.n_workers

    def compute(self, collection: Any) -> Any:
        """Compute a Dask collection."""
        raise NotImplementedError

    def wait_for_first(self, futures: list[Any]) -> None:
        """Wait until any of these is done."""
        from distributed import wait

        wait(futures, return_when="FIRST_COMPLETED")

    def count_as_completed(self, futures: list[Any]) -> int:
        """Take each of these as it is done, and count them."""
        from distributed import as_completed

        return sum(1 for _ in as_completed(futures))

    def fill(self) -> None:
        """Wait until every worker is there, also one that starts in the place of a dead one."""
        self.client.gather(self.client.map(functions.sleep, [0.1] * self.slots, pure=False))

    def settle(self) -> None:
        """Wait until what the last measurement left behind is done with."""
        gc.collect()
        if self.client is not None:
            self.client.submit(functions.noop, 0, pure=False).result()
        time.sleep(0.1)

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that the engine consists of."""
        found = {}
        for package in self.packages:
            with contextlib.suppress(PackageNotFoundError):
                found[package] = version(package)
        return found


class DistributedEngine(Engine):
    """The stock client on an embedded cluster of processes."""

    name = "distributed"
    packages: tuple[str, ...] = ("dask", "distributed")
    speaks = frozenset({TASKS, COLLECTIONS, SCHEDULER, PENDING, RECOVERY})
    settings: Mapping[str, Any] = {}

    def start(self) -> None:
        """Start the cluster, unless there is one, and the client."""
        import dask
        from distributed import LocalCluster

        stack = self.stack
        if self.address:
            self.client = stack.enter_context(self.connect(self.address, timeout=CONNECTING))
            self.client.wait_for_workers(1, timeout=CONNECTING)
            nthreads = self.client.nthreads().values()
            self.n_workers = len(nthreads)
            self.threads_per_worker = max(nthreads)
            return
        stack.enter_context(dask.config.set(dict(self.settings)))
        directory = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="dask-benchmark-", ignore_cleanup_errors=True)
        )
        self.cluster = stack.enter_context(
            LocalCluster(
                n_workers=self.n_workers,
                threads_per_worker=self.threads_per_worker,
                processes=True,
                dashboard_address=":0",
                local_directory=directory,
            )
        )
        self.client = stack.enter_context(self.connect(self.cluster))
        self.client.wait_for_workers(self.n_workers)

    def connect(self, cluster: Any, **options: Any) -> Any:
        """Make the client."""
        from distributed import Client

        return Client(cluster, **options)

    def workers(self) -> list[str | None]:
        """Return the addresses of the workers."""
        return list(self.client.scheduler_info()["workers"])

    def fill(self) -> None:
        """Wait until the scheduler has every worker, and each has done something."""
        self.client.wait_for_workers(self.n_workers)
        super().fill()

    def compute(self, collection: Any) -> Any:
        """Compute a collection with the client, which is the default scheduler."""
        return collection.compute()


class TunedEngine(DistributedEngine):
    """The stock client with a scheduler that sends tasks ahead without a limit."""

    name = "tuned"
    # A chain has no tasks that could be sent ahead.
    speaks = DistributedEngine.speaks - {RECOVERY}
    settings: Mapping[str, Any] = {"distributed.scheduler.worker-saturation": float("inf")}


class OwnershipEngine(DistributedEngine):
    """This project's client on the same kind of cluster."""

    name = "ownership"
    packages = ("dask-ownership", "dask", "distributed")
    speaks = DistributedEngine.speaks | {TRAVEL}
    pending = (1_000_000, 100_000)

    def connect(self, cluster: Any, **options: Any) -> Any:
        """Make the client."""
        return dask_ownership.Client(cluster, **options)


class RayEngine(Engine):
    """Ray on this machine, with as many cores as the others have slots."""

    name = "ray"
    packages = ("ray", "dask")
    speaks = frozenset({TASKS, COLLECTIONS, TRAVEL, RECOVERY})

    def start(self) -> None:
        """Start Ray."""
        try:
            import ray
        except ImportError as error:
            raise Unavailable(f"ray is not installed here ({error})") from None
        ray.init(num_cpus=self.slots, include_dashboard=False, log_to_driver=False)
        self.stack.callback(ray.shutdown)
        self.client = RayClient(ray)
        self.fill()

    def compute(self, collection: Any) -> Any:
        """Compute a collection with the scheduler that Ray brings for Dask."""
        from ray.util.dask import ray_dask_get

        return collection.compute(scheduler=ray_dask_get)

    def wait_for_first(self, futures: list[Any]) -> None:
        """Wait until any of these is done."""
        self.client.ray.wait([future.ref for future in futures])

    def count_as_completed(self, futures: list[Any]) -> int:
        """Take each of these as it is done, up to a thousand at once, and count them.

        One at a time takes Ray a time that grows with the square of their number.
        """
        left = [future.ref for future in futures]
        while left:
            _, left = self.client.ray.wait(left, num_returns=min(1000, len(left)))
        return len(futures)


class ThreadsEngine(Engine):
    """Dask's scheduler of threads in this process, for collections only."""

    name = "threads"
    packages = ("dask",)
    speaks = frozenset({COLLECTIONS})

    def compute(self, collection: Any) -> Any:
        """Compute a collection with as many threads as the others have slots."""
        return collection.compute(scheduler="threads", num_workers=self.slots)


class FloorEngine(Engine):
    """The bare batched loop and the bare echo."""

    name = "floor"
    packages = ("distributed",)

    def start(self) -> None:
        """Start the worker processes."""
        self.bare = self.stack.enter_context(FloorClient(self.n_workers))

    @property
    def own(self) -> Mapping[str, Callable[[int], dict[str, float]]]:
        """The loop and the echo."""
        return {"submit loop": self._loop, "round trip": self._echo}

    def _loop(self, n: int) -> dict[str, float]:
        start = time.perf_counter()
        values = self.bare.map(n)
        seconds = time.perf_counter() - start
        if values != list(range(n)):
            raise AssertionError("the bare loop returned wrong values")
        return {"rate": n / seconds}

    def _echo(self, n: int) -> dict[str, float]:
        return round_trips(self.bare.call, n)


def make_engine(
    name: str, n_workers: int = 2, threads_per_worker: int = 1, address: str = ""
) -> Engine:
    """Make an engine by its name.

    Parameters
    ----------
    name
        One of :data:`ENGINES`.
    n_workers
        The number of worker processes.
    threads_per_worker
        The number of threads of each.
    address
        The scheduler of a cluster that is there, in place of one that is started.
    """
    kinds: list[type[Engine]] = [
        OwnershipEngine,
        DistributedEngine,
        TunedEngine,
        RayEngine,
        ThreadsEngine,
        FloorEngine,
    ]
    for kind in kinds:
        if kind.name == name:
            return kind(n_workers, threads_per_worker, address)
    raise ValueError(f"no engine is named {name!r}: choose from {[k.name for k in kinds]}")
