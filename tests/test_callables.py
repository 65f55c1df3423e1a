"""What tasks call: each its own copy, as it was when it was submitted, and the newest code."""

from __future__ import annotations

import asyncio
import gc
import importlib
import random
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import numpy as np
import programs
import psutil
import pytest
from distributed import LocalCluster
from live import until

from dask_ownership import Client
from dask_ownership.core.protocol.messages import NAMES


class Sampler:
    """Counts its calls, and notices when two threads are in it at once."""

    def __init__(self, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.calls = 0
        self.inside = 0

    def sample(self, *args: Any) -> tuple[float, int]:
        self.calls += 1
        return self.random.random(), self.calls

    def alone(self, *args: Any) -> tuple[float, int]:
        self.inside += 1
        time.sleep(0.005)
        most = self.inside
        self.inside -= 1
        return 0.0, most

    async def later(self, *args: Any) -> tuple[float, int]:
        await asyncio.sleep(0)
        return self.sample()

    def __call__(self, *args: Any) -> tuple[float, int]:
        return self.sample()


def counter() -> Any:
    n = 0

    def count(*args: Any) -> tuple[float, int]:
        nonlocal n
        n += 1
        return 0.0, n

    return count


def remembers(seen: list[int], *args: Any) -> tuple[float, int]:
    seen.append(1)
    return 0.0, len(seen)


def in_script(source: str) -> Any:
    """A function as a script or a notebook defines it."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(source, space)
    return space["f"]


STATEFUL = {
    "a bound method": Sampler().sample,
    "a bound method in several threads": Sampler().alone,
    "a coroutine": Sampler().later,
    "an object": Sampler(),
    "a partial": partial(remembers, []),
    "a partial of a bound method": partial(Sampler().sample, 1),
    "a closure": counter(),
    "a mutable default": in_script(
        "def f(*args, seen=[]):\n    seen.append(1)\n    return 0.0, len(seen)"
    ),
    "a mutable global": in_script(
        "seen = []\ndef f(*args):\n    seen.append(1)\n    return 0.0, len(seen)"
    ),
    "a global that it sets": in_script(
        "n = 0\ndef f(*args):\n    global n\n    n += 1\n    return 0.0, n"
    ),
    "an attribute that it sets": in_script(
        "def f(*args):\n    f.n = getattr(f, 'n', 0) + 1\n    return 0.0, f.n"
    ),
    "the attribute of another": in_script(
        "def g(): pass\ndef f(*args):\n    g.n = getattr(g, 'n', 0) + 1\n    return 0.0, g.n"
    ),
    "a coroutine with a cell": in_script(
        "def make():\n    n = 0\n    async def count(*args):\n        nonlocal n\n        n += 1\n"
        "        return 0.0, n\n    return count\nf = make()"
    ),
}


def submitted(client: Client, function: Any) -> list[Any]:
    return client.gather([client.submit(function, i, pure=False) for i in range(6)])


def mapped(client: Client, function: Any) -> list[Any]:
    return client.gather(client.map(function, range(6), pure=False))


def pure(client: Client, function: Any) -> list[Any]:
    return client.gather(client.map(function, range(6)))


def streamed(client: Client, function: Any) -> list[Any]:
    stream = client.map(function, range(6), pure=False, buffer_size=3)
    return [future.result() for future in stream]


def delayed(client: Client, function: Any) -> list[Any]:
    return list(dask.compute(*[dask.delayed(function, pure=False)(i) for i in range(6)]))


def in_executor(client: Client, function: Any) -> list[Any]:
    return list(client.get_executor(pure=False).map(function, range(6)))


def in_a_pool(client: Client, function: Any) -> list[Any]:
    with dask.annotate(executor="default"):
        return submitted(client, function)


WAYS = [submitted, mapped, pure, streamed, delayed, in_executor, in_a_pool]


@pytest.fixture(scope="module")
def threads() -> Any:
    """A worker of two threads, so that two tasks can meet in one object."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(name, way, id=f"{name}-{way.__name__}")
        for name in STATEFUL
        for way in WAYS
        if way is not delayed or "coroutine" not in name  # which `dask.delayed` takes for results
    ],
)
def test_state_is_not_carried_from_task_to_task(threads, name, way):
    function = STATEFUL[name]
    found = way(threads, function)
    assert len(set(found)) == 1, found
    assert found[0][1] == 1


