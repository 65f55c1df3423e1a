from __future__ import annotations

from contextlib import nullcontext

import pytest

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows.attempts import ALONE, LONGER, Attempts
from dask_ownership.core.owner.rows.failure_counts import LOSSES
from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import Function, Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.order import ordered
from dask_ownership.core.protocol.states import (
    CANCELLED,
    DORMANT,
    ERROR,
    FORGOTTEN,
    INLINE,
    LOST,
    PUSHED,
    READY,
    STORED,
    WAITING,
)
from dask_ownership.testing.invariants import check_empty, check_ownership

BIG = b"x" * 1000


class Bench:
    """An owner, its workers, and what a runtime does for them."""

    def __init__(self, *addresses: str, slots: int = 1) -> None:
        self.core = OwnerCore(nullcontext())
        self.function = Function(1, b"function", "f")
        self.function.duration = 100.0
        self.views = {a: WorkerView(a, nthreads=slots) for a in addresses}
        for view in self.views.values():
            self.core.add_worker(view)

    def row(self, key, *dependencies: Row, **options) -> Row:
        order = self.core.lifecycle.numbers
        row = Row(key, self.function, b"call", dependencies, order, Options(**options))
        adopted = self.core.table.adopt(row)
        if adopted is row:
            self.core.submit([row])
        self.step()
        return adopted

    def tried(self, row: Row) -> Attempts:
        return self.core.attempts.of(row)

    def step(self) -> None:
        self.core.schedule(0.0)
        check_ownership(self.core)

    def sent(self, address: str = "a"):
        view = self.views[address]
        out, view.outbox = view.outbox, []
        return [(m.NAMES[message[0]], *message[1:]) for message in out]

    def kinds(self, address: str = "a"):
        return [message[:2] for message in self.sent(address) if message[0] != "FUNCTION"]

    def answer(self, address: str, *messages) -> None:
        self.core.receive(self.views[address], messages, 0.0)
        check_ownership(self.core)
        self.step()

    def done(self, row: Row, value: bytes = b"value") -> None:
        self.answer(row.worker.address, (m.DONE, row.key, row.attempt, value, 10.0))

    def stored(self, row: Row) -> None:
        message = (m.STORED, row.key, row.attempt, 10**6, None, 10.0)
        self.answer(row.worker.address, message)

    def returned(self, row: Row, reason: int, keys=()) -> None:
        message = (m.GIVEN_BACK, row.key, row.attempt, reason, keys)
        self.answer(row.worker.address, message)

    def release(self, *rows: Row) -> None:
        self.core.release(rows)
        self.step()

    def alone(self, row: Row, yes: bool = True) -> None:
        """A suspect has its worker for itself, and its owner hears it; or has it no more."""
        self.answer(row.worker.address, (m.ALONE, row.key, row.attempt, yes))
        assert self.sent(row.worker.address)[-1] == ("GO", row.key, row.attempt, yes)

    def dies(self, view: WorkerView, reason: str = "died") -> None:
        """A worker dies that got all that was sent to it."""
        self.sent(view.address)
        self.core.remove_worker(view, reason)


@pytest.fixture
def bench():
    return Bench("a")


def test_every_answer_counts_once(bench):
    row = bench.row("x")
    attempt = row.attempt
    answers = [
        (m.DONE, "x", attempt, b"value", 1.0),
        (m.STORED, "x", attempt, 1, None, 1.0),
        (m.FAILED, "x", attempt, b"error", 1.0),
        (m.PARKED, "x", attempt),
        (m.GIVEN_BACK, "x", attempt, m.RECALLED, ()),
        (m.GIVEN_BACK, "x", attempt, m.MISSING, (("y", 0, ("a",)),)),
        (m.GIVEN_BACK, None, 0, m.RECALLED, ()),
    ]
    bench.answer("a", (m.DONE, "x", attempt - 1, b"of another attempt", 1.0))
    assert row.state == PUSHED
    for answer in answers:
        bench.answer("a", answer)
        assert (row.state, row.value, row.attempt) == (INLINE, b"value", attempt)
    bench.release(row)
    for answer in answers:
        bench.answer("a", answer)
    check_empty(bench.core)


def test_releasing_and_cancelling_what_is_gone_changes_nothing(bench):
    row = bench.row("x")
    bench.release(row)
    assert row.state == FORGOTTEN
    bench.core.cancel([row], "late")
    bench.core.retry([row])
    bench.core.desire([row])
    bench.core.put(row, [bench.views["a"]], 1)
    bench.core.settle(row, Failure("closed", "x", "late"))
    bench.core.submit([row])
    assert row.state == FORGOTTEN
    check_empty(bench.core)


def test_forgetting_a_pushed_row_takes_it_back_once(bench):
    row = bench.row("x")
    bench.sent()
    bench.release(row)
    assert bench.sent() == [("CANCEL", "x", row.attempt)]


def test_a_stored_value_is_freed_once_when_nobody_needs_it(bench):
    x = bench.row("x")
    bench.stored(x)
    y = bench.row("y", x)
    bench.release(x)
    bench.sent()
    assert x.state == STORED, "y still uses it"
    bench.done(y)
    assert [s[:2] for s in bench.sent()] == [("FREE", ("x",))]
    bench.release(y)
    assert bench.sent() == []
    check_empty(bench.core)


def test_an_alias_that_lets_go_of_its_target_at_once_frees_its_inputs_once():
    """The target of an alias ends, the alias takes its value, and nobody needs the target."""
    bench = Bench("a", "b")
    x = bench.row("x")
    target, other = bench.row("target", x), bench.row("other", x)
    identity = bench.core.functions.identity
    bound = Options(workers=("a",))  # so it is not pushed behind its target
    alias = Row("alias", identity, b"call", (target,), 9, bound)
    bench.core.table.adopt(alias)
    bench.core.submit([alias])
    bench.done(x)
    bench.release(x, target)
    bench.done(target)
    assert alias.state == INLINE and alias.value == b"value"
    assert x.state == INLINE, "the other task still needs it"
    bench.returned(other, m.RECALLED)
    assert other.state == PUSHED
    bench.done(other)
    bench.release(alias, other)
    check_empty(bench.core)


def test_who_waits_for_a_row_that_is_released_hears_of_it(bench):
    row = bench.row("x")
    row.waiters = ["someone"]
    bench.release(row)
    assert bench.core.effects.completed == [row]


