from __future__ import annotations

from dask_ownership.core.protocol.names import child_key, stored_name, task_identity


def test_a_parent_that_runs_again_makes_the_same_children():
    assert child_key("f", b"p", b"call", 0) == child_key("f", b"p", b"call", 0)
    assert child_key("f", b"p", b"call", 0).startswith("f-")


def test_children_differ_by_parent_call_and_occurrence():
    keys = {
        child_key("f", parent, call, occurrence)
        for parent in (b"p", b"q", b"p0")
        for call in (b"", b"a", b"b")
        for occurrence in (0, 1, 256)
    }
    assert len(keys) == 27


def test_stored_names_are_short_and_differ_by_owner_and_key():
    keys = ["x", ("x", 0), ("x", 1), 1, "1", 1.0, b"1", "k" * 10_000]
    names = {stored_name(owner, key) for owner in ("a", "b", "o" * 200) for key in keys}
    assert len(names) == 3 * len(keys)
    assert all(len(name) < 100 and name.startswith("owned-") for name in names)
    assert stored_name("a", "x") == stored_name("a", "x")


def test_who_a_task_is_does_not_depend_on_where_what_led_to_it_ran():
    client = task_identity("client", "p", None)
    assert client != task_identity("another client", "p", None)
    assert client != task_identity("client", "q", None)
    assert task_identity("a worker", "c", client) == task_identity("another", "c", client)
    assert task_identity("a worker", "c", client) != task_identity("a worker", "d", client)
