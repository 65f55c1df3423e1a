"""What is logged: a line for each event that an operator cares about, and no others."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from distributed.comm import connect
from distributed.core import Status
from live import blob, inc, kill, slowinc, small_cluster, until, wait_for_members

from dask_ownership import Client, wait
from dask_ownership.runtime.comm.link import PROTOCOL

NORMAL = """
import logging
from dask_ownership import Client
from distributed import get_client

def inc(x):
    return x + 1

def fan(n):
    client = get_client()
    return sum(client.gather(client.map(inc, range(n), pure=False)))

if __name__ == "__main__":
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
        kept = client.submit(bytearray, 300_000)
        print(sum(client.gather(client.map(inc, range(100)))), client.submit(fan, 20).result())
        print(len(client.gather(client.map(len, [kept] * 3, pure=False))))
"""


LEFT_OPEN = """
from dask_ownership import Client

if __name__ == "__main__":
    client = Client(n_workers=1, threads_per_worker=1, dashboard_address=":0")
    print(client.submit(abs, -1).result())
"""


@pytest.mark.parametrize(
    ("text", "output"), [(NORMAL, "5050 210\n3\n"), (LEFT_OPEN, "1\n")], ids=["closed", "left open"]
)
def test_a_normal_run_says_nothing(tmp_path: Path, text: str, output: str) -> None:
    """Nothing is configured: what is a warning would be on standard error.

    At the end of a program that leaves its client open, the cluster closes before the client.
    """
    program = tmp_path / "normal.py"
    program.write_text(text)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        capture_output=True,
        text=True,
        timeout=40,
        env={**os.environ, "DASK_LOGGING__DISTRIBUTED": "critical"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, output, "")


def test_a_process_that_counts_as_gone_warns_of_nothing(caplog: Any) -> None:
    """As at the end of a cluster, whose workers hear that one is gone while it still links."""

    def drop(owner: str, dask_worker: Any) -> None:
        dask_worker.extensions["dask-ownership"].executor.drop_owner(owner)

    with small_cluster(n_workers=1) as cluster, Client(cluster, set_as_default=False) as client:
        assert client.submit(inc, 1).result() == 2
        with caplog.at_level(logging.INFO, "dask_ownership"):
            client.run(drop, client.owner.incarnation)
            until(lambda: "was told that this owner is gone" in caplog.text)
        assert not lines(caplog, logging.WARNING)


def test_a_worker_that_closes_is_no_warning_to_owners_that_dial_it(caplog: Any) -> None:
    """Its operations are refused already, and the scheduler has not told of its end yet."""

    def close(dask_worker: Any) -> None:
        plugin = dask_worker.extensions["dask-ownership"]
        plugin.server.close()
        dask_worker.status = Status.closing
        for link in plugin.executor.links.values():
            link.channel.abort()

    with small_cluster(n_workers=1) as cluster, Client(cluster, set_as_default=False) as client:
        assert client.submit(inc, 1).result() == 2
        with caplog.at_level(logging.INFO, "dask_ownership"):
            client.run(close)
            until(lambda: "is closing" in caplog.text)
        assert not lines(caplog, logging.WARNING)
        kill(client, *client.scheduler_info()["workers"])  # it would not end by itself


def lines(caplog: Any, level: int = logging.INFO) -> list[str]:
    """What this project logged here, with addresses and times taken out."""
    return [
        re.sub(
            r"it used [\w. ]+ when last heard of",
            "MEMORY",
            re.sub(
                r"tcp://[\d.]+:\d+", "ADDRESS", re.sub(r"[\d.e-]+ s$", "T s", record.getMessage())
            ),
        )
        for record in caplog.records
        if record.name.startswith("dask_ownership") and record.levelno >= level
    ]


def test_a_death_is_told_of_in_exactly_these_lines(caplog: Any) -> None:
    with (
        small_cluster() as cluster,
        Client(cluster, set_as_default=False, name="me") as client,
    ):
        first, second = wait_for_members(client, 2)
        large = [client.submit(blob, 200_000 + i, workers=first, pure=False,
                               allow_other_workers=True) for i in range(3)]  # fmt: skip
        wait(large)
        there = sum(client.ownership(future).locations == [first] for future in large)
        running = client.submit(
            slowinc, 1, delay=1, workers=first, allow_other_workers=True, pure=False
        )
        until(lambda: client.ownership(running).worker == first)
        client.submit(inc, 1, workers=second, pure=False).result()  # both are linked
        me = client.id
        with caplog.at_level(logging.INFO, "dask_ownership"):
            kill(client, first)
            assert running.result(timeout=20) == 2
            wait(large)
            wait_for_members(client, 2)  # the nanny started another
            until(lambda: "has the values again" in caplog.text)
        # Scheduler and client are in this process; each has an owner.
        # So have the clients of other tests, some of which are given up about now.
        others = ("the scheduler ", "the client ")
        told = [line for line in lines(caplog) if not line.startswith(others)]
        made = f"{there} value{'s' * (there != 1)}"
        lost = (
            f"{me} lost worker ADDRESS, which left the cluster (unexpectedly; MEMORY): 1 task to "
            f"run again elsewhere, {made} to be made again, 0 values lost, 0 tasks failed"
        )
        assert sorted(told) == sorted(
            [
                next(line for line in told if line.startswith("the link to ADDRESS is lost")),
                lost,
                f"{me} may use 1 worker more: ADDRESS",
                f"{me} has the values again that it had lost, after T s",
            ]
        )
        warnings = [line for line in lines(caplog, logging.WARNING) if line.startswith(me)]
        assert warnings == [lost]
        assert "Traceback" not in caplog.text


def test_a_worker_that_is_retired_is_no_warning(caplog: Any) -> None:
    with small_cluster() as cluster, Client(cluster, set_as_default=False) as client:
        first, _ = wait_for_members(client, 2)
        kept = client.submit(blob, 300_000, workers=first, pure=False, allow_other_workers=True)
        wait(kept)
        with caplog.at_level(logging.INFO, "dask_ownership"):
            client.retire_workers([first])
            wait_for_members(client, 1)
        assert lines(caplog, logging.WARNING) == []
        assert f"lost worker {first}, which left the cluster, and nothing with it" in caplog.text
        assert len(kept.result()) == 300_000


@pytest.mark.parametrize("set_up", [False, True])
def test_lines_of_programs_that_set_up_no_logging(set_up: bool) -> None:
    """They look as Dask's; a program that sets logging up has each line once, in its format."""
    program = (
        "import logging, dask_ownership\n"
        f"if {set_up}: logging.basicConfig(format='mine: %(message)s')\n"
        "logging.getLogger('dask_ownership.owner').warning('a worker is gone')\n"
        "logging.getLogger('dask_ownership.owner').info('a worker came')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50
    )
    line = (
        r"mine: a worker is gone"
        if set_up
        else (r"[-0-9]+ [:,0-9]+ - dask_ownership\.owner - WARNING - a worker is gone")
    )
    assert re.fullmatch(line + "\n", ran.stderr)