def test_a_chain_is_pushed_behind_its_dependency_and_comes_back_with_it():
    bench = Bench("a", "b")
    x = bench.row("x")
    y = bench.row("y", x)
    z = bench.row("z", y)
    home = x.worker
    assert y.worker is home and z.worker is home
    for row, reason in ((x, m.RECALLED), (z, m.BLOCKED), (y, m.MISSING)):
        keys = (("x", x.attempt, ()),) if reason == m.MISSING else ()
        bench.core.receive(home, [(m.GIVEN_BACK, row.key, row.attempt, reason, keys)], 0.0)
        check_ownership(bench.core)
    assert (x.state, y.state, z.state) == (PUSHED, WAITING, WAITING)
    assert x.worker is not home  # it was recalled for the other
    bench.step()
    for row in (x, y, z):
        bench.done(row)
    bench.release(x, y, z)
    check_empty(bench.core)


def test_cancelling_the_head_of_a_chain_ends_all_of_it(bench):
    rows = [bench.row("x")]
    rows.append(bench.row("y", rows[0]))
    rows.append(bench.row("z", rows[1], rows[0]))
    bench.sent()
    for _ in range(2):
        bench.core.cancel([rows[0]], "stop")
        bench.step()
    assert [r.state for r in rows] == [CANCELLED] * 3
    assert sorted(s[1] for s in bench.sent()) == ["x", "y", "z"]
    bench.release(*rows)
    check_empty(bench.core)


@pytest.mark.parametrize("state", [WAITING, PUSHED])
def test_a_future_of_what_was_cancelled_keeps_nothing_that_it_needed(bench, state):
    needed = bench.row("needed")
    row = bench.row("row", needed) if state == WAITING else needed
    bench.core.cancel([row], "by a user")
    assert row.state == CANCELLED and row.local_refs == 1
    assert (row.payload, row.function, row.dependencies, row.contains) == (None, None, (), ())


def test_a_key_that_was_cancelled_is_a_new_row(bench):
    old = bench.row("x")
    bench.core.cancel([old], "stop")
    new = bench.row("x")
    assert new is not old
    bench.answer("a", (m.DONE, "x", old.attempt, b"old", 1.0))
    assert new.state == PUSHED
    bench.done(new, b"new")
    assert new.value == b"new"
    bench.release(old, new)
    check_empty(bench.core)


def test_retries_are_used_up_and_retry_runs_failed_dependencies_too(bench):
    x = bench.row("x", retries=1)
    y = bench.row("y", x)
    z = bench.row("z", x)
    for _ in range(2):
        bench.answer("a", (m.FAILED, "x", x.attempt, b"error", 1.0))
    assert [r.state for r in (x, y, z)] == [ERROR] * 3 and y.value == b"error"
    for _ in range(2):
        bench.core.retry([y])
        bench.step()
    assert (x.state, y.state, z.state) == (PUSHED, PUSHED, PUSHED), "z failed because of x"
    bench.done(x)
    bench.done(y)
    bench.done(z)
    bench.core.retry([x, y])
    assert (x.state, y.state) == (INLINE, INLINE)
    bench.release(x, y, z)
    check_empty(bench.core)


def test_a_retried_row_whose_dependency_was_cancelled_meanwhile_is_cancelled(bench):
    x, y = bench.row("x"), bench.row("y")
    z = bench.row("z", x, y)
    bench.answer("a", (m.FAILED, "x", x.attempt, b"error", 1.0))
    bench.core.cancel([y], "stop")
    bench.core.retry([z])
    bench.step()
    assert z.state == CANCELLED
    bench.release(x, y, z)
    check_empty(bench.core)


def fail(bench, row):
    bench.answer(row.worker.address, (m.FAILED, row.key, row.attempt, row.key.encode(), 1.0))


def test_retrying_the_first_of_a_chain_revives_all_that_failed_with_it(bench):
    x = bench.row("x")
    chain = [x]
    for i in range(5):
        chain.append(bench.row(f"y{i}", chain[-1]))
    other = bench.row("other")
    fail(bench, other)
    fail(bench, x)
    assert {row.state for row in chain} == {ERROR}
    bench.core.retry([x])
    bench.step()
    late = bench.row("late", chain[-1])
    assert late.state in (WAITING, PUSHED)
    for row in [*chain, late]:
        bench.done(row)
    assert {row.state for row in [*chain, late]} == {INLINE}
    assert other.state == ERROR
    bench.release(*chain, late, other)
    check_empty(bench.core)


@pytest.mark.parametrize("first", ["x", "y"])
@pytest.mark.parametrize("together", [True, False])
def test_what_needs_several_failed_rows_is_revived_when_all_are(bench, first, together):
    x, y = bench.row("x"), bench.row("y")
    z = bench.row("z", x, y)
    after = bench.row("after", z)
    fail(bench, x)
    fail(bench, y)
    rows = {"x": x, "y": y}
    one, other = rows.pop(first), next(iter(rows.values()))
    if together:
        bench.core.retry([one, other])
    else:
        bench.core.retry([one])
        bench.step()
        assert one.state == PUSHED
        assert (z.state, after.state) == (ERROR, ERROR), "the other failed as well"
        bench.core.retry([other])
    bench.step()
    bench.done(one)
    bench.done(other)
    assert {z.state, after.state} <= {WAITING, READY, PUSHED}
    bench.done(z)
    bench.done(after)
    bench.release(x, y, z, after)
    check_empty(bench.core)


def test_what_failed_by_itself_is_not_revived_with_what_it_needs(bench):
    x = bench.row("x")
    bench.stored(x)
    y = bench.row("y", x)
    fail(bench, y)
    bench.core.missed(x, ["a"])  # it is made again, and fails
    bench.step()
    fail(bench, x)
    bench.core.retry([x])
    bench.step()
    assert (x.state, y.state) == (PUSHED, ERROR)
    bench.release(x, y)
    check_empty(bench.core)


def test_what_fails_again_is_revived_again(bench):
    x = bench.row("x")
    y = bench.row("y", x)
    for _ in range(3):
        fail(bench, x)
        assert y.state == ERROR
        bench.core.retry([x])
        bench.step()
    bench.done(x)
    bench.done(y)
    bench.release(x, y)
    check_empty(bench.core)


def test_fire_and_forget_keeps_a_row_until_it_ends(bench):
    for end in (m.DONE, m.FAILED):
        row = bench.row("x")
        bench.core.desire([row])
        bench.core.desire([row])
        bench.release(row)
        assert row.state == PUSHED
        bench.answer("a", (end, "x", row.attempt, b"bytes", 1.0))
        assert row.state == FORGOTTEN
        check_empty(bench.core)


