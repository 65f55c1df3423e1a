"""Whoever can connect can send anything: what is not of the cluster is refused, briefly.

A failure prints the seed, with which it happens again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import distributed
import pytest
from distributed import LocalCluster
from distributed.comm import connect
from live import inc, small_cluster, until, wait_for_members

from dask_ownership import Client
from dask_ownership.runtime.comm.link import PROTOCOL
from dask_ownership.runtime.comm.operations import LONGEST_REASON
from dask_ownership.runtime.comm.scheduler_ops import (
    BACKLOG,
    DIAL,
    HOLD,
    JOIN,
    RELAY,
    RELEASE_HOLD,
    REPORT,
    WHERE,
    WORD,
)

AT_WORKERS: dict[str, dict[str, Any]] = {
    "ownership_link": {
        "owner": "stranger", "protocol": PROTOCOL, "token": "", "received": 0, "stream": True,
        "name": "", "address": "", "to": "",
    },
    "ownership_get": {"owner": "stranger", "names": [("x", 1)], "reader": "stranger", "token": ""},
    "ownership_put": {"owner": "stranger", "data": [], "token": ""},
    "ownership_leave": {"timeout": 0.01, "move": False, "wait": False, "token": ""},
    REPORT: {"token": ""},
}  # fmt: skip
AT_SCHEDULER: dict[str, dict[str, Any]] = {
    JOIN: {
        "owner": "stranger", "client": "", "worker": "", "protocol": PROTOCOL, "secret": "",
        "known": [],
    },
    DIAL: {"owner": "stranger", "dialler": "stranger", "token": ""},
    WHERE: {"keys": ["x"], "asker": "stranger", "token": ""},
    RELAY: {"target": "tcp://127.0.0.1:1", "asker": "stranger", "token": ""},
    HOLD: {
        "hold": "x", "asker": "stranger", "owner": ["stranger", "", ""], "origins": [],
        "functions": [], "tasks": [], "token": "",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def local() -> Iterator[LocalCluster]:
    with small_cluster(processes=False, protocol="tcp://") as cluster:
        yield cluster


def odd(r: random.Random) -> Any:
    """Something of any type and size that a message can have in it."""
    return r.choice(
        [
            None, True, False, -1, 0, 2**62, 1.5, float("nan"), "",
            "x" * r.choice([1, 300, 300_000]),
            "ä\n\x00", b"", b"x" * 1000, [], [None], [["x", 1]], list(range(1000)), {}, {"a": [1]},
            {"op": "close"}, [[[[[]]]]],
        ]
    )  # fmt: skip


def messages(r: random.Random, operation: str, usual: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """As a stranger may send them: right but for the token, and with anything in them."""
    yield {"op": operation, **usual}
    yield {"op": operation}
    for name in usual:
        yield {"op": operation, **usual, name: odd(r)}
        yield {"op": operation, **{one: value for one, value in usual.items() if one != name}}
    for _ in range(10):
        yield {"op": operation, **{name: odd(r) for name in usual}, "more": odd(r)}


async def ask(address: str, message: dict[str, Any]) -> Any:
    comm = await connect(address, timeout=3)
    try:
        await comm.write({**message, "reply": True})
        return await asyncio.wait_for(comm.read(), 3)
    finally:
        comm.abort()


def check_refused(answer: Any, message: Any) -> None:
    assert isinstance(answer, dict), (answer, message)
    assert answer.get("status") in ("refused", "prove", "unknown"), (answer, message)
    assert set(answer) == {"status", "reason"}, answer
    assert len(answer["reason"]) <= LONGEST_REASON


def left_by_strangers(cluster: LocalCluster) -> dict[str, int]:
    plugin = cluster.scheduler.extensions["dask-ownership"]
    sides = [worker.extensions["dask-ownership"] for worker in cluster.workers.values()]
    return {
        "owners": len(plugin.roster.owners),
        "absent": len(plugin.roster.absent),
        "holds": len(plugin.holding.holds),
        "sessions": sum(len(side.executor.core.sessions) for side in sides),
        "links": sum(len(side.executor.links) for side in sides),
        "values": sum(len(side.executor.store.sizes) for side in sides),
        "rows": len(plugin.holding.owner.core.table.rows),
    }


@pytest.mark.parametrize("seed", [pytest.param(random.randrange(2**32), id="random")])
def test_strangers_get_nothing_and_leave_nothing(
    local: LocalCluster, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    print(f"seed {seed}")
    r = random.Random(seed)
    with Client(local, set_as_default=False) as client:
        address = wait_for_members(client, 2)[0]
        assert client.gather(client.map(inc, range(10))) == list(range(1, 11))
        before = left_by_strangers(local)

        async def knock() -> None:
            for where, operations in (
                (address, AT_WORKERS),
                (local.scheduler_address, AT_SCHEDULER),
            ):
                for operation, usual in operations.items():
                    for message in messages(r, operation, usual):
                        check_refused(await ask(where, message), message)

        with caplog.at_level("INFO"):
            asyncio.run(knock())
        assert left_by_strangers(local) == before
        assert max(map(len, caplog.messages), default=0) < 3 * LONGEST_REASON
        assert client.submit(inc, 5, workers=[address], pure=False).result(timeout=10) == 6


@pytest.mark.parametrize("seed", [pytest.param(random.randrange(2**32), id="random")])
def test_members_that_send_nonsense_harm_nobody(local: LocalCluster, seed: int) -> None:
    """With the right token: what does not fit the handler is refused."""
    print(f"seed {seed}")
    r = random.Random(seed)
    with (
        Client(local, set_as_default=False) as client,
        Client(local, set_as_default=False) as other,
    ):
        address = wait_for_members(client, 2)[0]
        me = {"token": other.owner.token}
        mine = other.owner.incarnation

        async def knock() -> None:
            for where, operation, usual in (
                (address, "ownership_get", {"owner": mine, "names": [], "reader": mine}),
                (address, "ownership_put", {"owner": mine, "data": []}),
                (local.scheduler_address, DIAL, {"owner": "x", "dialler": mine}),
                (local.scheduler_address, WHERE, {"keys": [], "asker": mine}),
            ):
                for name in usual:
                    if usual[name] == mine:
                        continue
                    for _ in range(8):
                        message = {"op": operation, **usual, **me, name: odd(r)}
                        await ask(where, message)  # it answers, whatever

        asyncio.run(knock())
        assert client.submit(inc, 5, workers=[address], pure=False).result(timeout=10) == 6


def test_a_token_is_good_for_its_owner_only(local: LocalCluster) -> None:
    with (
        Client(local, set_as_default=False) as client,
        Client(local, set_as_default=False) as other,
    ):
        address = wait_for_members(client, 2)[0]
        stolen = {"token": other.owner.token}
        victim = client.owner.incarnation
        for operation, usual in AT_WORKERS.items():
            names = {name: victim for name in ("owner", "reader") if name in usual}
            message = {"op": operation, **usual, **names, **stolen}
            check_refused(asyncio.run(ask(address, message)), message)
        for operation, usual in AT_SCHEDULER.items():
            names = {name: victim for name in ("asker", "dialler") if name in usual}
            if operation == JOIN:
                names = {"owner": victim, "client": client.id, "secret": stolen["token"]}
            message = {"op": operation, **usual, **names, **(stolen if operation != JOIN else {})}
            check_refused(asyncio.run(ask(local.scheduler_address, message)), message)


def test_nobody_says_anything_for_another_client(local: LocalCluster) -> None:
    with (
        Client(local, set_as_default=False),
        distributed.Client(local, set_as_default=False) as victim,
        distributed.Client(local, set_as_default=False) as attacker,
    ):
        scheduler = local.scheduler
        plugin = scheduler.extensions["dask-ownership"]
        attacker._send_to_scheduler({"op": WORD, "client": victim.id, "sender": "x", "word": "x"})
        attacker._send_to_scheduler({"op": BACKLOG, "client": victim.id, "tasks": 1_000})

        async def join(client: str) -> Any:
            request = {"client": client, "secret": "x", "protocol": PROTOCOL}
            return await getattr(attacker.scheduler, JOIN)(owner="abcdef", **request)

        until(lambda: attacker.sync(join, attacker.id)["status"] == "OK", what="its own word")
        assert attacker.sync(join, victim.id)["status"] == "prove"
        assert plugin.backlogs == {attacker.id: 1_000}
        with Client(local, set_as_default=False) as another:
            assert another.submit(inc, 1, pure=False).result(timeout=20) == 2


def test_nobody_lets_go_of_what_another_owner_has_put_at_the_cluster(local: LocalCluster) -> None:
    with (
        Client(local, set_as_default=False) as putter,
        Client(local, set_as_default=False) as other,
        distributed.Client(local, set_as_default=False) as stranger,
    ):
        queue = distributed.Queue("kept", client=putter)
        queue.put(putter.submit(inc, 1, pure=False))
        plugin = local.scheduler.extensions["dask-ownership"]
        (hold,) = plugin.holding.holds
        owner = putter.owner.incarnation
        mine = {"owner": other.owner.incarnation, "token": other.owner.token}
        for taken in (True, False):
            for more in ({}, {"owner": owner}, {"owner": owner, "token": "x"}, mine, {"owner": []}):
                message = {"op": RELEASE_HOLD, "hold": hold, "taken": taken, **more}
                other._send_to_scheduler(message)
                stranger._send_to_scheduler(message)
                stranger._send_to_scheduler({**message, "hold": ["x"], "more": 1})
        for client in (other, stranger):  # what the client sent before was read when this was
            client._send_to_scheduler({"op": BACKLOG, "tasks": 7})
            until(lambda c=client: plugin.backlogs.get(c.id) == 7)
        assert list(plugin.holding.holds) == [hold]
        assert distributed.Queue("kept", client=other).get(timeout=5).result(timeout=10) == 2
        until(lambda: not plugin.holding.holds, what="released by the one who took it")


def test_nobody_joins_as_a_worker_or_client_that_is_there(local: LocalCluster) -> None:
    """As a stock client that knows their names may try."""
    with (
        Client(local, set_as_default=False) as client,
        distributed.Client(local, set_as_default=False) as stranger,
    ):
        address = wait_for_members(client, 2)[0]
        for who in ({"worker": address}, {"client": client.id}, {"client": stranger.id}):
            message = {"op": JOIN, **AT_SCHEDULER[JOIN], **who}
            answer = asyncio.run(ask(local.scheduler_address, message))
            assert answer["status"] == "prove" and "token" not in answer
