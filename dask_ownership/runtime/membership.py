"""Who is in the cluster, as the scheduler plugin tells it."""

from __future__ import annotations

from typing import Any, TypedDict


class Member(TypedDict):
    """One worker, as it travels from the scheduler to owners."""

    address: str
    nthreads: int
    name: Any
    host: str
    resources: dict[str, float]


JOIN = "ownership_join"
"""The scheduler's operation by which an owner asks for the token and the members."""

MEMBERS = "ownership-members"
"""The stream operation by which the scheduler tells owners of changes."""

OWNER_GONE = "ownership-owner-gone"
"""The stream operation by which the scheduler tells workers that an owner is gone."""