def test_a_parked_task_leaves_room_in_the_window_once(bench):
    row = bench.row("x")
    view = bench.views["a"]
    for _ in range(2):
        bench.answer("a", (m.PARKED, "x", row.attempt))
        assert (view.active, view.load) == (0, 0.0)
    bench.done(row)
    assert (view.active, view.load) == (0, 0.0)


def test_tasks_behind_a_parked_one_leave_room_for_what_it_waits_for(bench):
    """It may wait for a task of this very owner, which needs the room."""
    bench.function.duration = 6_000.0
    parked = bench.row("p")
    behind = bench.row("q", parked)
    assert behind.state == PUSHED
    bench.answer("a", (m.PARKED, "p", parked.attempt))
    view = bench.views["a"]
    assert (view.active, view.load) == (0, 0.0)
    late = bench.row("r", parked)
    assert late.state == WAITING
    needed = [bench.row(f"n{i}") for i in range(2)]
    assert [row.state for row in needed] == [PUSHED, PUSHED]
    bench.done(parked)
    assert late.state == READY
    for row in (behind, *needed, late):
        bench.done(row)
    assert (view.active, view.load) == (0, 0.0)


def test_a_worker_that_pauses_gets_nothing_until_it_goes_on(bench):
    bench.answer("a", (m.ACCEPTING, False, 1))
    row = bench.row("x")
    assert row.state == READY
    bench.answer("a", (m.ACCEPTING, True, 1))
    assert row.state == PUSHED


def test_a_refusal_for_resources_neither_loops_nor_stops_the_worker():
    bench = Bench("a", "b")
    for view in bench.views.values():
        view.resources = {"gpu": 1.0}
    row = bench.row("x", resources={"gpu": 1})
    first = row.worker
    bench.returned(row, m.REFUSED, ((),))
    assert row.worker is not first and first.accepting and first.resources == {}
    bench.returned(row, m.REFUSED, ((("gpu", 0.5),),))
    assert row.state == READY
    plain = bench.row("y")
    assert plain.state == PUSHED


@pytest.mark.parametrize("kind", ["done", "stored", "failed"])
def test_how_long_a_function_takes_is_measured_whatever_it_gives(bench, kind):
    bench.function.duration = -1.0
    row = bench.row("x")
    rest = {"done": (b"value", 7.0), "stored": (10**6, None, 7.0), "failed": (b"error", 7.0)}[kind]
    bench.answer("a", (getattr(m, kind.upper()), "x", row.attempt, *rest))
    assert bench.function.duration == 7.0


def test_what_parked_tasks_wait_for_goes_to_their_worker_though_its_window_is_full():
    core = OwnerCore(nullcontext(), home="a")
    view = WorkerView("a")
    core.add_worker(view)
    function = Function(1, b"function", "f")
    function.duration = 1e6
    rows = [Row(f"x{i}", function, b"call", (), i) for i in range(4)]
    rows[3].options = Options(workers=("b",))
    for row in rows:
        core.table.adopt(row)
    core.submit(rows)
    core.schedule(0.0)
    assert [row.state for row in rows] == [PUSHED, READY, READY, READY]
    for _ in range(2):  # twice is once
        core.hurry([rows[0], rows[2], rows[3]], 0.0)
        core.schedule(0.0)
        check_ownership(core)
    assert [row.state for row in rows] == [PUSHED, READY, PUSHED, READY], "x3 must not run there"
    assert [row.key for row in view.pushed.values()] == ["x0", "x2"]


def test_an_unknown_function_is_sent_again(bench):
    row = bench.row("x")
    assert [s[0] for s in bench.sent()] == ["FUNCTION", "PUSH"]
    bench.returned(row, m.UNKNOWN_FUNCTION)
    assert [s[0] for s in bench.sent()] == ["FUNCTION", "PUSH"]
    other = bench.row("y")
    assert other.state in (PUSHED, READY)
    assert "FUNCTION" not in [s[0] for s in bench.sent()]


def test_a_function_that_nobody_calls_any_more_is_forgotten_where_it_was_sent():
    bench = Bench("a", "b")
    row = bench.row("x", workers=("a",))
    assert [kind for kind, *_ in bench.sent("a")] == ["FUNCTION", "PUSH"]
    bench.done(row)
    bench.core.dispatch.forget(1)
    bench.core.dispatch.forget(1)
    assert bench.sent("a") == [("FORGET", 1)]
    assert bench.sent("b") == []
    bench.row("y", workers=("a",))
    assert [kind for kind, *_ in bench.sent("a")] == ["FUNCTION", "PUSH"]


def test_what_no_worker_may_run_waits_for_one_and_loose_ones_go_elsewhere(bench):
    row = bench.row("x", workers=("later",))
    gpu = bench.row("g", resources={"gpu": 1})
    assert bench.row("y", workers=("later",), loose=True).state == PUSHED
    assert row.state == gpu.state == READY
    assert "workers=[later] names no worker" in bench.core.infeasible.why(row)
    assert "resources={'gpu': 1}" in bench.core.infeasible.why(gpu)
    bench.core.add_worker(WorkerView("c", name="later", resources={"gpu": 1.0}))
    bench.core.schedule(0.0)
    assert row.state == gpu.state == PUSHED and row.worker.address == gpu.worker.address == "c"
    assert bench.core.infeasible.why(row) is None


def test_what_no_worker_may_run_fails_when_it_waited_too_long(bench):
    first = bench.row("x", workers=("nowhere",))
    bench.core.infeasible.expire(0.0, 10.0)
    second = bench.row("y", workers=("nowhere",))
    bench.core.infeasible.expire(5.0, 10.0)
    assert first.state == second.state == READY
    bench.core.infeasible.expire(11.0, 10.0)
    assert first.state == ERROR and first.value.kind == "no-worker" and second.state == READY
    bench.core.cancel([second], "not wanted")
    bench.core.infeasible.expire(20.0, 10.0)
    assert not bench.core.infeasible._since


def test_what_may_run_only_where_owned_tasks_are_refused_fails_at_once(bench):
    bench.core.refusals["bad"] = "it does not know dask_ownership"
    row = bench.row("x", workers=("bad",))
    assert row.state == ERROR and "does not know" in row.value.detail


