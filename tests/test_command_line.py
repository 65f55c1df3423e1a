"""``dask ownership ...``: the commands, run as a user runs them."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import dask
import distributed
import pytest
from distributed import LocalCluster
from live import blob, boom, inc, small_cluster, until
from proxy import workers_behind_proxies
from terminals import Terminal, all_at_once, ownership

import dask_ownership
from dask_ownership import Client
from dask_ownership.runtime.comm.link import PROTOCOL


@pytest.fixture(scope="module")
def bare() -> Iterator[LocalCluster]:
    """A cluster that no dask_ownership.Client has met."""
    with small_cluster(n_workers=1) as cluster:
        yield cluster


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def in_one_line(done: Any) -> str:
    """The error of a command that failed, which is one line and no traceback."""
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: ")
    return str(line)


def test_version() -> None:
    done = ownership("version")
    assert done.returncode == 0, done.stderr
    assert dict(line.split() for line in done.stdout.splitlines()) == {
        "dask_ownership": dask_ownership.__version__,
        "dask": dask.__version__,
        "distributed": distributed.__version__,
        "python": platform.python_version(),
        "protocol": str(PROTOCOL),
    }


def test_check_of_a_cluster_that_is_well(client: Client) -> None:
    sessions = client.run(sessions_here)
    with Terminal("check", client.scheduler.address, columns=100) as terminal:
        assert terminal.wait() == 0
        text = terminal.text
    assert "PROBLEM" not in text
    assert "\x1b[" in terminal.output  # in colour
    whole = " ".join(text.split())
    for line in (
        f"ok scheduler {client.scheduler.address} answers in",
        f"ok versions dask_ownership {dask_ownership.__version__}, dask {dask.__version__}",
        "here, at the scheduler and at 2 workers",
        f"ok plugin installed at the scheduler, protocol {PROTOCOL}",
        "ok worker plugin installed at 2 workers",
        "ok reachable all 2 workers from here",
        "ok security no TLS",
        "shared memory",
    ):
        assert line in whole
    assert all(len(line) <= 100 for line in text.splitlines())
    # Nothing is left of the owner that looked.
    until(lambda: client.run(sessions_here) == sessions)


def sessions_here(dask_worker: Any) -> list[str]:
    return sorted(dask_worker.extensions["dask-ownership"].executor.core.sessions)


def test_check_while_others_come_and_go(cluster: LocalCluster) -> None:
    """The scheduler tells all owners who is gone, that of the check as well."""
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            with Client(cluster, set_as_default=False) as other:
                other.scatter(1)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        checks = all_at_once(*[("check", cluster.scheduler_address)] * 6)
    finally:
        stop.set()
        thread.join()
    assert {(done.returncode, done.stderr) for done in checks} == {(0, "")}


def test_check_of_a_cluster_without_the_plugin(bare: LocalCluster) -> None:
    """That is no problem: the first client installs it. `check` leaves the cluster without."""
    for _ in range(2):
        done = ownership("check", bare.scheduler_address)
        assert done.returncode == 0
        assert done.stderr == ""
        assert "PROBLEM" not in done.stdout
        [line] = [line for line in done.stdout.splitlines() if line.startswith("-        plugin")]
        assert "not installed at the scheduler yet: the first dask_ownership.Client" in line
        assert "--preload dask_ownership.preload" in line
        assert "ok       reachable      all 1 workers from here" in done.stdout
    assert "dask-ownership" not in bare.scheduler.plugins
    with distributed.Client(bare, set_as_default=False) as stock:
        extensions = stock.run(lambda dask_worker: list(dask_worker.extensions))
        assert not [name for names in extensions.values() for name in names if "owner" in name]


def test_check_of_a_worker_behind_a_closed_port() -> None:
    with workers_behind_proxies(2) as (scheduler, behind):
        with Client(scheduler, set_as_default=False) as installs:
            until(lambda: len(installs.owner.core.placement.workers) == 2, 20)
        behind[0].proxy.stall()  # a firewall that drops
        done = ownership("check", scheduler, "--timeout", "1")
        assert done.returncode == 1
        assert done.stderr == ""
        [problem] = [line for line in done.stdout.splitlines() if line.startswith("PROBLEM")]
        assert f"1 of 2 workers are not, from here: {behind[0].address}" in problem
        assert "no answer within 1 s" in problem
        assert "--contact-address" in problem
        assert "ok       worker plugin  installed at 1 workers" in done.stdout
        behind[0].proxy.go_on()


def test_check_of_wrong_addresses(bare: LocalCluster) -> None:
    nobody = f"tcp://127.0.0.1:{free_port()}"
    worker = bare.workers[0].worker_address
    with socket.create_server(("127.0.0.1", 0)) as listener:
        silent = f"127.0.0.1:{listener.getsockname()[1]}"
        done = all_at_once(
            ("check", nobody),
            ("check", "127.0.0.1"),
            ("check", worker),
            ("check", silent, "--timeout", "0.5"),
            ("check", f"{bare.dashboard_link}"),
            ("check", bare.dashboard_link.split("/")[2], "--timeout", "1"),
        )
    refused, portless, no_scheduler, unanswered, page, server = map(in_one_line, done)
    assert "is the address of a web page, such as the dashboard" in page
    assert "a web server answers there, such as a dashboard" in server
    assert f"{nobody} cannot be reached: nothing listens there" in refused
    assert "give HOST:PORT" in portless
    assert f"{worker} is a Worker and no scheduler" in no_scheduler
    assert f"tcp://{silent} cannot be reached: no answer within 0.5 s" in unanswered


def test_check_speaks_tls(tmp_path: Any, bare: LocalCluster) -> None:
    security = distributed.Security.temporary()
    files = {}
    for name, text in (
        ("ca-file", security.tls_ca_file),
        ("cert", security.tls_client_cert),
        ("key", security.tls_client_key),
    ):
        files[name] = tmp_path / name
        files[name].write_text(text)
    options = [word for name in files for word in (f"--tls-{name}", str(files[name]))]
    with (
        small_cluster(n_workers=1, protocol="tls", security=security) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        address = client.scheduler.address
        other = bare.scheduler_address[len("tcp://") :]
        done, *wrong = all_at_once(
            ("check", address, *options),
            ("check", address),
            ("check", address.replace("tls://", "tcp://"), "--timeout", "1"),
            ("check", other, *options),
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok       security       TLS between here, the scheduler and all" in done.stdout
    without, plain, encrypted = map(in_one_line, wrong)
    assert "it speaks TLS: give --tls-ca-file" in without
    assert "does it speak TLS" in plain
    assert "it does not speak TLS" in encrypted


# ---- top ----


def fan(n: int) -> int:
    client = distributed.get_client()
    return sum(client.gather(client.map(inc, range(n), pure=False)))


@contextlib.contextmanager
def busy(client: Client) -> Iterator[None]:
    """Something to see: tasks of the client, of tasks, and one that fails."""
    kept = [client.submit(blob, pure=False), client.submit(boom, pure=False)]
    distributed.wait(kept)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            client.gather([client.submit(fan, 20, pure=False) for _ in range(3)])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (120, 30)])
def test_top(client: Client, workers: list[str], columns: int, rows: int) -> None:
    name = client.id[: len("Client-12345678")]
    with (
        busy(client),
        Terminal("top", client.scheduler.address, columns=columns, rows=rows) as terminal,
    ):
        terminal.until(lambda: re.search(r"[1-9]\d* tasks/s", terminal.frame))
        frame = ""

        def complete() -> bool:
            """What is read in the middle of drawing is not all of it."""
            nonlocal frame
            frame = terminal.frame
            drawn = frame.count("\n") + 1 == rows
            return drawn and all(worker in frame for worker in workers) and name in frame

        terminal.until(complete)
        lines = frame.split("\n")
        assert len(lines) == rows
        assert max(map(len, lines)) <= columns
        assert client.scheduler.address in lines[0]
        assert re.search(r"\d+ pending  \d+ running on 2 threads", frame)
        assert re.search(r"[1-9]\d* failed", frame)
        assert "workers (2)" in frame
        assert re.search(rf"{name} +\d", frame)
        assert all(frame.count(worker) >= 2 for worker in workers)  # each is an owner, too
        assert ("spilled" in frame) == (columns == 120)
        assert lines[-1].startswith("sort by")
        failed = client.submit(boom, pure=False)
        terminal.until(lambda: f"error {name} boom" in terminal.frame)
        del failed
        terminal.press("n")  # by name
        terminal.until(lambda: in_order(terminal.frame))
        terminal.press("q")
        assert terminal.wait() == 0
        assert terminal.restored
        assert "Traceback" not in terminal.text


def in_order(frame: str) -> bool:
    """Whether owners and workers are sorted by their names."""
    parts = [
        re.findall(r"^(tcp://\S+|Client-\w+) ", part, re.M) for part in frame.split("workers (")
    ]
    return all(names and names == sorted(names) for names in parts)


def test_top_ends_by_a_signal_and_restores_the_terminal(client: Client) -> None:
    with ExitStack() as stack:
        both = [stack.enter_context(Terminal("top", client.scheduler.address)) for _ in range(2)]
        for terminal, number in zip(both, (signal.SIGTERM, signal.SIGINT), strict=True):
            terminal.until(lambda terminal=terminal: "sort by" in terminal.frame)
            terminal.process.send_signal(number)
        for terminal in both:
            assert terminal.wait() == 0
            assert terminal.restored
            assert "Traceback" not in terminal.text


def test_top_once(client: Client, workers: list[str]) -> None:
    """Its numbers are those of the owner."""
    futures = client.map(inc, range(50), pure=False)
    client.gather(futures)
    failed = client.submit(boom, pure=False)
    distributed.wait(failed)
    counts = client.ownership().counts
    done = ownership("top", "--once", client.scheduler.address)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    name = client.id[: len("Client-12345678")]
    [line] = [line for line in done.stdout.splitlines() if line.startswith(name)]
    cells = line.split()
    assert cells[2:4] == ["0", "0"]  # pending, running
    assert cells[5] == str(counts["failed"]) == "1"
    assert all(worker in done.stdout for worker in workers)
    assert "\x1b" not in done.stdout


def test_top_without_what_it_needs(bare: LocalCluster) -> None:
    nobody = f"tcp://127.0.0.1:{free_port()}"
    refused, without = all_at_once(("top", nobody), ("top", bare.scheduler_address))
    assert "nothing listens there" in in_one_line(refused)
    assert "the plugin is not installed at the scheduler" in in_one_line(without)
    assert "dask-ownership" not in bare.scheduler.plugins


def test_top_ends_when_the_scheduler_does() -> None:
    with ExitStack() as stack:
        cluster = stack.enter_context(small_cluster(n_workers=1))
        with Client(cluster, set_as_default=False) as client:
            terminal = stack.enter_context(Terminal("top", client.scheduler.address))
            terminal.until(lambda: "sort by" in terminal.frame)
        cluster.close()
        assert terminal.wait() == 1
        assert terminal.restored
        assert re.search(r"Error: tcp://\S+ did not answer: .+\n$", terminal.text)
        assert "Traceback" not in terminal.text


# ---- bench ----


def test_bench_on_a_cluster_that_is_there(client: Client) -> None:
    """It measures there, and leaves workers alone."""
    address = client.scheduler.address
    before = client.run(os.getpid)
    options = ["--quick", "--repeat", "1", "--size", "5", "--engines", "ownership"]
    done = ownership("bench", "--address", address, *options, "--cases", "chain,recovery")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"the cluster at {address}" in done.stdout
    assert f"`dask ownership bench --address {address} --quick" in done.stdout
    assert re.search(r"chain of 5 inc +s +\d", done.stdout)
    assert client.run(os.getpid) == before


def test_bench_has_the_options_of_the_benchmarks() -> None:
    told, wrong = all_at_once(
        ("bench", "--help"), ("bench", "--address", "localhost:1", "--engines", "ray")
    )
    assert told.returncode == 0
    assert told.stdout.startswith("usage: dask ownership bench ")
    assert "--engines" in told.stdout and "--address" in told.stdout
    assert wrong.returncode == 2
    assert "--address is not for ray" in wrong.stderr
