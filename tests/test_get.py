"""``dask.config.set(scheduler="ownership")`` and ``scheduler=dask_ownership.get``."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from uuid import uuid4

import dask
import dask.array as da
import distributed
import pytest
from dask.utils import get_scheduler_lock
from distributed import LocalCluster
from live import without_last_heartbeats
from programs import Oops, compute_with, inc, oops, persist_inside, where

import dask_ownership
from dask_ownership import Client
from dask_ownership.get import current_client


def tree() -> object:
    return dask.delayed(sum)([dask.delayed(inc)(i) for i in range(10)])


SCHEDULERS = pytest.mark.parametrize("scheduler", ["ownership", dask_ownership.get])


@SCHEDULERS
def test_in_the_main_program(client: Client, scheduler: object) -> None:
    with dask.config.set(scheduler=scheduler):
        assert tree().compute() == 55
        assert dask.compute(tree(), da.ones(10, chunks=5).sum()) == (55, 10)
    assert client.owner.core.counts["submitted"] > 0


@SCHEDULERS
def test_as_an_argument(client: Client, scheduler: object) -> None:
    before = client.owner.core.counts["submitted"]
    assert tree().compute(scheduler=scheduler) == 55
    assert client.owner.core.counts["submitted"] > before


@SCHEDULERS
def test_persist(client: Client, scheduler: object) -> None:
    (x,) = dask.persist(da.ones(10, chunks=5), scheduler=scheduler)
    assert x.sum().compute(scheduler=scheduler) == 10
    with dask.config.set(scheduler=scheduler):
        y = da.ones(20, chunks=5).persist()
        assert y.sum().compute() == 20


def test_inside_tasks(client: Client) -> None:
    assert client.submit(compute_with, "ownership", 10).result() == 55
    assert client.submit(compute_with, dask_ownership.get, 10).result() == 55
    assert client.submit(persist_inside, 20).result() == 20


def test_stays_central_free(client: Client) -> None:
    with dask.config.set(scheduler="ownership"):
        tree().compute()
    assert client.central_calls == 0


def test_current_client_is_ours(client: Client) -> None:
    assert current_client() is client


def test_attaches_to_the_stock_default_client(cluster: LocalCluster) -> None:
    with distributed.Client(cluster) as stock:
        assert distributed.Client.current() is stock
        with dask.config.set(scheduler="ownership"):
            assert tree().compute() == 55
            attached = current_client()
            assert isinstance(attached, Client)
            assert attached.scheduler.address == cluster.scheduler_address
            assert current_client() is attached
            value = dask.delayed(where, pure=False)().compute()
            assert value in stock.scheduler_info(n_workers=-1)["workers"]
        # What goes to the stock client stays with it.
        assert distributed.Client.current() is stock
        assert tree().compute() == 55
        assert stock.submit(inc, 1).result() == 2
        attached.close()


def test_inside_a_stock_task(cluster: LocalCluster) -> None:
    with distributed.Client(cluster) as stock, Client(cluster, set_as_default=False):
        assert stock.submit(compute_with, "ownership", 10).result() == 55


PROGRAM = """
import dask, dask.array as da, dask_ownership
from operator import add
def main():
    with dask.config.set(scheduler={scheduler}, temporary_directory={tmp!r}):
        print(dask.delayed(add)(1, 2).compute(), da.ones(10, chunks=5).sum().compute())
        print(dask_ownership.get.__call__({{"x": (add, 1, 2)}}, "x"))
if __name__ == "__main__":
    main()
"""


def test_embedded_cluster(tmp_path: Path) -> None:
    """A program that names the scheduler and nothing else gets a cluster, which ends with it."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(scheduler='"ownership"', tmp=str(tmp_path)))
    ran = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", str(program)],
        capture_output=True,
        text=True,
        timeout=50,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["3", "10.0", "3"]
    assert without_last_heartbeats(ran.stderr) == ""