def test_a_repeated_value_is_sent_once_per_worker_and_freed_there(bench):
    x = bench.row("x")
    bench.done(x, BIG)
    bench.sent()
    rows = [bench.row(name, x) for name in ("p", "q", "r")]
    for row in rows:
        if row.state == PUSHED:
            bench.done(row)
    kinds = bench.kinds()
    assert kinds.count(("COPY", "x")) == 1
    bench.release(x, *rows)
    assert ("FREE", ("x",)) in bench.kinds()
    check_empty(bench.core)


def two_copies():
    """x is stored at a; y needed it at b, which was told to fetch it."""
    bench = Bench("a", "b")
    x = bench.row("x", workers=("a",))
    bench.stored(x)
    y = bench.row("y", x, workers=("b",))
    assert [view.address for view in x.locations] == ["a", "b"]
    bench.sent("b")
    return bench, x, y


def test_a_worker_that_misses_a_copy_is_told_to_free_it_and_another_tries():
    bench, x, y = two_copies()
    bench.returned(y, m.MISSING, (("x", x.attempt, ()),))
    assert x.state == STORED
    kinds = bench.kinds("b")
    assert kinds == [("FREE", ("x",)), ("PUSH", "y")], "it may have it by now, uncounted"
    bench.done(y)
    bench.release(x, y)
    assert ("FREE", ("x",)) in bench.kinds("a") and ("FREE", ("x",)) in bench.kinds("b")


def test_an_old_answer_does_not_undo_a_newer_copy():
    bench, x, y = two_copies()
    z = bench.row("z", x, workers=("b",))
    if z.state != PUSHED:
        bench.views["b"].nthreads = 2
        bench.step()
    bench.returned(y, m.MISSING, (("x", x.attempt, ()),))  # y is pushed again, with a new fetch
    assert len(x.locations) == 2
    bench.sent("b")
    bench.returned(z, m.MISSING, (("x", x.attempt, ()),))  # said before that
    assert len(x.locations) == 2 and x.state == STORED
    assert ("FREE", ("x",)) not in bench.kinds("b")


def test_a_value_that_nobody_has_is_made_again():
    bench, x, y = two_copies()
    bench.sent("a")
    bench.returned(y, m.MISSING, (("x", x.attempt, ("a",)),))
    assert x.state == PUSHED and y.state == WAITING
    assert ("PUSH", "x") in bench.kinds("a")
    bench.stored(x)
    assert x.state == STORED and y.state == PUSHED
    bench.done(y)
    bench.release(x, y)
    check_empty(bench.core)


def test_a_scattered_value_that_nobody_has_is_lost_and_all_that_needs_it_fails(bench):
    x = bench.core.table.adopt(Row("x", None, None, (), 0))
    bench.core.put(x, [bench.views["a"]], 8)
    y = bench.row("y", x)
    bench.returned(y, m.MISSING, (("x", x.attempt, ("a",)),))
    assert x.state == LOST and "scattered" in x.value.detail
    assert y.state == ERROR and y.value is x.value
    assert bench.row("x") is not x


def deaths(bench, row):
    """What became of the workers that died under a task, as people read it."""
    return [death.what for death in bench.tried(row).died]


def test_a_dead_worker_takes_its_values_and_gives_its_tasks_back():
    bench, x, y = two_copies()
    b = bench.views["b"]
    bench.core.add_worker(b)
    assert len(bench.core.placement.workers) == 2
    y.options = y.options._replace(workers=None)
    for _ in range(2):
        bench.core.remove_worker(b)
        bench.step()
    assert y.state == PUSHED and y.worker.address == "a"
    assert deaths(bench, y) == ["b left the cluster"]
    assert [view.address for view in x.locations] == ["a"]
    old = y.attempt
    bench.core.receive(b, [(m.DONE, "y", old - 1, b"late", 1.0)], 0.0)
    assert y.state == PUSHED
    x.lineage.options = x.lineage.options._replace(workers=None)
    bench.core.remove_worker(bench.views["a"])
    assert (x.state, y.state) == (READY, WAITING)
    bench.core.add_worker(WorkerView("c"))
    bench.step()
    assert (x.state, y.state) == (PUSHED, PUSHED)


def test_a_task_under_which_many_workers_die_is_given_up():
    """The first death says nothing: others may have run there. Then it is alone."""
    bench = Bench(*"abcdef")
    row = bench.row("x")
    behind = bench.row("y", row)
    for died in range(1, 5):
        assert row.state == PUSHED
        if died > 1:
            bench.alone(row)
        worker = row.worker
        bench.dies(worker)
        if died == 2:  # its nanny says so later
            bench.core.departures.exited(worker.incarnation, "was killed by signal 9")
        bench.step()
        assert (len(bench.tried(row).died), bench.tried(row).deaths) == (
            died,
            died - 1,
        )
    assert row.state == ERROR and row.value.kind == "killed-worker"
    assert "3 of them while nothing else of any owner ran there" in row.value.detail
    assert row.value.detail.count("and its process was killed by signal 9") == 1
    assert behind.state == ERROR
    bench.release(row, behind)
    check_empty(bench.core)


def test_one_that_the_user_tries_again_is_not_blamed_for_what_was_before():
    bench = Bench(*"abcdefgh")
    row = bench.row("x")
    bench.dies(row.worker)
    bench.step()
    for _ in range(3):
        bench.alone(row)
        bench.dies(row.worker)
        bench.step()
    assert row.value.kind == "killed-worker"
    bench.core.retry([row])
    bench.step()
    bench.dies(row.worker)  # beside others, perhaps
    bench.step()
    assert row.state == PUSHED and (
        len(bench.tried(row).died),
        bench.tried(row).deaths,
    ) == (1, 0)
    bench.done(row)
    bench.release(row)
    check_empty(bench.core)


def test_only_deaths_alone_count():
    """One task kills each worker that it runs at; what ran beside it is not blamed."""
    bench = Bench(*"abcdefgh", slots=4)
    there = {"workers": ("a",), "loose": True}
    deadly = bench.row("deadly", **there)
    others = [bench.row(f"other-{i}", **there) for i in range(3)]
    first = deadly.worker
    assert all(row.worker is first for row in others), "they were pushed together"
    bench.dies(first)
    bench.step()
    suspects = (deadly, *others)
    assert all(bench.tried(row).died and not bench.tried(row).deaths for row in suspects)
    for row in suspects:  # the worker is told that they are to be alone
        pushed = [message for message in row.worker.outbox if message[1] == row.key]
        assert pushed[0][-1]["alone"] == ALONE
    for died in range(1, 4):
        bench.alone(deadly)
        bench.dies(deadly.worker, "died of it")
        bench.step()
        assert bench.tried(deadly).deaths == died
        for row in [r for r in others if r.state == PUSHED]:
            bench.done(row)
    assert deadly.state == ERROR and deadly.value.kind == "killed-worker"
    assert "died of it" in deadly.value.detail
    assert all(row.state == INLINE and bench.tried(row).deaths == 0 for row in others)
    bench.release(deadly, *others)
    check_empty(bench.core)


