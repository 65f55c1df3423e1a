"""Addresses at which no scheduler answers: the error says what is there instead."""

from __future__ import annotations

import socket
import sys

import pytest

from dask_ownership import Client

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")


def note_of(address: str) -> str:
    with pytest.raises(OSError, match="Timed out trying to connect") as info:
        Client(address, timeout="1s")
    [note] = info.value.__notes__
    assert note.startswith(address)
    return str(note)


def test_an_address_where_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    assert "nothing listens there (the connection was refused). The log" in note_of(address)


def test_a_host_that_does_not_exist() -> None:
    assert "there is no host of this name" in note_of("tcp://no-such-host.invalid:8786")
