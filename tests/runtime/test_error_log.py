"""What a worker logs of tasks that fail."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from dask_ownership.core.executor import session as ex
from dask_ownership.runtime import error_log
from dask_ownership.runtime.error_log import ErrorLog


def entry_of(key: str, **attributes: Any) -> Any:
    session = SimpleNamespace(owner="me", functions={})
    known = {"state": ex.RUNNING, "cancelled": False, "ordinal": 1, "function": 1}
    return SimpleNamespace(key=key, session=session, **{**known, **attributes})


def test_of_very_many_failures_some_are_logged_and_all_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(error_log, "monotonic", lambda: now)
    log = ErrorLog(at_once=3)
    with caplog.at_level(logging.ERROR, "distributed.worker"):
        for i in range(10):
            log.failed(entry_of(f"key-{i}"), ValueError("oops"))
        now += 1
        log.failed(entry_of("key-10"), ValueError("oops"))
    found = [record.getMessage() for record in caplog.records]
    assert len(found) == 5
    assert "key-2" in found[2] and "ValueError('oops')" in found[2]
    assert "7 more tasks" in found[3]
    assert "key-10" in found[4]
    assert all(isinstance(arg, str | int) for record in caplog.records for arg in record.args)


class Odd(Exception):
    def __repr__(self) -> str:
        raise TypeError


def test_an_error_that_cannot_be_shown(caplog: pytest.LogCaptureFixture) -> None:
    ErrorLog().failed(entry_of("key"), Odd())
    assert "Odd, which cannot be shown: TypeError" in caplog.text


@pytest.mark.parametrize("how", [{"cancelled": True}, {"state": ex.GONE}])
def test_nothing_is_logged_of_what_nobody_wants(
    how: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "distributed.worker"):
        ErrorLog().failed(entry_of("key", **how), ValueError())
    assert not caplog.records