def test_what_waits_to_be_alone_or_beside_one_that_is_is_not_blamed():
    bench = Bench("a", "b", "c", "d", slots=4)
    there = {"workers": ("a",), "loose": True}
    rows = [bench.row(f"r{i}", **there) for i in range(3)]
    bench.dies(rows[0].worker)
    bench.step()
    one = rows[0]
    beside = bench.row("beside", workers=(one.worker.address,), loose=True)
    bench.alone(one)
    bench.dies(one.worker)
    bench.step()
    assert (deaths(bench, one), bench.tried(one).deaths) == (
        ["a died", "b died"],
        1,
    )
    assert bench.tried(beside).died == ()
    for row in rows[1:]:
        assert deaths(bench, row) == ["a died"], "the worker had not said that it was alone"
    bench.alone(one)
    bench.alone(one, False)
    bench.dies(one.worker)
    bench.step()
    assert (len(bench.tried(one).died), bench.tried(one).deaths) == (3, 1), (
        "nobody knows whose fault"
    )
    (pushed,) = [message for message in one.worker.outbox if message[:2] == (m.PUSH, one.key)]
    assert pushed[-1]["alone"] == LONGER * ALONE
    bench.release(*rows, beside)


def test_a_suspect_that_has_not_heard_it_yet_did_not_begin():
    bench = Bench("a", "b", "c")
    row = bench.row("x")
    bench.dies(row.worker)
    bench.step()
    view = row.worker
    bench.core.receive(view, [(m.ALONE, row.key, row.attempt, True)], 0.0)
    bench.core.remove_worker(view, "died")  # with that in its outbox
    bench.step()
    assert (len(bench.tried(row).died), bench.tried(row).deaths) == (1, 0)
    bench.release(row)


def test_what_was_not_sent_yet_is_not_blamed():
    bench = Bench("a", slots=2)
    there = bench.row("there")
    bench.sent("a")
    unsent = bench.row("unsent")
    assert unsent.worker is there.worker
    bench.core.remove_worker(there.worker, "died")
    bench.step()
    assert (deaths(bench, there), bench.tried(there).deaths) == (
        ["a died"],
        0,
    )
    assert bench.tried(unsent).died == ()
    bench.release(there, unsent)
    check_empty(bench.core)


def test_suspects_that_are_cancelled_or_end_are_not_alone_any_more():
    for how in ("cancel", "done", "fail"):
        bench = Bench("a", "b")
        row = bench.row("s")
        bench.dies(row.worker)
        bench.step()
        view = row.worker
        bench.alone(row)
        assert view.alone is row
        if how == "cancel":
            bench.core.cancel([row], "not wanted")
        elif how == "done":
            bench.done(row)
        else:
            bench.answer(view.address, (m.FAILED, "s", row.attempt, b"error", 1.0))
        bench.step()
        assert view.alone is None, how
        # The worker waits until its owner has heard it, whatever became of the task.
        bench.answer(view.address, (m.ALONE, "s", row.attempt, False))
        assert bench.sent(view.address)[-1] == ("GO", "s", row.attempt, False)


def test_a_scattered_value_whose_workers_left_meanwhile_is_lost(bench):
    row = bench.core.table.adopt(Row("s", None, None, (), 0))
    view = bench.views["a"]
    user = bench.row("y", row)
    bench.core.remove_worker(view)
    for _ in range(2):
        bench.core.put(row, [view], 8)
        bench.step()
    assert row.state == LOST and user.state == ERROR and user.value.kind == "lost-data"
    bench.release(row, user)
    check_empty(bench.core)


def test_children_end_with_the_attempt_that_alone_has_them(bench):
    mine, theirs = ("o", "p", 1), ("o", "p", 2)
    one = bench.row("one", parent=mine)
    both = bench.row("both", parent=mine)
    assert bench.row("both", parent=theirs) is both
    again = bench.row("again", parent=mine)
    assert bench.row("again", parent=mine) is again
    for _ in range(2):
        bench.core.cancel_children(mine, "stop")
        bench.step()
    assert (one.state, again.state) == (CANCELLED, CANCELLED)
    assert both.state < INLINE
    bench.release(one, both, both, again, again)
    check_empty(bench.core)


def test_what_is_less_urgent_overtakes_what_is_least_though_others_did_before():
    bench = Bench("a")
    bench.function.duration = 5_000.0  # two fill the window
    bench.row("first")
    lowest, higher, lower = (
        Row(key, bench.function, b"call", (), ordered(place, priority), Options())
        for place, (key, priority) in enumerate([("lowest", -9), ("higher", -1), ("lower", -2)], 1)
    )
    for rows in ([lowest], [higher, lower]):
        for row in rows:
            bench.core.table.adopt(row)
        bench.core.submit(rows)
        bench.step()
    assert [row.state for row in (lowest, higher, lower)] == [PUSHED] * 3


def test_what_no_other_worker_may_run_is_not_recalled():
    bench = Bench("a", "b")
    rows = [bench.row(f"x{i}", workers=("a",)) for i in range(5)]
    assert all(row.worker is bench.views["a"] for row in rows)
    assert bench.core.tick(1e6) and not bench.views["a"].recalled
    bench.row("y", workers=("a", "b"))
    bench.core.tick(1e6)
    assert bench.views["a"].recalled == (bench.views["b"].active == 0)


def test_recall_is_asked_for_once_until_it_is_over():
    bench = Bench("a")
    rows = [bench.row(i) for i in range(20)]
    bench.sent("a")
    bench.core.add_worker(WorkerView("b"))
    for now in (1e6, 2e6):
        bench.core.tick(now)
    assert [s[0] for s in bench.sent("a")] == ["RECALL"]
    bench.answer("a", (m.GIVEN_BACK, None, 0, m.RECALLED, ()))
    bench.core.tick(3e6)
    assert [s[0] for s in bench.sent("a")] == ["RECALL"]
    bench.release(*rows)


