"""dask-gateway's way to a scheduler: TLS through a proxy, which leads to no worker."""

from __future__ import annotations

import dask
import dask_gateway.comm  # noqa: F401 - adds gateway:// addresses to distributed
import distributed
from distributed import LocalCluster
from live import blob, inc, until
from proxy import Proxy

from dask_ownership import Client


def test_a_client_behind_a_gateway() -> None:
    security = distributed.Security.temporary()
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        protocol="tls",
        security=security,
        dashboard_address=":0",
    ) as cluster:
        proxy = Proxy(int(cluster.scheduler_address.rpartition(":")[2]))
        try:
            with (
                # On this machine the workers could be dialled, too.
                dask.config.set({"ownership.reach": "relay"}),
                Client(
                    f"gateway://127.0.0.1:{proxy.port}/cluster",
                    security=security,
                    set_as_default=False,
                ) as client,
            ):
                assert client.gather(client.map(inc, range(200), pure=False)) == [*range(1, 201)]
                assert len(client.submit(blob, 2_000_000).result(timeout=20)) == 2_000_000
                ways = [link["way"] for link in client.ownership().links.values()]
                assert ways == ["relayed"] * 2
                # The scheduler's own connections and the relays, and nothing else.
                until(lambda: proxy.accepted >= 3)
        finally:
            proxy.close()
