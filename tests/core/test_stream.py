from __future__ import annotations

from random import Random

import pytest

from dask_ownership.core.protocol.stream import NumberedStream


def test_a_batch_that_arrives_twice_gives_nothing_the_second_time():
    a, b = NumberedStream(), NumberedStream()
    batch = a.pack([(1,)])
    assert b.receive(batch) == [(1,)]
    assert b.receive(batch) == ()
    assert (b.received, b.unsaid) == (1, 1)


def test_a_batch_is_kept_until_it_is_acknowledged():
    a, b = NumberedStream(), NumberedStream()
    for number in range(3):
        b.receive(a.pack([(number,)]))
    assert len(a.unacknowledged) == 3
    assert a.receive(b.pack([])) == ()
    assert not a.unacknowledged and a.acknowledged == 3 and b.unsaid == 0


def test_an_empty_batch_is_not_numbered_and_may_come_at_any_time():
    a, b = NumberedStream(), NumberedStream()
    early = a.pack([])
    b.receive(a.pack([(1,)]))
    assert b.receive(early) == () and b.received == 1


def test_a_late_acknowledgement_changes_nothing():
    a, b = NumberedStream(), NumberedStream()
    old = b.pack([])
    b.receive(a.pack([(1,)]))
    a.receive(b.pack([]))
    a.receive(old)
    assert a.acknowledged == 1


def test_a_missing_batch_is_an_error_and_leaves_the_state():
    a, b = NumberedStream(), NumberedStream()
    a.pack([(1,)])
    second = a.pack([(2,)])
    with pytest.raises(ValueError, match="batch 2 arrived after batch 0"):
        b.receive(second)
    assert b.received == 0


def test_resuming_sends_the_rest_again_as_often_as_asked():
    a, b = NumberedStream(), NumberedStream()
    batches = [a.pack([(number,)]) for number in range(4)]
    b.receive(batches[0])
    for _ in range(2):
        again = a.resume(b.received)
        assert [batch[0] for batch in again] == [2, 3, 4]
    assert [b.receive(batch) for batch in again] == [[(1,)], [(2,)], [(3,)]]
    assert a.resume(b.received) == [] and a.resume(0) == []


@pytest.mark.parametrize("seed", range(20))
def test_everything_arrives_once_and_in_order_however_often_the_connection_breaks(seed):
    random = Random(seed)
    ends = (NumberedStream(), NumberedStream())
    wires: tuple[list, list] = ([], [])
    sent: tuple[list, list] = ([], [])
    got: tuple[list, list] = ([], [])
    for number in range(400):
        side = random.randint(0, 1)
        action = random.random()
        if action < 0.4:
            messages = [(number,)] if random.random() < 0.8 else []
            sent[side].extend(messages)
            wires[side].append(ends[side].pack(messages))
        elif action < 0.9 and wires[side]:
            got[1 - side].extend(ends[1 - side].receive(wires[side].pop(0)))
        elif action > 0.95 or number == 399:
            for one in (0, 1):
                wires[one][:] = ends[one].resume(ends[1 - one].received)
    for one in (0, 1):
        for batch in ends[one].resume(ends[1 - one].received):
            got[1 - one].extend(ends[1 - one].receive(batch))
    assert got[1] == sent[0] and got[0] == sent[1]