def test_what_waits_for_tasks_of_another_owner_is_recalled_for_an_idle_worker():
    """A worker takes tasks of several owners, and none knows what the others gave it."""
    bench = Bench("a", "b")
    row = bench.row("x")
    held_up, idle = ("a", "b") if row.worker.address == "a" else ("b", "a")
    bench.sent(held_up)
    bench.core.tick(1e5)
    assert not bench.sent(held_up)
    bench.core.tick(1e6)
    assert [s[0] for s in bench.sent(held_up)] == ["RECALL"]
    bench.answer(
        held_up,
        (m.GIVEN_BACK, "x", row.attempt, m.RECALLED, ()),
        (m.GIVEN_BACK, None, 0, m.RECALLED, ()),
    )
    assert row.worker.address == idle
    bench.release(row)


def test_two_owners_of_one_key_know_nothing_of_each_other():
    one, two = Bench("a"), Bench("a")
    x, y = one.row("x"), two.row("x")
    one.stored(x)
    one.release(x)
    assert y.state == PUSHED


def test_retrying_does_not_bring_back_what_is_forgotten_on_the_way(bench):
    x, y = bench.row("x"), bench.row("y")
    z = bench.row("z", x, y)
    bench.answer("a", (m.FAILED, "x", x.attempt, b"error", 1.0))
    bench.core.cancel([y], "stop")
    bench.release(x)
    bench.core.retry([z])  # z is cancelled as y was, and with it nobody needs x any more
    bench.step()
    assert (x.state, z.state) == (FORGOTTEN, CANCELLED)
    bench.release(y, z)
    check_empty(bench.core)


def test_a_value_that_arrives_after_its_row_ended_is_dropped(bench):
    view = bench.views["a"]
    row = bench.core.table.adopt(Row("s", None, None, (), 0))
    row.attempt = 77
    bench.core.cancel([row], "stop")
    bench.core.put(row, [view], 8)
    assert bench.sent() == [("CANCEL", "s", 77)]
    bench.release(row)
    check_empty(bench.core)


def test_rows_whose_lineage_was_evicted_are_let_go_of(bench):
    lineages = bench.core.lineages
    lineages.limits.lineage_bytes = 1
    kept, ended = bench.row("x"), bench.row("y")
    bench.stored(kept)
    bench.stored(ended)
    assert lineages.evicted == 2 and "evicted" in lineages.why_not(kept)
    bench.core.cancel([ended], "stop")
    bench.release(kept, ended)
    assert not lineages.given_up
    check_empty(bench.core)


def test_what_cannot_be_made_again_when_it_is_needed_fails_what_needs_it(bench):
    """A task that is repeated needs a value that nobody kept; making that needs one cancelled."""
    source = bench.row("source")
    bench.stored(source)
    needed = bench.row("needed", source)
    bench.stored(needed)
    made = bench.row("made", needed)
    bench.stored(made)
    bench.release(needed)
    assert needed.state == DORMANT
    bench.core.cancel([source], "not needed")
    bench.step()
    again = Row("again", bench.function, b"call", made.lineage.dependencies, 0)
    bench.core.table.adopt(again)
    bench.core.submit([again])
    bench.step()
    assert again.state == CANCELLED
    bench.release(source, made, again)
    check_empty(bench.core)


def test_a_value_that_nobody_gives_is_made_again_however_often_that_is_said(bench):
    row = bench.row("x")
    bench.stored(row)
    for _ in range(2):
        bench.core.missed(row, [h.address for h in row.locations])
        bench.step()
    assert row.state == PUSHED
    bench.stored(row)
    bench.release(row)
    bench.core.missed(row, [h.address for h in row.locations])
    check_empty(bench.core)


def test_a_cluster_that_is_gone_leaves_what_is_here():
    bench = Bench("a", "b")
    here, failed, there = bench.row("here"), bench.row("failed"), bench.row("there")
    bench.done(here)
    bench.answer(failed.worker.address, (m.FAILED, "failed", failed.attempt, b"error", 1.0))
    bench.stored(there)
    remade = bench.row("remade", there)
    bench.stored(remade)
    bench.release(there)  # only lineage needs it
    running = bench.row("running")
    waits = bench.row("waits", running, remade)
    inherits = bench.row("inherits", failed, running)
    for _ in range(2):
        bench.core.abandon("the scheduler is gone")
        check_ownership(bench.core)
        assert (here.state, here.value) == (INLINE, b"value")
        assert failed.state == inherits.state == ERROR and failed.value == b"error"
        for row in (remade, running, waits):
            assert row.state == CANCELLED
            assert (row.value.kind, row.value.key) == ("scheduler-gone", row.key)
    bench.release(here, failed, remade, running, waits, inherits)
    assert not bench.core.table.rows and not bench.core.lineages.nbytes


def test_what_is_handed_out_again_is_counted_by_why():
    bench = Bench("a", "b", slots=2)
    row = bench.row("x", retries=1)
    for reason in (m.RECALLED, m.DROPPED, m.REFUSED):
        bench.returned(row, reason)
    first = row.attempt
    bench.answer(row.worker.address, (m.FAILED, "x", row.attempt, b"error", 1.0))
    bench.core.remove_worker(row.worker)
    bench.step()
    bench.stored(row)
    bench.core.remove_worker(row.locations[0])
    bench.step()
    assert bench.core.history.again == {
        "recalled": 1,
        "returned": 2,
        "retried": 1,
        "worker-gone": 1,
        "worker-silent": 0,
        "recovered": 1,
        "repeated": 0,
    }
    retried = next(entry for entry in bench.core.history.events if entry[1] == "retried")
    assert retried[2].startswith(f"attempt {first}: ")


def test_what_deaths_cost_is_counted_once_for_each():
    bench = Bench("a", "b", "c", "d", "e", "f")
    bench.core.limits.allowed_failures = 0
    idle = bench.views["f"]
    task = bench.row("x")
    after = bench.row("after", task)
    bench.core.remove_worker(idle)
    assert not any(bench.core.losses.values()), "nothing of this owner was there"
    bench.dies(task.worker)
    bench.step()
    bench.alone(task)
    bench.dies(task.worker)
    bench.step()
    assert (task.state, after.state) == (ERROR, ERROR)
    assert bench.core.losses == dict.fromkeys(LOSSES, 0) | {
        "workers-died": 2,
        "killed-worker": 1,
    }
    once = bench.row("once", at_most_once=True)
    bench.sent(once.worker.address)
    bench.core.remove_worker(once.worker)
    bench.step()
    scattered = Row("scattered", None, None, (), 0)
    bench.core.table.adopt(scattered)
    (left, _) = bench.core.placement.workers.values()
    bench.core.put(scattered, [left], 100)
    bench.core.remove_worker(left)
    bench.step()
    assert scattered.state == LOST
    assert bench.core.losses == dict.fromkeys(LOSSES, 0) | {
        "workers-died": 3,
        "killed-worker": 1,
        "uncertain": 1,
        "lost-data": 1,
    }


