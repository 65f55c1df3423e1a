"""The names under which tasks are counted for those who look are those of Dask."""

from __future__ import annotations

from typing import Any

import pytest
from dask.utils import key_split

from dask_ownership.monitoring.owner_report import group_of

HASH = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    "key",
    [
        f"inc-{HASH}",
        f"sum-aggregate-{HASH}",
        ("sum-aggregate-" + HASH, 0, 1),
        (f"getitem-{HASH}", 3),
        f"<lambda>-{HASH}",
        "inc",
        "inc-1",
        "my-own-key",
        "read parquet-7",
        HASH,
        b"inc-bytes",
        ("x", 1),
        "",
        17,
        (1, 2),
        ("a-1", "b"),
    ],
)
def test_names_are_those_of_dask(key: Any) -> None:
    assert group_of(key) == str(key_split(key))
    assert group_of(key) == str(key_split(key))  # from what is remembered


@pytest.mark.parametrize("key", [(), b"\xff"])
def test_keys_of_which_dask_makes_no_name(key: Any) -> None:
    assert group_of(key) == "Other"
