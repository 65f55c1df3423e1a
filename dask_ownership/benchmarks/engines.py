"""The engines that are measured, each with its abilities."""

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

#: Abilities of engines that cases may need.
TASKS = "tasks"
COLLECTIONS = "collections"
SCHEDULER = "scheduler"
PENDING = "pending"
TRAVEL = "travel"
RECOVERY = "recovery"

#: Abilities on a given cluster, which other people use: no worker is killed and no process looked
#: into.
ELSEWHERE = frozenset({TASKS, COLLECTIONS, TRAVEL})

#: Seconds to wait for a given cluster.
CONNECTING = 10


class Unavailable(Exception):
    """An engine cannot run here; the text gives the reason."""


class Engine:
    """One way to run tasks.

    Parameters
    ----------
    n_workers
        The number of worker processes.
    threads_per_worker
        The number of threads of each.
    address
        The scheduler of a given cluster, in place of a cluster that the engine starts.

    Attributes
    ----------
    n_workers, threads_per_worker, address
        The parameters; on a given cluster, its numbers.
    client
        Submits tasks; None before `start`, and for engines without a client.
    stack
        Holds all that `start` started.
    """

    name = ""
    #: The packages whose versions are reported.
    packages: tuple[str, ...] = ()
    #: The abilities of the engine.
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
        """Start the processes that run tasks."""

    def close(self) -> None:
        """End everything that `start` started."""
        self.client = None
        self.stack.close()

    def workers(self) -> list[str | None]:
        """Return the addresses of the workers; None where tasks cannot choose a worker."""
        return [None] * self.n_workers

    def compute(self, collection: Any) -> Any:
        """Compute a Dask collection."""
        raise NotImplementedError

    def wait_for_first(self, futures: list[Any]) -> None:
        """Wait until any of the futures is done."""
        from distributed import wait

        wait(futures, return_when="FIRST_COMPLETED")

    def count_as_completed(self, futures: list[Any]) -> int:
        """Take each future as it is done, and return their number."""
        from distributed import as_completed

        return sum(1 for _ in as_completed(futures))

    def fill(self) -> None:
        """Wait until every worker is there, also a worker that replaces a dead one."""
        self.client.gather(self.client.map(functions.sleep, [0.1] * self.slots, pure=False))

    def settle(self) -> None:
        """Wait until the remains of the last measurement are gone."""
        gc.collect()
        if self.client is not None:
            # This round trip follows the messages about dropped futures.
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
        """Start the client, and a cluster unless there is a given one."""
        import dask
        from distributed import LocalCluster

        stack = self.stack
        if self.address:
            self.client = stack.enter_context(self.connect(self.address, timeout=CONNECTING))
            self.client.wait_for_workers(1, timeout=CONNECTING)
            # A given cluster has its own size.
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
        """Wait until the scheduler has every worker, and each worker has done something."""
        self.client.wait_for_workers(self.n_workers)
        super().fill()

    def compute(self, collection: Any) -> Any:
        """Compute a collection with the client, which is the default scheduler."""
        return collection.compute()


class TunedEngine(DistributedEngine):
    """The stock client with a scheduler that sends tasks ahead without a limit."""

    name = "tuned"
    # Without `RECOVERY`: its chains have no tasks that could be sent ahead.
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
    """Ray on this machine, with as many cores as the other engines have slots."""

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
        """Wait until any of the futures is done."""
        self.client.ray.wait([future.ref for future in futures])

    def count_as_completed(self, futures: list[Any]) -> int:
        """Take the futures as they are done, up to a thousand at once, and return their number.

        Taking one at a time takes Ray a time that grows with the square of their number.
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
        """Compute a collection with as many threads as the other engines have slots."""
        return collection.compute(scheduler="threads", num_workers=self.slots)


class FloorEngine(Engine):
    """The bare batched loop and the bare echo.

    Attributes
    ----------
    bare
        The client of the floor, from `start` on.
    """

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
        """Run the bare batched loop."""
        start = time.perf_counter()
        values = self.bare.map(n)
        seconds = time.perf_counter() - start
        if values != list(range(n)):
            raise AssertionError("the bare loop returned wrong values")
        return {"rate": n / seconds}

    def _echo(self, n: int) -> dict[str, float]:
        """Run the bare echo."""
        return round_trips(self.bare.call, n)


def make_engine(
    name: str, n_workers: int = 2, threads_per_worker: int = 1, address: str = ""
) -> Engine:
    """Return an engine by its name.

    Parameters
    ----------
    name
        One of :data:`ENGINES`.
    n_workers
        The number of worker processes.
    threads_per_worker
        The number of threads of each.
    address
        The scheduler of a given cluster, in place of a cluster that the engine starts.
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