def test_a_worker_that_was_sent_nothing_died_under_no_task():
    bench = Bench("a", "b")
    row = bench.row("x")
    bench.core.remove_worker(row.worker)
    assert not any(bench.core.losses.values())


def test_a_value_that_nobody_needs_is_no_loss():
    bench = Bench("a")
    row = Row("scattered", None, None, (), 0)
    bench.core.table.adopt(row)
    bench.core.put(row, [bench.views["a"]], 100)
    bench.release(row)
    bench.core.remove_worker(bench.views["a"])
    assert not any(bench.core.losses.values())


# ---- tasks that run at most once ----


def test_what_may_have_started_is_not_pushed_again_when_its_worker_dies():
    bench = Bench("a", "b")
    once = bench.row("once", at_most_once=True)
    after = bench.row("after", once)
    view = once.worker
    bench.sent(view.address)
    bench.core.remove_worker(view, "died")
    bench.step()
    for row in (once, after):
        assert row.state == ERROR
        assert (row.value.kind, row.value.key) == ("uncertain", "once")
        assert view.address in row.value.detail and "retry" in row.value.detail
    assert bench.tried(once).died == (), "it is not blamed"
    # By hand it runs again.
    bench.core.retry([after])
    bench.step()
    assert once.state == PUSHED and once.worker is not view
    bench.done(once)
    bench.done(after)
    bench.release(once, after)
    check_empty(bench.core)


@pytest.mark.parametrize("how", ["not sent", "never reached", "recalled", "missing", "refused"])
def test_what_certainly_did_not_start_is_pushed_elsewhere(how):
    bench = Bench("a", "b")
    once = bench.row("once", at_most_once=True)
    view = once.worker
    if how == "not sent":
        bench.core.remove_worker(view, "died")
    elif how == "never reached":
        bench.sent(view.address)
        bench.core.remove_worker(view, "refused the link", reached=False)
    else:
        bench.sent(view.address)
        reason = {"recalled": m.RECALLED, "missing": m.MISSING, "refused": m.REFUSED}[how]
        if how == "refused":
            bench.answer(view.address, (m.ACCEPTING, False, 1))
        bench.returned(once, reason)
    bench.step()
    assert once.state == PUSHED and once.attempt > 1
    if how in ("not sent", "never reached", "refused"):
        assert once.worker is not view
    bench.done(once)
    bench.release(once)
    check_empty(bench.core)


def test_a_task_that_was_never_sent_to_a_dead_worker_is_no_suspect():
    bench = Bench("a", "b")
    row = bench.row("x")
    bench.sent(row.worker.address)
    bench.core.remove_worker(row.worker, "refused the link", reached=False)
    bench.step()
    assert row.state == PUSHED and bench.tried(row).died == ()
    bench.done(row)
    bench.release(row)


def test_such_a_task_goes_to_a_free_slot_only_and_behind_nothing():
    bench = Bench("a", slots=2)
    first = bench.row("first")
    chained = bench.row("chained", first)
    assert chained.state == PUSHED
    second = bench.row("second", first, at_most_once=True)
    assert second.state == WAITING, "not behind what it needs"
    third = bench.row("third", at_most_once=True)
    assert third.state == READY, "chained takes the other slot, as far as the owner knows"
    late = bench.row("late")
    assert late.state == READY, "it is not its turn"
    bench.done(first)
    assert (third.state, second.state, late.state) == (PUSHED, READY, READY)
    bench.done(third)
    assert (second.state, late.state) == (PUSHED, PUSHED)
    for row in (chained, second, late):
        bench.done(row)
    bench.release(first, chained, second, third, late)
    check_empty(bench.core)


def test_such_a_task_does_not_wait_for_ever_behind_work_that_never_ends():
    bench = Bench("a", "b")
    running = [bench.row(f"plain-{i}") for i in range(50)]
    once = bench.row("once", at_most_once=True)
    ended = 0
    for i in range(500):
        running.append(bench.row(f"more-{i}"))
        row = next(row for row in running if row.state == PUSHED)
        running.remove(row)
        bench.done(row)
        bench.release(row)
        ended += 1
        if once.state == PUSHED:
            break
    # What came before it, and what the windows already had.
    assert once.state == PUSHED and ended <= 60
    bench.done(once)
    while any(row.state == PUSHED for row in running):
        for row in [row for row in running if row.state == PUSHED]:
            bench.done(row)
    assert all(row.state == INLINE for row in running)
    bench.release(once, *running)
    check_empty(bench.core)


def test_only_the_workers_that_may_run_it_are_kept_for_it():
    bench = Bench("a", "b")
    busy = bench.row("busy", workers=("a",))
    once = bench.row("once", workers=("a",), at_most_once=True)
    elsewhere = [bench.row(f"e{i}") for i in range(4)]
    assert once.state == READY
    assert {row.worker.address for row in elsewhere} == {"b"}
    bench.core.cancel([once], "not wanted")
    bench.step()
    more = [bench.row(f"m{i}") for i in range(100)]
    assert "a" in {row.worker.address for row in more if row.worker is not None}
    assert not any(view.reserved for view in bench.views.values())
    bench.release(busy, *elsewhere, *more, once)
    check_empty(bench.core)


def test_a_stored_value_of_such_a_task_that_is_lost_is_not_made_again():
    bench = Bench("a", "b")
    once = bench.row("once", at_most_once=True)
    bench.stored(once)
    assert once.lineage is None
    after = bench.row("after", once)
    bench.stored(after)
    view = once.locations[0]
    for location in {view, after.locations[0]}:
        if location.alive:
            bench.core.remove_worker(location, "died")
    bench.core.add_worker(WorkerView("c"))
    bench.step()
    assert once.state == LOST and "at most once" in once.value.detail
    assert after.state == ERROR and after.value.key == "once"
    bench.release(once, after)
    check_empty(bench.core)


def test_children_of_a_task_that_was_cancelled_end_when_they_are_submitted():
    bench = Bench("a")
    parent = ("owner", "p", 1)
    late = bench.row("late", parent=parent)
    shared = bench.row("shared", parent=parent)
    bench.row("shared", parent=("owner", "another", 2))
    bench.core.cancel_children(parent, "it was cancelled", (late, shared))
    assert late.state == CANCELLED and shared.state == PUSHED
    bench.done(shared)
    bench.release(late, shared, shared)
    check_empty(bench.core)


