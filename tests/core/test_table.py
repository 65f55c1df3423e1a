from __future__ import annotations

import threading
from contextlib import nullcontext

from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.owner.rows.table import Table
from dask_ownership.core.protocol.states import CANCELLED, FORGOTTEN, INLINE


def make(key, *dependencies, **options):
    return Row(key, None, None, dependencies, 0, Options(**options))


def test_a_key_has_one_row_and_each_adoption_one_local_reference():
    table = Table(nullcontext(), ("me", "", "me"))
    first = make("x")
    assert table.adopt(first) is first and first.local_refs == 1
    assert table.adopt(make("x")) is first and first.local_refs == 2
    assert table.find("x") is first and first.local_refs == 3
    assert table.find("y") is None


def test_only_the_row_that_got_in_counts_its_dependencies():
    table = Table(nullcontext(), ("me", "", "me"))
    x = table.adopt(make("x"))
    inner = table.adopt(make("inner"))
    for _ in range(2):
        y = make("y", x)
        y.contains = (inner,)
        table.adopt(y)
    assert (x.task_refs, inner.task_refs) == (1, 1)


def test_a_row_goes_out_when_nothing_counts_it_and_only_once():
    table = Table(nullcontext(), ("me", "", "me"))
    x = table.adopt(make("x"))
    x.local_refs, x.task_refs = 2, 1
    assert table.release([x]) == []
    assert table.release([x]) == []
    assert table.release_task_refs([x]) == [x]
    x.state = FORGOTTEN
    assert table.release_task_refs([x]) == table.release([x]) == []
    assert len(list(table.rows.values())) == 0


def test_letting_an_old_row_go_leaves_the_new_one_of_its_key():
    table = Table(nullcontext(), ("me", "", "me"))
    old = table.adopt(make("x"))
    table.rows.remove(old)
    old.state = CANCELLED
    new = table.adopt(make("x"))
    assert new is not old
    assert table.release([old]) == [old]
    assert table.find("x") is new


def test_a_row_that_others_have_too_is_not_its_submitters_alone():
    table = Table(nullcontext(), ("me", "", "me"))
    row = table.adopt(make("x", parent=("o", "p", 1)))
    table.find("x", ("o", "p", 1))
    assert row.options.parent == ("o", "p", 1)
    shared = row.options
    table.find("x")
    assert row.options.parent is None and shared.parent is not None


def test_all_rows_are_listed_while_another_thread_adds_some():
    table = Table(threading.Lock(), ("me", "", "me"))
    for number in range(20_000):
        table.adopt(make(number))
    going_on = True

    def add() -> None:
        number = 20_000
        while going_on:
            table.adopt(make(number))
            number += 1

    thread = threading.Thread(target=add)
    thread.start()
    try:
        for _ in range(50):
            assert len(table.all()) >= 20_000
    finally:
        going_on = False
        thread.join()


def test_rows_may_change_while_they_are_read():
    """As they do when another thread reads them: each read sees rows, and raises nothing."""
    table = Table(nullcontext(), ("me", "", "me"))
    made = [table.adopt(make(number)) for number in range(2_000)]
    for read in (table.rows.values, table.rows.items, lambda: table.rows):
        for row in made:
            table.rows.remove(row)
            table.adopt(row)
        seen = 0
        for _ in read():
            if made[seen].key in table.rows:
                table.rows.remove(made[seen])
            seen += 1
        assert seen


def test_states_from_inline_on_are_final():
    row = make("x")
    done = []
    for state in range(FORGOTTEN + 1):
        row.state = state
        done.append(row.done)
    assert done == [state >= INLINE for state in range(FORGOTTEN + 1)]
    assert "forgotten" in repr(row)
