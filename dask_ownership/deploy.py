"""Clusters on this machine whose ``get_client()`` returns a `dask_ownership.Client`."""

from __future__ import annotations

import distributed

from dask_ownership.client.client import Client

__all__ = ["LocalCluster"]


class LocalCluster(distributed.LocalCluster):
    """A `distributed.LocalCluster` whose ``get_client()`` returns a `dask_ownership.Client`.

    Any other cluster works as well: ``dask_ownership.Client(cluster)``. This class is for code that
    lets the cluster make its client, and for settings that name a class of clusters.
    """

    def get_client(self) -> Client:
        """Return the current client if it is one of this package and this cluster, or a new one."""
        try:
            current = Client.current(allow_global=True)
        except ValueError:
            current = None
        if isinstance(current, Client) and current.cluster is self:
            return current
        return Client(self, asynchronous=self.asynchronous)
