"""What ``dask.annotate`` says of a call: merged with its options, and applied to a key.

As in Dask the annotations count that are active where something is submitted, so inside a task
those of the task's own code: what it submits does not inherit what was said of the task itself,
but for its ``span``.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

SAME = {"restrictions": "workers", "loose_restrictions": "allow_other_workers"}
"""Older names of annotations."""


def named(workers: Any) -> Any:
    """``workers=`` with a number as the name that it is: 0 is a worker of every `LocalCluster`."""
    return str(workers) if isinstance(workers, Real) else workers


def merged(call: Mapping[str, Any], annotations: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a call, with annotations where it says nothing."""
    found = {SAME.get(k, k): v for k, v in annotations.items() if v is not None}
    found.update({k: v for k, v in call.items() if v or (k == "workers" and v is not None)})
    return found


def varies(settings: Mapping[str, Any]) -> bool:
    """Whether they depend on the key."""
    return any(map(callable, settings.values()))


def of_key(settings: Mapping[str, Any], key: Any) -> dict[str, Any]:
    """What they say of one key."""
    found = {name: value(key) if callable(value) else value for name, value in settings.items()}
    found["workers"] = named(found.get("workers"))
    return found