@pytest.mark.parametrize("indent", ["", "    "])
def test_a_script_whose_workers_would_compute_too(tmp_path: Path, indent: str) -> None:
    """Worker processes import the script: without a guard it says so, and what to do."""
    program = tmp_path / "program.py"
    guard = "if __name__ == '__main__':\n" if indent else ""
    lines = (
        "import dask, dask_ownership",
        "dask.config.set(scheduler='ownership')",
        f"{guard}{indent}print(dask.delayed(sum)([1, 2]).compute())",
    )
    program.write_text("\n".join(lines))
    ran = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=50, cwd=tmp_path
    )
    if indent:
        assert (ran.returncode, ran.stdout) == (0, "3\n"), ran.stderr
    else:
        assert ran.returncode == 1
        assert "RuntimeError: scheduler='ownership' without a client starts worker" in ran.stderr
        assert "put the code that computes below `if __name__ ==" in ran.stderr
        if sys.version_info >= (3, 11):
            assert ran.stderr.rstrip().endswith("`if __name__ == '__main__':`")


def test_repr_and_pickle() -> None:
    import pickle

    assert pickle.loads(pickle.dumps(dask_ownership.get)) is dask_ownership.get
    assert repr(dask_ownership.get) == "<dask_ownership.get>"


def test_other_schedulers_still_work(client: Client) -> None:
    assert tree().compute(scheduler="threads") == 55
    assert tree().compute(scheduler="synchronous") == 55


def test_get_called_as_a_function(client: Client) -> None:
    assert dask_ownership.get({"x": (inc, 1), "y": (inc, "x")}, ["x", ["y"]]) == [2, [3]]


def test_threaded_options_are_ignored(client: Client) -> None:
    assert tree().compute(scheduler="ownership", num_workers=3) == 55


def test_tracebacks_have_the_users_frames_only(client: Client) -> None:
    with pytest.raises(Oops) as raised:
        dask.delayed(oops)().compute(scheduler="ownership")
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(raised.value.__traceback__)]
    # The first call of Dask stays, as Python cannot take out the frame of a ``with``.
    assert frames == [sys._getframe().f_code.co_name, "compute", "compute", "oops"]


# ---- it counts as a cluster's ----


class Target:
    """Tells when two writers, of any processes, are inside at once."""

    shape, dtype = (8,), float

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __setitem__(self, index: object, value: object) -> None:
        inside = os.path.join(self.folder, "inside")
        try:
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            Path(self.folder, f"clash-{uuid4().hex}").touch()
            return
        time.sleep(0.05)
        os.unlink(inside)


@SCHEDULERS
def test_locks_that_dask_chooses_hold_for_all_workers(
    client: Client, scheduler: object, tmp_path: Path
) -> None:
    x = da.ones(8, chunks=1)
    with dask.config.set(scheduler=scheduler):
        assert isinstance(get_scheduler_lock(x), distributed.Lock)
        da.store(x, Target(str(tmp_path)), lock=True)
    assert not list(tmp_path.glob("clash-*"))


@SCHEDULERS
def test_libraries_see_a_client_behind_it(client: Client, scheduler: object) -> None:
    """As xarray and iris look."""
    with dask.config.set(scheduler=scheduler):
        found = dask.base.get_scheduler()
        assert found.__self__ is client
        assert found == client.get
    assert dask.base.get_scheduler(scheduler="threads") != dask_ownership.get
    assert dask_ownership.get not in (dask.get, dask.threaded.get, dask.multiprocessing.get)
    assert client.submit(behind).result() == "Client"


def behind() -> str:
    with dask.config.set(scheduler="ownership"):
        found = dask.base.get_scheduler()
        assert found == distributed.get_client().get
        assert isinstance(found.__self__, distributed.Client)
        assert isinstance(get_scheduler_lock(None), distributed.Lock)
        return type(found.__self__).__name__


def test_with_the_stock_client_it_counts_as_its_get(cluster: LocalCluster) -> None:
    with distributed.Client(cluster) as stock, dask.config.set(scheduler="ownership"):
        found = dask.base.get_scheduler()
        assert found == stock.get
        assert found.__self__ is stock
        assert isinstance(get_scheduler_lock(None), distributed.Lock)
