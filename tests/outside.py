"""A process that reaches one port of this machine, as a laptop reaches the scheduler of a cluster.

``python outside.py ADDRESS PROGRAM [ARGUMENTS ...]`` runs a program in a network namespace of its
own, where only ``tcp://127.0.0.1:PORT`` leads anywhere: to the scheduler at ADDRESS. The program
finds it in the environment variable ``SCHEDULER``.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
UP = 1


def namespaces_allowed() -> bool:
    """Whether a process may have a network of its own here."""
    return subprocess.run([sys.executable, __file__, "try"], check=False).returncode == 0


def unshare_network() -> None:
    """Leave the network of this machine for one that has nothing but a loopback device."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = CLONE_NEWNET if os.geteuid() == 0 else CLONE_NEWNET | CLONE_NEWUSER
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), "no network namespace can be made here")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", UP))


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Pass on what comes, until that ends."""
    try:
        while data := source.recv(1 << 18):
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def serve(listener: socket.socket, connect: tuple[int, object]) -> None:
    """Pass connections on to another address, for as long as this process lives."""
    family, address = connect
    while True:
        here, _ = listener.accept()
        there = socket.socket(family)
        try:
            there.connect(address)  # type: ignore[arg-type]
        except OSError:
            here.close()
            continue
        for end in (here, there):
            if end.family == socket.AF_INET:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for ends in ((here, there), (there, here)):
            threading.Thread(target=pump, args=ends, daemon=True).start()


def run(address: str, command: list[str]) -> int:
    """Run a program that reaches the scheduler only; its exit status."""
    scheme, _, location = address.rpartition("://")
    host, _, port = location.rpartition(":")
    with tempfile.TemporaryDirectory() as folder:
        door = str(Path(folder) / "door")
        outer = socket.socket(socket.AF_UNIX)
        outer.bind(door)
        outer.listen(128)
        child = os.fork()
        if child == 0:
            try:
                serve(outer, (socket.AF_INET, (host, int(port))))
            finally:
                os._exit(1)
        outer.close()
        try:
            unshare_network()
            inner = socket.create_server(("127.0.0.1", 0), backlog=128)
            threading.Thread(
                target=serve, args=(inner, (socket.AF_UNIX, door)), daemon=True
            ).start()
            there = f"{scheme}://127.0.0.1:{inner.getsockname()[1]}"
            done = subprocess.run(command, check=False, env={**os.environ, "SCHEDULER": there})
            return done.returncode
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)


if __name__ == "__main__":
    if sys.argv[1:] == ["try"]:
        unshare_network()
    else:
        sys.exit(run(sys.argv[1], sys.argv[2:]))
