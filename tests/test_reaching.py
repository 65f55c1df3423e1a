"""Workers that a client has no route to, and other protocols than TCP over IPv4."""

from __future__ import annotations

import socket
import time
from typing import Any

import dask
import pytest
from live import blob, inc, small_cluster, total, until, wait_for_members, where
from proxy import workers_behind_proxies

from dask_ownership import Client, wait
from dask_ownership.errors import NoWorker
from dask_ownership.runtime.owner import members


def test_no_route_to_a_worker(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Others do the work; what may run nowhere else fails and says why; later it is back."""
    monkeypatch.setattr(members, "REACHED_AGAIN", 3.0)
    with workers_behind_proxies(2) as (scheduler, behind):
        with Client(scheduler, set_as_default=False) as installs:
            until(lambda: len(installs.owner.core.placement.workers) == 2, 20)
        bad, good = behind
        bad.proxy.stall()
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
            Client(scheduler, set_as_default=False) as client,
        ):
            started = time.monotonic()
            pinned = client.submit(where, workers=bad.address, pure=False, key="pinned")
            assert client.gather(client.map(inc, range(20), pure=False)) == list(range(1, 21))
            with pytest.raises(NoWorker, match="'pinned'") as info:
                pinned.result(timeout=20)
            assert time.monotonic() - started < 10
            for text in (bad.address, "cannot be reached from here", "2 s", "--contact-address"):
                assert text in str(info.value)
            assert "cannot be reached" in caplog.text
            assert client.submit(where, pure=False).result(timeout=5) == good.address
            bad.proxy.go_on()
            until(lambda: len(client.owner.core.placement.workers) == 2, 10)
            again = client.submit(where, workers=bad.address, pure=False)
            assert again.result(timeout=10) == bad.address


def test_no_route_to_any_worker() -> None:
    """The error comes by itself, at whatever is waited for."""
    with workers_behind_proxies(1) as (scheduler, [bad]):
        with Client(scheduler, set_as_default=False) as installs:
            until(lambda: len(installs.owner.core.placement.workers) == 1, 20)
        bad.proxy.stall()
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
            Client(scheduler, set_as_default=False) as client,
        ):
            for wanted in (client.submit(inc, 1), client.compute(dask.delayed(inc)(2))):
                with pytest.raises(NoWorker, match="cannot be reached from here"):
                    wanted.result(timeout=10)
            with pytest.raises((NoWorker, OSError)):
                client.scatter(b"x", timeout=1)


def fan(address: str) -> list[Any]:
    from distributed import get_client

    client = get_client()
    futures = client.map(inc, range(10), workers=address, pure=False)
    large = client.submit(blob, 300_000, workers=address, pure=False)
    return [sum(client.gather(futures)), len(large.result()), large]


def ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as found:
            found.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("where_to", ["ws", "inproc", "ipv6"])
def test_other_protocols(where_to: str) -> None:
    options: dict[str, Any] = {
        "ws": {"protocol": "ws://"},
        "inproc": {"processes": False, "protocol": "inproc://"},
        "ipv6": {"host": "tcp://[::1]"},
    }[where_to]
    if where_to == "ipv6" and not ipv6():
        pytest.skip("this machine has no IPv6")
    with small_cluster(**options) as cluster, Client(cluster, set_as_default=False) as client:
        one, two = wait_for_members(client, 2)
        begins = {"ws": "ws://", "inproc": "inproc://", "ipv6": "tcp://[::1]:"}[where_to]
        assert one.startswith(begins)
        assert client.gather(client.map(inc, range(50))) == list(range(1, 51))
        value = client.submit(blob, 300_000, workers=one)
        wait(value)
        assert client.submit(len, value, workers=two).result(timeout=10) == 300_000
        assert len(value.result(timeout=10)) == 300_000
        put = client.scatter([1, 2], workers=[two])
        assert client.submit(total, *put, workers=one).result(timeout=10) == 3
        done, size, borrowed = client.submit(fan, two, workers=one, pure=False).result(timeout=10)
        assert (done, size, len(borrowed.result(timeout=10))) == (55, 300_000, 300_000)
