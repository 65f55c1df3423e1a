"""Who takes part in a cluster, as its scheduler keeps it."""

from __future__ import annotations

from dask_ownership.core import roster as roster_module
from dask_ownership.core.roster import CLIENT, FAREWELL, LONGEST, WORKER, Roster


def roster() -> Roster:
    made = Roster("holder", grace=10.0)
    made.workers["tcp://a"] = "wa"
    return made


def test_only_a_worker_itself_joins_as_it():
    made = roster()
    assert made.join("wa", WORKER, "tcp://a", (), 0.0) is None
    assert made.join("wa#2", WORKER, "tcp://a", (), 0.0) is None  # its next owner
    assert "another incarnation" in (made.join("wb", WORKER, "tcp://a", (), 0.0) or "")
    assert "another incarnation" in (made.join("wa", WORKER, "tcp://b", (), 0.0) or "")
    assert made.address_of("wa#2") == "tcp://a"
    assert made.address_of("wb") == ""


def test_a_client_has_one_owner_for_life():
    made = roster()
    assert made.join("one", CLIENT, "c1", (), 0.0) is None
    assert made.join("one", CLIENT, "c1", (), 1.0) is None  # it comes back
    assert "another owner" in (made.join("two", CLIENT, "c1", (), 2.0) or "")
    assert "another process" in (made.join("one", CLIENT, "c2", (), 2.0) or "")
    assert "another owner" in (made.join("holder", CLIENT, "c2", (), 2.0) or "")
    assert "another owner" in (made.join("x" * (LONGEST + 1), CLIENT, "c2", (), 2.0) or "")
    assert "another owner" in (made.join("no name", CLIENT, "c2", (), 2.0) or "")
    assert set(made.clients) == {"one", "holder"}


def test_a_client_is_gone_when_it_was_away_for_its_grace():
    made = roster()
    made.join("one", CLIENT, "c1", (), 0.0)
    assert made.client_away("c1", 5.0)
    assert not made.client_away("unknown", 5.0)
    assert made.look(14.9, {}) == []
    assert "one" in made.clients
    assert made.look(15.1, {}) == [("one", "c1")]
    assert made.look(30.0, {}) == []
    assert "one" not in made.clients
    assert not made.expects("one", 31.0)


def test_a_client_that_closed_is_gone_soon():
    made = roster()
    made.join("one", CLIENT, "c1", (), 0.0)
    assert made.client_away("c1", 5.0, closed=True)
    assert made.look(5.0, {}) == []  # its last messages come first
    assert made.look(5.0 + FAREWELL, {}) == [("one", "c1")]


def test_a_client_that_is_connected_again_is_about_to_join():
    made = roster()
    made.join("one", CLIENT, "c1", (), 0.0)
    made.client_away("c1", 0.0)
    assert made.look(11.0, {"c1"}) == []
    made.join("one", CLIENT, "c1", (), 12.0)
    assert made.look(100.0, {}) == []


def test_who_is_known_to_others_may_still_come_to_a_new_scheduler():
    """Two clients share a future, and the scheduler is started anew: one comes first."""
    made = roster()
    made.join("first", CLIENT, "c1", ["second", 5, None, "y" * 1000], 0.0)
    assert set(made.clients) == {"first", "second", "holder"}
    assert made.expects("third", 4.0)
    made.join("second", CLIENT, "c2", (), 6.0)
    assert made.look(12.0, {}) == []
    assert made.look(14.1, {}) == [("third", "")]


def test_a_worker_takes_its_owners_with_it():
    made = roster()
    made.join("wa", WORKER, "tcp://a", (), 0.0)
    made.join("wa#2", WORKER, "tcp://a", (), 0.0)
    assert made.worker_left("tcp://a") == ("wa", ["wa", "wa#2"])
    assert made.worker_left("tcp://a") == ("", [])


def test_an_owner_that_is_waited_for_is_expected_also_when_no_other_may_be(monkeypatch):
    monkeypatch.setattr(roster_module, "REMEMBERED", 2)
    made = roster()
    assert made.expects("one", 0.0) and made.expects("two", 0.0)
    assert not made.expects("three", 1.0)
    assert made.expects("one", 1.0)
