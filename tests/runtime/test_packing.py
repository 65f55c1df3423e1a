"""Messages as bytes: what cannot be packed is found out before it is numbered."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgpack
import numpy as np
import pytest

from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol import peer_messages as r
from dask_ownership.core.protocol.states import LOST
from dask_ownership.core.protocol.stream import NumberedStream
from dask_ownership.runtime.comm import packing
from dask_ownership.runtime.comm.packing import Packing, packable, unpack

SENDER = ("me", "", "me")


class End:
    """One end of a link, and the other one that takes its frames."""

    def __init__(self) -> None:
        self.state = NumberedStream()
        self.other = NumberedStream()
        self.refused: list[Any] = []
        self.packing = Packing(self.state, lambda message, _: self.refused.append(message))
        self.frames = 0

    def send(self, *messages: Any) -> list[Any]:
        """What arrives of these messages."""
        arrived: list[Any] = []
        for frame in self.packing.number(list(messages)):
            self.frames += 1
            arrived.extend(self.other.receive(unpack(frame)))
        return arrived


@pytest.fixture
def end() -> End:
    return End()


def test_a_batch_is_one_frame(end: End) -> None:
    messages = [(m.DONE, "x", 1, b"value", 1.0), (m.PARKED, ("y", 0), 2)]
    assert end.send(*messages) == messages
    assert end.frames == 1 and end.state.sent == 1


def test_what_cannot_be_packed_is_said_and_the_rest_arrives(end: End) -> None:
    bad = (m.STORED, "bad", 2, object(), None, 1.0)
    good = [(m.DONE, f"x{i}", i, b"value", 1.0) for i in range(10)]
    assert end.send(*good[:4], bad, *good[4:]) == good
    assert end.refused == [bad]
    assert end.send(bad) == [] and end.refused == [bad, bad]
    assert end.send(*good) == good, "nothing is missing in between"


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (np.int64(7), 7),
        (np.float32(0.5), 0.5),
        ("caf\udce9", "caf\\udce9"),
        (bytearray(b"x"), b"x"),
        ({"a\udce9": [np.int8(1)]}, {"a\\udce9": (1,)}),
    ],
)
def test_what_means_the_same_is_sent_instead(end: End, value: Any, arrives: Any) -> None:
    assert end.send((m.PUSH, "x", 1, value)) == [(m.PUSH, "x", 1, arrives)]
    assert not end.refused


def test_what_a_message_is_about_is_never_changed(end: End) -> None:
    about = (m.PUSH, "caf\udce9", 1, b"")
    assert end.send(about) == []
    assert end.refused == [about]


@pytest.mark.parametrize("value", [Decimal(1), object(), 1 << 70, {1: object()}])
def test_what_has_no_meaning_there_is_refused(value: Any) -> None:
    end = End()
    assert end.send((m.PUSH, "x", 1, value)) == []
    assert len(end.refused) == 1


def test_a_batch_of_many_bytes_is_sent_in_parts(end: End, monkeypatch: Any) -> None:
    monkeypatch.setattr(packing, "FRAME", 1000)
    messages = [(m.DONE, i, i, bytes(300), 1.0) for i in range(20)]
    messages.insert(3, (m.DONE, "large", 0, bytes(5000), 1.0))
    assert end.send(*messages) == messages
    assert 6 < end.frames <= 21
    assert end.state.sent == end.other.received == end.frames
    assert all(len(frame) < 1100 or len(frame) > 5000 for frame in end.packing.again(0))


def test_frames_are_sent_again_after_what_was_received(end: End) -> None:
    first = end.packing.number([(m.PARKED, "a", 1)])
    second = end.packing.number([(m.PARKED, "b", 2)])
    assert list(end.packing.again(0)) == [*first, *second]
    assert list(end.packing.again(1)) == second
    assert list(end.packing.again(2)) == []


def test_an_empty_batch_only_acknowledges(end: End) -> None:
    (frame,) = end.packing.number([])
    assert unpack(frame) == (0, 0, ())
    (frame,) = end.packing.number([], ask=True)
    assert unpack(frame) == (1, 0, ())


def test_a_post_arrives_whatever_is_in_it(end: End) -> None:
    """Its own batch is numbered: without it, nothing that one says to the other arrives."""
    said = [
        (r.REQUEST, "cancel", "x", 3, "could not read caf\udce9.csv"),
        (r.BORROW_ACK, "y", 4, (3, object(), ())),
        (r.BORROW_RELEASE, "z", 5),
    ]
    (arrived,) = end.send((m.POST, "them", SENDER, (7, 6, said)))
    number, acknowledged, heard = arrived[3]
    assert (number, acknowledged) == (7, 6)
    assert heard[0] == (r.REQUEST, "cancel", "x", 3, "could not read caf\\udce9.csv")
    assert heard[1][:3] == (r.BORROW_ACK, "y", 4) and heard[1][3][0] == LOST
    assert heard[2] == (r.BORROW_RELEASE, "z", 5)
    assert not end.refused


@pytest.mark.slow
def test_the_other_end_takes_what_msgpack_can_say() -> None:
    """A message may have 4 GiB: the unpacker's own default is half of that."""
    unpacker = packing.unpacker()
    unpacker.feed(b"\xc6" + (1 << 31).to_bytes(4, "big"))
    part = bytes(1 << 29)
    for _ in range(4):
        unpacker.feed(part)
    assert len(unpacker.unpack()) == 1 << 31


def test_packable_keeps_what_can_be_packed() -> None:
    value = (1, 2.5, None, True, b"x", "y", (1, ("z",)), {"a": (1,)})
    assert packable(value) == value
    assert msgpack.packb(packable(value)) == msgpack.packb(value)
