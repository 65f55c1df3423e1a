from __future__ import annotations

from dask_ownership.core.identity import child_key, stored_name


def test_a_parent_that_runs_again_makes_the_same_children():
    assert child_key("f", "p", b"call", 0) == child_key("f", "p", b"call", 0)
    assert child_key("f", "p", b"call", 0).startswith("f-")


def test_children_differ_by_parent_call_and_occurrence():
    keys = {
        child_key("f", parent, call, occurrence)
        for parent in ("p", "q", "p0")
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