def test_the_random_numbers_of_tasks_are_those_of_their_own_generators(threads):
    """A generator that is the function's is at the same place in each task."""
    expected = Sampler(7).random.random()
    assert {value for value, _ in submitted(threads, Sampler(7).sample)} == {expected}
    assert {value for value, _ in mapped(threads, Sampler(7).sample)} == {expected}


class Model:
    """An estimator: what it learns is in itself, and it returns itself."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def fit(self, x: Any) -> Model:
        self.seen.append(x)
        return self

    def is_it(self, other: Any) -> bool:
        return other is self


@pytest.mark.parametrize("size", [1, 100_000])
def test_each_result_is_the_object_of_its_own_call(threads, size):
    model = Model()
    data = [np.full(size, i) for i in range(4)]
    for futures in (
        [threads.submit(model.fit, x, pure=False) for x in data],
        threads.map(model.fit, data, pure=False),
    ):
        for x, fitted in zip(data, threads.gather(futures), strict=True):
            assert len(fitted.seen) == 1
            assert (fitted.seen[0] == x).all()
    assert model.seen == []


def test_what_is_one_object_at_submit_is_one_in_the_task(threads):
    model = Model()
    assert threads.submit(model.is_it, model, pure=False).result()
    assert not threads.submit(model.is_it, Model(), pure=False).result()


def test_the_state_is_that_of_the_submit(threads):
    model = Model()
    futures = []
    for i in range(4):
        model.seen = [i]
        futures.append(threads.submit(model.fit, "x", pure=False))
    assert [f.result().seen for f in futures] == [[i, "x"] for i in range(4)]


def test_a_function_of_a_script_is_pickled_and_sent_once(threads):
    function = in_script("K = 2\ndef g(x): return x * K\ndef f(x): return g(x) + 1")
    sent = []
    view = next(iter(threads.owner.core.placement.workers.values()))
    link = view.link
    before = link.send

    def send(messages: Any) -> None:
        sent.extend(NAMES[message[0]] for message in messages)
        before(messages)

    link.send = send
    try:
        futures = [threads.submit(function, i, pure=False) for i in range(50)]
        futures += threads.map(function, range(50), pure=False)
        assert threads.gather(futures) == [2 * i + 1 for i in range(50)] * 2
    finally:
        link.send = before
    assert sent.count("FUNCTION") == 1
    assert sent.count("PUSH") == 100


def test_a_global_that_changed_between_two_submits(threads):
    function = in_script("K = 2\ndef f(x): return x * K")
    futures = []
    for k in range(4):
        function.__globals__["K"] = k
        futures.append(threads.submit(function, 10, pure=False))
    assert threads.gather(futures) == [0, 10, 20, 30]


def test_recursion_of_a_function_of_a_script(threads):
    function = in_script(
        "from distributed import get_client\n"
        "def f(n):\n"
        "    if n < 2:\n"
        "        return n\n"
        "    client = get_client()\n"
        "    a, b = client.submit(f, n - 1), client.submit(f, n - 2)\n"
        "    return a.result() + b.result()\n"
    )
    assert threads.submit(function, 10).result() == 55


def test_pure_calls_of_one_function_are_one_task(threads):
    function = in_script("K = 2\ndef f(x): return x * K")
    one = threads.submit(function, 3)
    assert threads.submit(function, 3).key == one.key
    assert threads.map(function, [3])[0].key == one.key
    assert threads.submit(function, [3]).key == threads.submit(function, [3]).key
    function.__globals__["K"] = 3
    assert threads.submit(function, 3).key != one.key
    assert threads.submit(function, 3).result() == 9


def test_a_class_of_a_script(threads):
    made = in_script("class f:\n    def __init__(self, x):\n        self.x = x")
    assert [f.result().x for f in threads.map(made, range(3))] == [0, 1, 2]


# ---- the newest code ----


RULES = """
def rule(x):
    return {word!r}, x
class Tool:
    @staticmethod
    def use(x):
        return {word!r}, x
    def own(self, x):
        return {word!r}, x
