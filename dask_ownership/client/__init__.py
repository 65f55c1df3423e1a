"""The client, in the user's process and in tasks."""

from dask_ownership.client.client import Client

__all__ = ["Client"]
