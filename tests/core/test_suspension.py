"""Workers that fall silent and wake up again, as their owner sees it."""

from __future__ import annotations

from test_ownership import Bench

from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.heartbeat import Heartbeat
from dask_ownership.core.protocol.states import INLINE, PUSHED, READY, STORED, WAITING
from dask_ownership.testing.virtual import Faults, Task, VirtualCluster


def silent(bench: Bench, address: str, times: float = 1.0) -> None:
    bench.core.suspensions.silent([(bench.views[address], times)])
    bench.step()


def test_a_peer_that_owes_an_answer_is_silent_from_then_on():
    heartbeat = Heartbeat()
    assert not heartbeat.look(1.0, False, False, None)
    assert heartbeat.look(1.0, False, False, 2.0)  # quiet for long: ask
    assert heartbeat.owed == 0.0
    heartbeat.look(1.0, False, True, 2.0)
    heartbeat.look(1.0, False, True, 2.0)
    assert heartbeat.owed == 2.0
    heartbeat.look(1.0, True, True, 2.0)  # something came, if not yet the answer
    assert heartbeat.owed == heartbeat.idle == 0.0
    heartbeat.look(1.0, False, True, 2.0)
    heartbeat.look(1.0, False, False, 2.0)
    assert heartbeat.owed == 0.0


def test_tasks_of_a_silent_worker_run_elsewhere_and_its_late_answers_change_nothing():
    bench = Bench("a", "b")
    one, other = bench.row("one"), bench.row("other")
    frozen, awake = one.worker, other.worker
    bench.done(other)
    first = one.attempt
    bench.sent(frozen.address)
    silent(bench, frozen.address, 0.9)
    assert one.worker is frozen
    silent(bench, frozen.address)
    assert one.state == PUSHED and one.worker is awake and one.attempt != first
    assert not bench.core.attempts.of(one).died and not bench.core.attempts.of(one).deaths
    assert bench.sent(frozen.address) == [("CANCEL", "one", first)]
    bench.done(one, b"right")
    bench.answer(frozen.address, (m.DONE, "one", first, b"late", 10.0))
    assert one.state == INLINE and one.value == b"right"
    third = [bench.row(f"third-{i}") for i in range(2)]
    assert {row.worker for row in third} == {frozen, awake}  # it is used again


def test_a_suspended_worker_gets_nothing_until_it_is_heard():
    bench = Bench("a")
    silent(bench, "a")
    row = bench.row("x")
    assert row.state == READY
    bench.core.suspensions.heard(bench.views["a"])
    bench.core.suspensions.heard(bench.views["a"])
    bench.step()
    assert row.state == PUSHED


def test_what_it_said_of_accepting_holds_when_it_wakes_up():
    bench = Bench("a")
    bench.answer("a", (m.ACCEPTING, False, 1))
    silent(bench, "a")
    bench.core.suspensions.heard(bench.views["a"])
    assert bench.row("x").state == READY
    silent(bench, "a")
    bench.answer("a", (m.ACCEPTING, True, 1))
    assert bench.core.table.rows["x"].state == PUSHED


def test_tasks_that_no_other_worker_may_run_stay():
    bench = Bench("a", "b")
    there = bench.row("there", workers=("a",))
    silent(bench, "a", 100.0)
    assert there.worker is bench.views["a"]
    bench.done(there)
    assert there.state == INLINE


def test_while_every_worker_is_silent_tasks_stay():
    bench = Bench("a", "b")
    rows = [bench.row(f"x{i}") for i in range(2)]
    before = [row.worker for row in rows]
    bench.core.suspensions.silent([(view, 50.0) for view in bench.views.values()])
    bench.step()
    assert [row.worker for row in rows] == before
    bench.done(rows[0])
    silent(bench, rows[1].worker.address, 51.0)
    assert rows[1].worker is before[0]  # that one can run it now


def test_the_patience_with_a_task_doubles_each_time_it_is_moved():
    """So that one which keeps its workers from answering finishes in the end."""
    bench = Bench("a", "b")
    row = bench.row("x")
    for times in (1, 2, 4, 8):
        view = row.worker
        silent(bench, view.address, times - 0.1)
        assert row.worker is view
        silent(bench, view.address, times)
        assert row.worker is not view
        bench.core.suspensions.heard(view)
    assert bench.core.attempts.of(row).patience == 16


def test_a_chain_moves_together():
    bench = Bench("a", "b")
    one = bench.row("one")
    two = bench.row("two", one)
    assert two.worker is one.worker
    frozen = one.worker
    silent(bench, frozen.address)
    assert one.worker is two.worker is not frozen
    assert bench.core.attempts.of(two).patience == 1


def test_a_stored_value_is_made_again_when_its_reader_got_no_answer():
    bench = Bench("a", "b")
    made = bench.row("made", workers=("a",), loose=True)
    bench.stored(made)
    silent(bench, "a")
    assert made.state == STORED
    reader = bench.row("reader", made)
    assert reader.worker is bench.views["b"]
    bench.returned(reader, m.MISSING, (("made", made.attempt, ()),))
    assert made.state == PUSHED and made.worker is bench.views["b"]
    assert reader.state in (WAITING, PUSHED)
    assert ("FREE", ("made",)) in bench.kinds("a")


def test_a_scattered_value_is_waited_for():
    bench = Bench("a", "b")
    value = bench.row("made", workers=("a",), loose=True)
    bench.stored(value)
    bench.core.lineages.drop(value)
    silent(bench, "a")
    reader = bench.row("reader", value)
    bench.returned(reader, m.MISSING, (("made", value.attempt, ()),))
    assert value.state == STORED and reader.state == PUSHED


def test_a_worker_that_dies_while_it_is_suspended():
    bench = Bench("a", "b")
    there = bench.row("there", workers=("a",), loose=True)
    silent(bench, "a", 0.5)
    silent(bench, "a", 1.0)
    bench.core.remove_worker(bench.views["a"])
    silent(bench, "a", 9.0)
    bench.core.suspensions.heard(bench.views["a"])
    bench.step()
    assert not bench.core.suspensions.suspended
    assert there.worker is bench.views["b"]


def test_posts_go_another_way_while_the_usual_one_is_silent():
    bench = Bench("a", "b")
    core = bench.core
    peer = core.peers.peer(("other", "", "other"))
    core.peers.say(peer, (3, "key", 1))
    core.posting.flush()
    assert [kind for kind, *_ in bench.sent("a")] == ["POST"]
    silent(bench, "a")
    assert [kind for kind, *_ in bench.sent("b")] == ["POST"]  # the same again
    core.peers.say(peer, (3, "key", 2))
    core.posting.flush()
    assert [kind for kind, *_ in bench.sent("b")] == ["POST"]


# ---- in the virtual cluster ----


def test_a_frozen_worker_costs_no_more_than_the_patience_with_it():
    cluster = VirtualCluster(3, workers=2, faults=Faults(0.0, 0.0))
    owner = cluster.clients[0]
    rows = [owner.submit(f"x{i}", Task(i, duration=3_000.0)) for i in range(30)]
    cluster.run_for(5_000.0)
    cluster.freeze("worker-0", 10_000_000.0)
    cluster.run_for(250_000.0)
    assert [cluster.outcome(owner, row) for row in rows] == list(range(30))
    cluster.run()
    more = [owner.submit(f"y{i}", Task(i, duration=3_000.0)) for i in range(30)]
    cluster.run()
    assert {row.state for row in more} == {INLINE}
    assert not owner.core.suspensions.suspended
    owner.core.release(rows + more)
    cluster.dirty.add(owner)
    cluster.run()
    cluster.assert_empty()