# {length}
"""


@pytest.fixture
def rules(client: Client, tmp_path: Path) -> Any:
    """Writes a module of a name of its own, imports it here and at the workers, and again."""
    name = f"rules_{tmp_path.name.replace('-', '_')}"
    sys.path.insert(0, str(tmp_path))
    client.run(programs.add_to_path, str(tmp_path))

    def write(word: str) -> Any:
        (tmp_path / f"{name}.py").write_text(RULES.format(word=word, length="#" * len(word)))
        importlib.invalidate_caches()
        client.run(programs.import_again, name)
        return programs.import_again(name)

    yield write
    sys.path.remove(str(tmp_path))
    client.run(programs.remove_from_path, str(tmp_path))


def uses(module: Any) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": "__main__", "module": module, "rule": module.rule}
    exec(
        "def by_module(x): return module.rule(x)\n"
        "def by_name(x): return rule(x)\n"
        "seen = []\n"
        "def with_state(x): return seen and 0 or rule(x)\n",
        space,
    )
    return {
        "function": module.rule,
        "static method": module.Tool.use,
        "bound method": module.Tool().own,
        "partial": partial(module.rule),
        "refers to the module": space["by_module"],
        "refers to the function": space["by_name"],
        "refers to it and to a list": space["with_state"],
    }


def test_a_module_that_is_loaded_again(client, workers, rules):
    module = rules("old")
    for function in uses(module).values():
        for worker in workers:
            assert client.submit(function, 1, workers=worker, pure=False).result() == ("old", 1)
    module = rules("newer")
    for name, function in uses(module).items():
        found = [client.submit(function, 2, workers=w, pure=False).result() for w in workers]
        found += client.gather(client.map(function, [2] * 4, pure=False))
        assert set(found) == {("newer", 2)}, name


def test_a_module_that_is_patched_at_the_workers(client, workers, rules):
    module = rules("old")
    functions = uses(module)
    for name in ("function", "partial", "refers to the module", "refers to the function"):
        assert client.submit(functions[name], 1, pure=False).result() == ("old", 1)
    client.run(programs.patch_rule, module.__name__)
    for name in ("function", "partial", "refers to the module", "refers to the function"):
        for worker in workers:
            future = client.submit(functions[name], 1, workers=worker, pure=False)
            assert future.result() == "patched", name


def test_a_module_that_is_another_object_now(client, workers, rules):
    module = rules("old")
    functions = uses(module)
    for function in functions.values():
        client.gather([client.submit(function, 1, workers=w, pure=False) for w in workers])
    client.run(programs.replace_module, module.__name__)
    for name in ("function", "partial", "refers to the module", "refers to the function"):
        for worker in workers:
            future = client.submit(functions[name], 1, workers=worker, pure=False)
            assert future.result() == "replaced", name


def test_a_function_that_is_gone_at_the_workers(client, rules):
    from dask_ownership import NotSerializable

    module = rules("old")
    assert client.submit(module.rule, 1, pure=False).result() == ("old", 1)
    client.run(programs.delete_rule, module.__name__)
    for function in (module.rule, uses(module)["refers to the function"]):
        with pytest.raises(
            NotSerializable, match=r"could not unpickle the function of '(rule|by_name)-"
        ):
            client.submit(function, 1, pure=False).result()


# ---- memory ----


def used() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


@pytest.mark.parametrize("way", ["submit", "map", "plain"])
def test_what_functions_carry_is_let_go_of(client, way):
    size = 2_000_000

    def once(i: int) -> None:
        data = np.full(size // 8, i)
        if way == "submit":
            future = client.submit(partial(programs.first_item, data), pure=False)
        elif way == "map":
            future = client.map(Holder(data).first, [0], pure=False)[0]
        else:
            function = in_script(f"K = bytes({size} + {i})\ndef f(): return len(K) - {size}")
            future = client.submit(function, pure=False)
        assert future.result() == i

    for i in range(3):
        once(i)
    here, there = used(), sum(client.run(used).values())
    for i in range(40):
        once(i)
    until(lambda: used() - here < 40)
    until(lambda: sum(client.run(used).values()) - there < 50)


class Holder:
    def __init__(self, data: Any) -> None:
        self.data = data

    def first(self, _: Any) -> int:
        return int(self.data[0])


cloudpickle.register_pickle_by_value(sys.modules[__name__])
