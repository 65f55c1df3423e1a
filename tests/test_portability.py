"""Nothing of the package is for Linux only: it runs without what Windows and macOS lack.

Neither of them is tested here itself, and so not Windows' own event loops either.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from distributed import LocalCluster
from live import inc

import dask_ownership
from dask_ownership import Client, as_completed
from dask_ownership.runtime.owner import waiting

ROOT = Path(dask_ownership.__file__).parent

ELSEWHERE = {
    "modules": {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "_posixsubprocess"},
    "os": {
        "WNOHANG", "eventfd", "fork", "forkpty", "getloadavg", "getpgid", "getpgrp", "getuid",
        "killpg", "memfd_create", "mkfifo", "nice", "pidfd_open", "pipe2", "posix_spawn",
        "register_at_fork", "sched_getaffinity", "sched_setaffinity", "setpgid", "setsid",
        "sysconf", "uname", "wait4", "waitid",
    },
    "signal": {
        "SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1",
        "SIGUSR2", "alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer",
        "set_wakeup_fd", "sigwait",
    },
    "select": {"epoll", "kqueue", "poll"},
    "socket": {
        "AF_UNIX", "AF_NETLINK", "SO_REUSEPORT", "SO_BINDTODEVICE", "SO_PEERCRED",
        "TCP_KEEPCNT", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_QUICKACK", "TCP_USER_TIMEOUT",
    },
    "time": {"clock_gettime", "pthread_getcpuclockid", "tzset"},
}  # fmt: skip
"""What is not on every system, by the module that has it."""

SPECIAL_FILES = ("/proc", "/dev", "/sys")


def uses(path: Path) -> set[str]:
    """Which of these a source file names."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & ELSEWHERE["modules"]
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} & ELSEWHERE["modules"]
            found |= {
                f"{node.module}.{alias.name}"
                for alias in node.names
                if alias.name in ELSEWHERE.get(node.module or "", ())
            }
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in ELSEWHERE.get(node.value.id, ()):
                found.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.Constant) and str(node.value).startswith(
            ("/proc", "/dev", "/sys")
        ):
            found.add(str(node.value))
    return found


WITH_FALLBACK = {
    # Only the line of a report that says what machine it was.
    "benchmarks/machine.py": {"/proc/cpuinfo", "os.sched_getaffinity"},
    # Without it no keys are taken, and Ctrl-C ends it.
    "cli/keys.py": {"termios"},
}


def test_no_call_that_other_systems_lack() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): used
        for path in sorted(ROOT.rglob("*.py"))
        if (used := uses(path))
    }
    assert found == WITH_FALLBACK


PROGRAM = """
import asyncio, multiprocessing, os, select, signal, socket, subprocess, sys, threading, time
import dask, distributed, psutil

lacking = {lacking!r}
for name in lacking.pop("modules"):
    sys.modules[name] = None
home = {root!r}
real = {{}}
for module, names in lacking.items():
    # The standard library and Dask have their own versions for other systems, which were
    # chosen when they were imported: only this package is to do without.
    for name in names:
        if hasattr(sys.modules[module], name):
            real[module, name] = getattr(sys.modules[module], name)
            delattr(sys.modules[module], name)

def lookup(module):
    def __getattr__(name):
        if (module, name) in real and not sys._getframe(1).f_code.co_filename.startswith(home):
            return real[module, name]
        raise AttributeError(f"this system has no {{module}}.{{name}}")
    return __getattr__

for module in lacking:
    sys.modules[module].__getattr__ = lookup(module)

from dask_ownership import Client, as_completed, wait

def inc(x):
    return x + 1

def fan(n):
    client = distributed.get_client()
    return sum(client.gather(client.map(inc, range(n))))

def blob(n):
    return bytearray(n)

with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
    assert client.gather(client.map(inc, range(50))) == list(range(1, 51))
    assert client.submit(fan, 5, pure=False).result(timeout=20) == 15
    assert len(client.submit(blob, 200_000).result()) == 200_000
    assert client.scatter([1, 2])[1].result() == 2
    assert sorted(f.result() for f in as_completed(client.map(inc, range(5)))) == [1, 2, 3, 4, 5]
    assert dask.delayed(sum)([dask.delayed(inc)(i) for i in range(3)]).compute() == 6
    future = client.submit(time.sleep, 0.5)
    client.cancel(future)
    assert future.cancelled()
import dask_ownership.benchmarks.machine
print("it ran", dask_ownership.benchmarks.machine.describe()["cores"] > 0)
"""


def test_runs_without_what_other_systems_lack(tmp_path: Path) -> None:
    """The client, the executors and the scheduler plugin, in one process that lacks all of it."""
    program = tmp_path / "program with a space.py"
    # Linux' own `socket.socketpair` looks for AF_UNIX among the names of its module.
    lacking = {**ELSEWHERE, "socket": ELSEWHERE["socket"] - {"AF_UNIX"}}
    program.write_text(PROGRAM.format(lacking=lacking, root=str(ROOT)), encoding="utf-8")
    run = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=50)
    assert run.stdout == "it ran True\n", run.stderr[-3000:]


SPAWNED = """
import os
import dask
from dask_ownership import Client, get_client, wait

TABLE = {name: len(name) for name in ("one", "three")}

class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b

def make(name):
    return Pair(name, TABLE[name])

def nested(names):
    client = get_client()
    return [pair.b for pair in client.gather(client.map(make, names))]

def main():
    with Client(n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
        pair = client.submit(make, "three").result(timeout=20)
        assert (type(pair), pair.b) == (Pair, 5)
        assert client.submit(nested, ["one", "three"]).result(timeout=20) == [3, 5]
        print(client.submit(os.getpid).result() != os.getpid())

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_how_workers_are_started(tmp_path: Path, method: str) -> None:
    """What a script defines reaches its workers, which import the script anew."""
    program = tmp_path / "script.py"
    program.write_text(SPAWNED, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-W", "error", program],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, "DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": method},
    )
    assert run.stdout == "True\n", run.stderr[-3000:]


def test_waits_where_locks_hear_no_signals(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows, Ctrl-C does not wake a thread that waits for a lock: it looks up by itself."""
    monkeypatch.setattr(waiting, "DEAF", 0.02)
    with Client(cluster, set_as_default=False) as client:
        assert client.submit(inc, 1, pure=False).result() == 2
        assert sum(f.result() for f in as_completed(client.map(inc, range(10)))) == 55
        with pytest.raises(TimeoutError):
            client.submit(time.sleep, 0.3, pure=False).result(timeout=0.1)
    closed = threading.Lock()
    closed.acquire()
    started = time.perf_counter()
    assert not waiting.acquired(closed, 0.1)
    assert 0.09 < time.perf_counter() - started < 1
    assert not waiting.acquired(closed, 0)
    threading.Timer(0.05, closed.release).start()
    assert waiting.acquired(closed, -1)
