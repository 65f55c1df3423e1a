"""What runs where the user is."""

from dask_ownership.client.client import Client

__all__ = ["Client"]
