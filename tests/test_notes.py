"""Notes on the exceptions of tasks: which task, worker and attempt raised them."""

from __future__ import annotations

import copy
import pickle
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from live import boom, inc
from programs import fails_at_first, slowly

from dask_ownership import Client, TaskTimeout, get_client
from dask_ownership.runtime.serialize import note_on

notes = pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")


def parent(text: str) -> None:
    get_client().submit(boom, text).result()


@dataclass
class Equal(Exception):
    """Is equal to another one with the same attributes."""

    code: int

    def __eq__(self, other: Any) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)


def raises_equal() -> None:
    raise Equal(3)


def notes_of(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", []))


@notes
def test_key_worker_and_attempt(client: Client) -> None:
    future = client.submit(boom, "once")
    for _ in range(2):  # each time is another exception
        with pytest.raises(ZeroDivisionError) as raised:
            future.result()
        [note] = notes_of(raised.value)
        assert re.fullmatch(
            f"raised by the task {future.key!r} at worker tcp://[0-9.:]+ \\(attempt 1\\)", note
        )
        assert raised.value.args == ("once",) and str(raised.value) == "once"
        again = pickle.loads(pickle.dumps(raised.value))
        assert type(again) is ZeroDivisionError and notes_of(again) == [note]
        note_on(raised.value, note)
        assert notes_of(raised.value) == [note]


@notes
def test_an_attempt_after_others_is_counted(client: Client, tmp_path: Path) -> None:
    """As people count: other tasks of the owner do not matter."""
    client.gather(client.map(inc, range(50), pure=False))
    future = client.submit(fails_at_first, str(tmp_path / "tries"), 9, retries=2)
    [note] = notes_of(future.exception())
    assert note.endswith("(attempt 3)")


@notes
def test_an_error_that_comes_through_tasks_names_each_of_them(client: Client) -> None:
    future = client.submit(parent, "nested")
    error = future.exception()
    child, outer = notes_of(error)
    assert "task 'boom-" in child and repr(future.key) in outer
    assert notes_of(client.submit(slowly, future).exception()) == [child, outer]


def test_equality_and_odd_classes_stay(client: Client) -> None:
    assert client.submit(raises_equal).exception() == Equal(3)

    class Frozen(Exception):
        def __setattr__(self, name: str, value: Any) -> None:
            raise AttributeError(name)

    odd = Frozen("x")
    note_on(odd, "note")
    assert copy.copy(odd).args == ("x",)


def test_errors_that_name_the_task_have_none(client: Client) -> None:
    future = client.submit(slowly, 1, 0.3, timeout=0.05)
    error = future.exception()
    assert type(error) is TaskTimeout and notes_of(error) == []
