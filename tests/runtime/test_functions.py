"""What an owner keeps of the functions that it sends, and for how long."""

from __future__ import annotations

import gc
import operator
import types
from functools import partial
from typing import Any

import pytest

from dask_ownership.errors import NotSerializable
from dask_ownership.runtime.functions import (
    KEPT_BYTES,
    KEPT_EACH,
    Functions,
    ManyCalls,
    NamedFunction,
    load,
)
from dask_ownership.runtime.serialize import CALL


def script(source: str) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(source, space)
    return space


class Model:
    def __init__(self, size: int = 0) -> None:
        self.data = bytes(size)

    def fit(self) -> None: ...


def test_a_named_function_has_one_record():
    functions = Functions()
    assert functions.get(operator.add) is functions.get(operator.add)
    assert functions.get(operator.add).named
    assert isinstance(load(functions.get(operator.add).pickled), NamedFunction)
    assert isinstance(load(functions.get(types.SimpleNamespace).pickled), NamedFunction)


def test_a_function_of_a_script_is_pickled_once():
    functions = Functions()
    f = script("def f(x): return x")["f"]
    record = functions.get(f)
    assert functions.get(f) is record
    assert not record.named
    assert record.token


def test_a_function_of_a_script_is_pickled_again_when_it_changed():
    functions = Functions()
    space = script("K = 1\ndef f(x): return x + K")
    before = functions.get(space["f"])
    space["K"] = 2
    after = functions.get(space["f"])
    assert after.pickled != before.pickled
    assert after.token != before.token
    space["K"] = 1
    assert functions.get(space["f"]) is before


@pytest.mark.parametrize(
    "function", [Model().fit, partial(operator.add, 1), Model, script("class A: pass")["A"]()]
)
def test_what_carries_state_travels_with_each_call(function):
    if function is Model:
        function = script("class Model: pass")["Model"]
    functions = Functions()
    if not callable(function):
        type(function).__call__ = lambda self: 1
    assert functions.get(function).pickled == CALL


def test_what_carries_state_is_pickled_once_for_many_calls():
    functions = Functions()
    model = Model()
    record = functions.stateful(model.fit)
    assert record.pickled != CALL
    assert functions.stateful(model.fit) is record
    model.data = b"other"
    assert functions.stateful(model.fit) is not record


def test_a_large_record_goes_with_the_last_task_that_has_it():
    gone: list[int] = []
    functions = Functions(gone.append)
    record = functions.stateful(Model(2 * KEPT_EACH).fit)
    assert functions.stateful(Model(2 * KEPT_EACH).fit) is record
    number = record.id
    del record
    gc.collect()
    assert gone == [number]


def test_what_is_kept_for_later_is_bounded():
    gone: list[int] = []
    functions = Functions(gone.append)
    most = KEPT_BYTES // (KEPT_EACH // 2)
    numbers = [functions.stateful(Model(KEPT_EACH // 2 + i).fit).id for i in range(2 * most)]
    assert gone == numbers[: len(gone)]
    assert most <= len(gone) < 2 * most


def test_a_plain_function_is_kept_within_the_same_bounds():
    gone: list[int] = []
    functions = Functions(gone.append)
    numbers = []
    for i in range(100):
        space = script(f"K = bytes({KEPT_EACH // 2 + i})\ndef f(): return K")
        numbers.append(functions.get(space["f"]).id)
    assert gone == numbers[: len(gone)]
    assert len(gone) > 60
    del space
    assert len(functions._plain) < 40


def test_what_cannot_be_pickled():
    import threading

    with pytest.raises(NotSerializable, match="could not pickle the function 'acquire'"):
        Functions().stateful(threading.Lock().acquire)


def test_what_shares_an_object_with_its_arguments_is_pickled_with_them():
    import numpy

    model = Model()
    model.items = [{"a": 1}, numpy.ones(3), Model()]
    calls = ManyCalls(Functions(), model.fit)
    once = calls.record
    assert once.pickled != CALL
    for apart in ("text", {"a": 1}, numpy.ones(3), Model(), operator.add, [Model]):
        assert calls.record_for((1, apart), {}) is once
    for part in (model, model.items, [model.items[0]], model.items[1], {"x": model.items[2]}):
        assert calls.record_for((part,), {}).pickled == CALL
        assert calls.record_for((), {"x": part}).pickled == CALL
    assert ManyCalls(Functions(), operator.add).record_for((model,), {}).named
