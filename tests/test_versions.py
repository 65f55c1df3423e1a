"""Processes with another version of the protocol: refused, with what to do, and nothing breaks."""

from __future__ import annotations

import asyncio
from typing import Any

import distributed
import pytest
from distributed import LocalCluster
from distributed.comm import connect
from live import inc

from dask_ownership import Client, PluginMissing
from dask_ownership.runtime.comm import secret
from dask_ownership.runtime.comm.link import PROTOCOL
from dask_ownership.runtime.comm.scheduler_ops import JOIN

OTHERS = {
    "older": (PROTOCOL - 1, "the owner has the older one"),
    "newer": (PROTOCOL + 1, "has the older one"),
    "none": (None, "install the same dask_ownership in both places"),
    "text": (str(PROTOCOL), "install the same dask_ownership in both places"),
    "true": (True, "install the same dask_ownership in both places"),
}


async def ask(address: str, message: dict[str, Any]) -> Any:
    """Send one operation, and return the answer."""
    comm = await connect(address)
    try:
        await comm.write(message)
        return await comm.read()
    finally:
        comm.abort()


@pytest.mark.parametrize("kind", OTHERS)
def test_an_owner_of_another_version_is_refused(
    kind: str, client: Client, workers: list[str]
) -> None:
    """By the scheduler and by workers, whatever else the owner says: it may mean another thing."""
    version, text = OTHERS[kind]
    more = {"protocol": version, "of_a_later_version": 1, "owner": "other", "reply": True}
    for address, operation in ((client.scheduler.address, JOIN), (workers[0], "ownership_link")):
        answer = asyncio.run(ask(address, {"op": operation, **more}))
        assert answer["status"] == "refused"
        assert f"speaks version {PROTOCOL} of the ownership protocol" in answer["reason"]
        assert repr(version) in answer["reason"] and text in answer["reason"]
    assert client.submit(inc, 1, pure=False).result() == 2


@pytest.mark.parametrize("by", [-1, 1])
def test_a_client_of_another_version(
    by: int, client: Client, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends at once and says which end has to be upgraded; others of the cluster go on."""
    with monkeypatch.context() as patched:
        patched.setattr(secret, "PROTOCOL", PROTOCOL + by)
        with pytest.raises(PluginMissing) as info:
            Client(cluster.scheduler_address, set_as_default=False)
    said = str(info.value)
    assert "refuses this client" in said and "install the same dask_ownership" in said
    assert ("the owner has the older one" in said) == (by < 0)
    assert "--preload" not in said  # the plugin is there, and would not help
    assert client.submit(inc, 2, pure=False).result() == 3
    with distributed.Client(cluster.scheduler_address, set_as_default=False) as stock:
        assert stock.submit(inc, 3).result() == 4