def test_strangers_are_logged_once(caplog: Any) -> None:
    async def knock(address: str) -> Any:
        comm = await connect(address)
        await comm.write(
            {"op": "ownership_link", "owner": "\n", "protocol": PROTOCOL, "token": "x"}
        )
        try:
            return await comm.read()
        finally:
            comm.abort()

    with (
        small_cluster(n_workers=1, processes=False, protocol="tcp://") as cluster,
        caplog.at_level(logging.INFO, "dask_ownership"),
        Client(cluster, set_as_default=False) as client,
    ):
        [address] = wait_for_members(client, 1)
        for _ in range(3):
            assert asyncio.run(knock(address))["status"] == "refused"
        told = lines(caplog)
        assert sum("is refused" in line for line in told) == 1
        assert any(line.startswith("an owner at tcp://127.0.0.1 is refused:") for line in told)
        assert "dask_ownership is installed here, and at 1 workers: owners may join" in told
        assert "dask_ownership is installed at ADDRESS" in told


@pytest.mark.parametrize("level", ["INFO", "WARNING"])
def test_links_that_break_are_opened_again(client: Client, caplog: Any, level: str) -> None:
    """Information, and no warning: it is what links are for."""
    client.gather(client.map(inc, range(10), pure=False))
    view = next(v for v in client.owner.core.placement.workers.values() if v.link is not None)
    with caplog.at_level(level, "dask_ownership"):
        client.loop.add_callback(view.link._channel.abort)
        until(lambda: not view.link.connected)
        until(lambda: view.link.connected)
        assert client.submit(inc, 1, workers=view.address, pure=False).result() == 2
    if level == "WARNING":
        assert lines(caplog) == []
    else:
        lost, again = lines(caplog)
        assert lost.startswith("the link to ADDRESS is lost, and dialled again: ")
        assert again == "the link to ADDRESS is open again after T s"
