"""Operations check who calls and with what before they look at anything."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from dask_ownership.runtime.comm.operations import (
    LONGEST_REASON,
    STRANGERS,
    Refusals,
    fits,
    operation,
)
from dask_ownership.runtime.comm.secret import Joining, proof, proves

CALLS: list[tuple[Any, ...]] = []


async def read(owner: str, names: Sequence[Any], limit: float = 1.0) -> str:
    CALLS.append((owner, names, limit))
    return "read"


def check(message: dict[str, Any]) -> str | None:
    return None if message.get("token") == "right" else "no token"


def call(**message: Any) -> Any:
    CALLS.clear()
    return asyncio.run(operation(read, check, Refusals())(**message))


def test_who_may_call_is_asked_first():
    answer = call(nonsense=object())
    assert answer == {"status": "refused", "reason": "no token"}
    assert not CALLS


def test_a_call_as_it_should_be():
    assert call(token="right", owner="one", names=[1]) == "read"
    assert call(token="right", owner="one", names=(1,), limit=2) == "read"
    assert CALLS == [("one", (1,), 2)]


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ({"owner": 1, "names": []}, "owner"),
        ({"owner": "x", "names": "abc"}, "names"),
        ({"owner": "x", "names": {}}, "names"),
        ({"owner": "x"}, "names"),
        ({"owner": "x", "names": [], "limit": "1"}, "limit"),
        ({"owner": "x", "names": [], "limit": True}, "limit"),
        ({"owner": "x", "names": [], "what": 1}, "what"),
    ],
)
def test_what_is_not_as_expected_is_named(message, wrong):
    answer = call(token="right", **message)
    assert answer["status"] == "refused"
    assert answer["reason"].endswith(wrong)
    assert not CALLS


def test_refusals_are_short_and_logged_once(caplog):
    refusals = Refusals()
    guarded = operation(read, check, refusals)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            asyncio.run(guarded(token="wrong"))
        for number in range(STRANGERS * 2):
            refusals.say(f"{number}" + "x" * 1000, "y" * 10_000)
    assert len(caplog.records) == STRANGERS
    assert max(len(record.getMessage()) for record in caplog.records) < 2 * LONGEST_REASON + 30


def test_names_that_are_not_asked_for_do_not_make_a_refusal_long():
    answer = call(token="right", owner="x", names=[], **{"z" * 100_000: 1})
    assert len(answer["reason"]) <= LONGEST_REASON


def test_types():
    assert fits(None, str | None)
    assert fits("x", str | None)
    assert not fits(b"x", str | None)
    assert fits({}, dict[str, int])
    assert not fits([], dict[str, int])
    assert fits(object(), Any)


def test_a_proof_is_good_for_one_name_and_one_secret():
    token = proof("secret", "one")
    assert proves("secret", "one", token)
    assert not proves("secret", "two", token)
    assert not proves("another", "one", token)
    assert not proves("", "one", proof("", "one"))
    for odd in (None, 1, b"x", [], {}, "\ud800", "ä", ""):
        assert not proves("secret", "one", odd)
        assert not proves("secret", odd, token)


def test_the_word_is_said_again_until_it_was_heard(monkeypatch):
    """It goes over another connection than the question that shows it."""
    monkeypatch.setattr("dask_ownership.runtime.comm.secret.FIRST_PAUSE", 0.0)
    said: list[dict[str, Any]] = []

    class Slow:
        asked = 0

        async def ownership_join(self, **request: Any) -> Any:
            self.asked += 1
            if self.asked < 4:
                return {"status": "prove"}
            assert request["secret"] == said[0]["word"]
            return {"status": "OK"}

    joining = Joining(said.append)
    assert asyncio.run(joining(Slow(), owner="x", client="c")) == {"status": "OK"}
    assert len(said) == 4
    assert len({one["word"] for one in said}) == 1