def test_a_time_limit_is_in_the_push():
    bench = Bench("a")
    row = bench.row("x", timeout=2.5)
    (sent,) = [s for s in bench.sent() if s[0] == "PUSH"]
    assert sent[-1] == {"depth": 0, "timeout": 2.5}
    bench.done(row)
    bench.release(row)


# ---- what cannot be sent, and what fails inside ----


def test_a_push_that_cannot_be_packed_fails_its_task_and_what_needs_it(bench):
    x, other = bench.row("x"), bench.row("other")
    y = bench.row("y", x)
    (push,) = [one for one in bench.views["a"].outbox if one[:2] == (m.PUSH, "x")]
    for _ in range(2):
        bench.core.unsendable(bench.views["a"], push, b"too large")
        bench.step()
    assert (x.state, y.state, y.value) == (ERROR, ERROR, b"too large")
    assert other.state == PUSHED
    bench.done(other)
    bench.release(x, y, other)
    check_empty(bench.core)


def test_an_older_push_that_cannot_be_packed_fails_nothing(bench):
    x = bench.row("x")
    (push,) = [one for one in bench.views["a"].outbox if one[:2] == (m.PUSH, "x")]
    bench.returned(x, m.RECALLED)
    bench.core.unsendable(bench.views["a"], push, b"too large")
    assert x.state == PUSHED


def test_a_function_that_cannot_be_packed_fails_the_tasks_that_call_it():
    bench = Bench("a", slots=3)
    x = bench.row("x")
    other = Row("other", Function(2, b"g", "g"), b"call", (), 9)
    bench.core.table.adopt(other)
    bench.core.submit([other])
    bench.step()
    (message, *_) = [one for one in bench.views["a"].outbox if one[0] == m.FUNCTION]
    bench.core.unsendable(bench.views["a"], message, b"too large")
    assert (x.state, other.state) == (ERROR, PUSHED)
    assert 1 not in bench.views["a"].functions


def test_a_copy_that_cannot_be_packed_fails_the_tasks_that_need_it():
    bench = Bench("a", slots=3)
    x = bench.row("x")
    bench.done(x, BIG)
    rows = [bench.row(name, x) for name in ("p", "q")]
    other = bench.row("other")
    (copy,) = [one for one in bench.views["a"].outbox if one[0] == m.COPY]
    bench.core.unsendable(bench.views["a"], copy, b"too large")
    bench.step()
    assert [row.state for row in rows] == [ERROR, ERROR]
    assert (x.state, x.locations, other.state) == (INLINE, (), PUSHED)
    bench.core.unsendable(bench.views["a"], (m.CANCEL, "p", 1), b"")
    bench.done(other)
    bench.release(x, other, *rows)
    check_empty(bench.core)


def test_an_answer_that_cannot_be_taken_in_ends_its_task_and_no_other(bench):
    bench = Bench("a", slots=4)
    rows = [bench.row(f"x{i}") for i in range(4)]
    good = [(m.DONE, row.key, row.attempt, b"value", 1.0) for row in rows]
    bad = (m.DONE, "x1", rows[1].attempt)
    nonsense = [(m.DONE,), (99, "x", 1), (), (m.GIVEN_BACK, "x3", rows[3].attempt, m.MISSING, 7)]
    bench.core.receive(bench.views["a"], [good[0], bad, *nonsense[:3], good[2], nonsense[3]], 0.0)
    bench.step()
    assert [row.state for row in rows] == [INLINE, ERROR, INLINE, ERROR]
    assert {row.value.kind for row in (rows[1], rows[3])} == {"internal"}
    assert len(bench.core.effects.broken) == 4
    late = bench.row("late")
    bench.done(late)
    bench.release(late, *rows)
    check_empty(bench.core)


def test_a_row_that_cannot_be_submitted_ends_and_no_other(bench, monkeypatch):
    rows = [Row(f"x{i}", bench.function, b"call", (), i) for i in range(3)]
    for row in rows:
        bench.core.table.adopt(row)
    add = bench.core.lifecycle.queue

    def broken(row):
        if row is rows[1]:
            raise ZeroDivisionError("a fault")
        add(row)

    monkeypatch.setattr(bench.core.lifecycle, "queue", broken)
    bench.core.submit(rows)
    bench.step()
    assert [row.state for row in rows][1] == ERROR
    assert "a fault" in rows[1].value.detail
    for row in (rows[0], rows[2]):
        bench.done(row)
    bench.release(*rows)
    check_empty(bench.core)


@pytest.mark.parametrize("options", [{}, {"workers": ("a",)}])
def test_a_row_that_cannot_be_pushed_ends_and_no_other(bench, monkeypatch, options):
    bench = Bench("a", slots=4)
    push = bench.core.dispatch.push

    def broken(row, view, now):
        if row.key == "bad":
            raise ZeroDivisionError("a fault")
        push(row, view, now)

    monkeypatch.setattr(bench.core.dispatch, "push", broken)
    rows = [bench.row(key, **options) for key in ("x", "bad", "y")]
    assert [row.state for row in rows] == [PUSHED, ERROR, PUSHED]
    for row in (rows[0], rows[2]):
        bench.done(row)
    bench.release(*rows)
    check_empty(bench.core)


def test_a_ready_row_that_goes_with_one_that_no_worker_may_run_is_not_pushed():
    bench = Bench("a")
    bench.core.refusals["nowhere"] = "it refused"
    inside = Row("inside", bench.function, b"call", (), 1, Options(workers=("a",)))
    outer = Row("outer", bench.function, b"call", (), 0, Options(workers=("nowhere",)))
    outer.contains = (inside,)
    for row in (inside, outer):
        bench.core.table.adopt(row)
    bench.core.submit([outer, inside])
    bench.core.desire([outer])
    bench.core.release([outer, inside])
    bench.step()
    assert outer.state == inside.state == FORGOTTEN
    assert bench.sent() == []


def test_a_task_that_another_submitted_too_is_not_cancelled_while_its_value_is_made_again():
    bench = Bench("a", "b")
    mine = ("me", "parent", 1)
    row = bench.row("shared", parent=mine)
    bench.stored(row)
    assert bench.row("shared", parent=("me", "other", 2)) is row
    bench.core.missed(row, [row.locations[0].address])
    bench.step()
    assert row.state == PUSHED
    bench.core.cancel_children(mine, "its parent was cancelled")
    assert row.state == PUSHED
    bench.release(row, row)
