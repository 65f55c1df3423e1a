"""Whether a scheduler is gone is told within the time given, whatever single tries tell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from dask_ownership.client import reconnect
from dask_ownership.client.reconnect import connected

SECONDS = 0.2

REFUSED = ConnectionRefusedError("refused")
CUT_SHORT = TimeoutError("the last try had no time left")


class Comm:
    def abort(self) -> None:
        pass


class Dials:
    """What tries to connect tell, each after all of its time."""

    def __init__(self, tell: Callable[[int], BaseException | None]) -> None:
        self.tell = tell
        self.tries = 0
        self.seconds = 0.0

    async def connect(self, address: str, timeout: float, **connection_args: Any) -> Comm:
        self.tries += 1
        started = time.monotonic()
        await asyncio.sleep(timeout)
        self.seconds += time.monotonic() - started  # a busy machine sleeps for longer
        cause = self.tell(self.tries)
        if cause is None:
            return Comm()
        raise OSError(f"Timed out trying to connect to {address}") from cause


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect, "PAUSE", 0)


def is_found(dials: Dials, monkeypatch: pytest.MonkeyPatch, connects: float = 60) -> bool:
    """Whether the scheduler is found again, by a connection that takes some seconds."""
    monkeypatch.setattr(reconnect, "connect", dials.connect)
    return asyncio.run(connected(asyncio.sleep(connects), "tcp://127.0.0.1:1", {}, SECONDS))


def test_a_try_that_tells_nothing_costs_no_more_than_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dials = Dials(lambda number: CUT_SHORT if number <= 2 or number == 5 else REFUSED)
    assert not is_found(dials, monkeypatch)
    assert dials.seconds + 0.01 >= SECONDS
    assert dials.tries < 2 * reconnect.TRIES


def test_refusals_before_an_answer_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    dials = Dials(lambda number: None if number == 5 else REFUSED)
    assert not is_found(dials, monkeypatch)
    assert dials.seconds + 0.01 >= SECONDS * (1 + 5 / reconnect.TRIES)


@pytest.mark.parametrize("told", [CUT_SHORT, None], ids=["no answer", "answers"])
def test_what_does_not_refuse_is_not_gone(
    told: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_found(Dials(lambda number: told), monkeypatch, connects=3 * SECONDS)
