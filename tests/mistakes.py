"""Mistakes of users, each as a program that makes it and what is said then.

`test_mistakes.py` makes each of them and compares; ``python tests/mistakes.py`` writes the page
``docs/mistakes.md``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "mistakes.md"


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Attributes
    ----------
    title : str
        What is wrong, in a few words.
    code : str
        A program that makes the mistake. It has a ``client``, and `COMMON`.
    says : str
        Name of the error or warning, and its text, as `masked`.
    cure : str
        What to do.
    """

    title: str
    code: str
    says: str
    cure: str


COMMON = """\
import asyncio
import pickle
import sys
import threading
import time

import dask
import distributed
import dask_ownership
from dask_ownership import Client, as_completed, checkpoint, delegate, get_client, wait

def inc(x):
    return x + 1

def slow(seconds):
    time.sleep(seconds)
"""
"""What each program begins with."""

MASKS = (
    (r"tcp://127\.0\.0\.1:[0-9]+", "tcp://10.0.0.1:40331"),
    (r"(http://)?127\.0\.0\.1:[0-9]+", r"\g<1>10.0.0.1:8787"),
    (r"([a-zA-Z_]+)-[0-9a-f]{16,}", r"\1-5f3a"),
    (r"Client-[0-9a-f-]+", "Client-5f3a"),
    (r"attempt [0-9]+", "attempt 1"),
    (r"handed to (\S+) [0-9]+ s ago", r"handed to \1 0 s ago"),
    (r" object at 0x[0-9a-f]+", " object"),
)
"""What is different each time, and what the page has in place of it."""


def masked(text: str) -> str:
    """Return a text without what is different each time."""
    for pattern, constant in MASKS:
        text = re.sub(pattern, constant, text)
    first, second = (f"tcp://10.0.0.1:40331, named {number}" for number in (0, 1))
    return text.replace(f"{second}; {first}", f"{first}; {second}")  # either may be first


MISTAKES = (
    # ---- where tasks run ----
    Mistake(
        "`workers=` names no worker",
        'client.submit(inc, 1, workers="gpu-7").result(timeout=0.1)',
        "TimeoutError: 'inc-5f3a' did not end within 0.1 s: workers=[gpu-7] names no "
        "worker of the cluster (its workers: tcp://10.0.0.1:40331, named 0; "
        "tcp://10.0.0.1:40331, named 1); use allow_other_workers=True to run it elsewhere",
        "Give an address, name or host of a worker that is there, or `allow_other_workers=True`.",
    ),
    Mistake(
        "No worker has the resources",
        'wait(client.map(inc, range(3), resources={"GPU": 1}), timeout=0.1)',
        "TimeoutError: 3 of 3 futures did not end within 0.1 s. 'inc-5f3a': no worker has "
        "resources={'GPU': 1} (tcp://10.0.0.1:40331 has none; tcp://10.0.0.1:40331 has "
        "none)",
        "Start workers with `--resources GPU=1`. The log has a warning of such tasks after five "
        "seconds.",
    ),
    Mistake(
        "A task waits for an input that cannot run",
        'x = client.submit(inc, 10, resources={"GPU": 1})\n'
        "client.submit(inc, x).result(timeout=0.1)",
        "TimeoutError: 'inc-5f3a' did not end within 0.1 s: it waits for its input "
        "'inc-5f3a': no worker has resources={'GPU': 1} (tcp://10.0.0.1:40331 has none; "
        "tcp://10.0.0.1:40331 has none)",
        "`client.ownership(future).why` says the same at any time.",
    ),
    Mistake(
        "The time to wait is too short",
        "client.submit(slow, 0.5).result(timeout=0.3)",
        "TimeoutError: 'slow-5f3a' did not end within 0.3 s: it was handed to "
        "tcp://10.0.0.1:40331 0 s ago (attempt 1), and should be running there",
        "Wait longer. The task goes on, and `timeout=` of `submit` ends a task.",
    ),
    Mistake(
        "Nothing came in time",
        "next(as_completed([client.submit(slow, 0.5)], timeout=0.2))",
        "TimeoutError: 'slow-5f3a' did not end within 0.2 s: it was handed to "
        "tcp://10.0.0.1:40331 0 s ago (attempt 1), and should be running there",
        "The time is for all futures together.",
    ),
    Mistake(
        "`allow_other_workers=` without `workers=`",
        "client.submit(inc, 1, allow_other_workers=True)",
        "ValueError: Only use allow_other_workers= if using workers=",
        "Say which workers are preferred.",
    ),
    Mistake(
        "Data for a worker that is not there",
        'client.scatter([1, 2], workers=["gpu-7"], timeout=0.1)',
        "NoWorkerInTime: no worker can run 'scatter': workers=['gpu-7'] within 0.1 s; "
        "there are: tcp://10.0.0.1:40331, tcp://10.0.0.1:40331",
        "Name workers that are there, or wait for them with `client.wait_for_workers`.",
    ),
    Mistake(
        "More copies than workers",
        "client.replicate(client.submit(inc, 1), n=5, workers=['gpu-7'])",
        "ValueError: workers=['gpu-7'] names no worker that takes copies; there are: "
        "tcp://10.0.0.1:40331, tcp://10.0.0.1:40331",
        "Name workers that are there.",
    ),
    # ---- calls ----
    Mistake(
        "The function is called in place of handed over",
        "client.submit(inc(1))",
        "TypeError: First input to submit must be a callable function, not 2; its "
        "arguments come after it, as in submit(function, argument)",
        "Write `client.submit(inc, 1)`.",
    ),
    Mistake(
        "An option has a typing error",
        "client.submit(inc, 1, retrys=2).result()",
        "TypeError: inc() got an unexpected keyword argument 'retrys'\n"
        "raised by the task 'inc-5f3a' at worker tcp://10.0.0.1:40331 (attempt 1)",
        "Unknown names go to the function, as in Dask: look for the name among the options of "
        "`submit`.",
    ),
    Mistake(
        "`map` over an iterator",
        "client.map(inc, iter([1, 2, 3]))",
        "TypeError: Dask no longer supports mapping over Iterators or Queues. Consider "
        "buffer_size=, or a normal for loop and Client.submit",
        "Give a list, or `buffer_size=` for a stream.",
    ),
    Mistake(
        "`wait` with several futures instead of a list",
        "x, y = client.submit(inc, 1), client.submit(inc, 2)\nwait(x, y)",
        "TypeError: wait takes a list of futures, as in wait([x, y]), and its timeout= is a "
        "time, not a Future",
        "Write `wait([x, y])`.",
    ),
    Mistake(
        "`as_completed` over values",
        "as_completed([1, 2])",
        "TypeError: Input must be a future of dask_ownership, got 1; for others use "
        "distributed.as_completed",
        "Give futures.",
    ),
    Mistake(
        "A wrong word for `errors=`",
        'client.gather([], errors="ignore")',
        "ValueError: Bad value, `errors=ignore`; it is 'raise' or 'skip'",
        'Write `errors="skip"` or `errors="raise"`.',
    ),
    Mistake(
        "Retries of a task that runs at most once",
        "client.submit(inc, 1, at_most_once=True, retries=2)",
        "ValueError: retries= runs a task again, and at_most_once=True does not: use one",
        "Leave one of the two out.",
    ),
    Mistake(
        "A time that is no time",
        'client.submit(slow, 1, timeout="soon")',
        "ValueError: timeout= takes seconds or a text such as \"30s\", not 'soon'",
        'Write seconds, or `"30s"`.',
    ),
    Mistake(
        "A key that cannot be a key",
        "client.submit(inc, 1, key=[1])",
        "TypeError: Unexpected key type <class 'list'> (key=[1])",
        "Use text, a number or a tuple.",
    ),
    Mistake(
        "`delegate` of something else than a future",
        "def task():\n    return delegate(3)\n\nclient.submit(task).result()",
        "TypeError: delegate takes a future of dask_ownership, not a int\n"
        "raised by the task 'task-5f3a' at worker tcp://10.0.0.1:40331 (attempt 1)",
        "Delegate a future, and return values as they are.",
    ),
    Mistake(
        "A key of which nothing is known",
        'client.ownership("inc-1")',
        "KeyError: \"'inc-1' is neither owned nor borrowed by Client-5f3a: it never was, "
        'or nobody here holds its future any more"',
        "Ask with a future, in the process that has it.",
    ),
    Mistake(
        "A name that stays with Dask",
        "from dask_ownership import Lock",
        "ImportError: dask_ownership has no 'Lock' of its own, and works with Dask's: "
        "from distributed import Lock",
        "Import it from `distributed`.",
    ),
    # ---- what cannot travel ----
    Mistake(
        "An argument that cannot be pickled",
        "client.submit(id, threading.Lock())",
        "NotSerializable: could not pickle the arguments of 'id' to serialize them for a "
        "worker: TypeError(\"cannot pickle '_thread.lock' object\")",
        "Make it inside the task.",
    ),
    Mistake(
        "A result that cannot be pickled",
        "def task():\n    return threading.Lock()\n\nclient.submit(task).result()",
        "NotSerializable: the value of 'task-5f3a' is at worker tcp://10.0.0.1:40331 and "
        "cannot be sent: could not pickle a lock: cannot pickle '_thread.lock' object",
        "Return what can be pickled. Such a value can be the input of tasks at the same worker.",
    ),
    Mistake(
        "An argument that only exists here",
        "class Here:\n    def __reduce__(self):\n        return __import__, ('only_here',)\n\n"
        "client.submit(id, Here()).result()",
        "NotUnpickled: the worker tcp://10.0.0.1:40331 could not unpickle the arguments of "
        "'id-5f3a' (deserialization failed): ModuleNotFoundError(\"No module named "
        "'only_here'\"); is what they import installed there?",
        "Install the same packages at the workers, or `client.upload_file`.",
    ),
    Mistake(
        "A large argument of each call",
        "client.submit(len, bytes(11_000_000))",
        "UserWarning: Sending large call of 'len' of size 10.49 MiB: it travels with each task "
        "that needs it. Have the workers load the data, or scatter it and pass its future",
        "Scatter it once, and pass the future.",
    ),
    # ---- how tasks end ----
    Mistake(
        "The task raises",
        "def task():\n    return 1 / 0\n\nclient.submit(task).result()",
        "ZeroDivisionError: division by zero\n"
        "raised by the task 'task-5f3a' at worker tcp://10.0.0.1:40331 (attempt 1)",
        "The traceback is that of the task; the note says which task, worker and attempt.",
    ),
    Mistake(
        "The task ends its process",
        "client.submit(sys.exit, 3).result()",
        "TaskExit: the task 'exit-5f3a' at worker tcp://10.0.0.1:40331 (attempt 1) raised "
        "SystemExit(3); it failed, and the worker goes on",
        "Raise another exception.",
    ),
    Mistake(
        "The task takes longer than its `timeout=`",
        'client.submit(slow, 0.4, timeout="100ms").result()',
        "TaskTimeout: 'slow-5f3a' ran for longer than its timeout of 0.1 s at "
        "tcp://10.0.0.1:40331 and was cancelled there; give it more time, or retries= to "
        "try it again",
        "Give it more time, or `retries=`.",
    ),
    Mistake(
        "The future was cancelled",
        'future = client.submit(inc, 1, workers="gpu-7")\nfuture.cancel()\nfuture.result()',
        "FutureCancelledError: inc-5f3a cancelled for reason: cancelled by its client.\n"
        "It was owned by Client-5f3a, not at any worker. Submit it again to have its value.",
        "Submit it again.",
    ),
    Mistake(
        "An input was cancelled",
        'x = client.submit(inc, 1, workers="gpu-7", key="x")\ny = client.submit(inc, x)\n'
        "x.cancel()\ny.result()",
        "FutureCancelledError: inc-5f3a cancelled for reason: its input 'x' was cancelled "
        "(cancelled by its client).\n"
        "It was owned by Client-5f3a, not at any worker. Submit it again to have its value.",
        "Submit both again.",
    ),
    Mistake(
        "The future was released",
        "future = client.submit(inc, 1)\nfuture.release()\nfuture.result()",
        "FutureCancelledError: inc-5f3a cancelled for reason: released.\n"
        "The future was released; keep it as long as its value is needed",
        "Keep a reference as long as the value is needed.",
    ),
    Mistake(
        "A checkpoint is too large",
        'def task():\n    checkpoint("state", bytes(2_000_000))\n\nclient.submit(task).result()',
        "ValueError: with 'state' (2,000,009 bytes) the checkpoints of 'task-5f3a' would "
        "have 2,000,014 bytes, and ownership.checkpoint.max-bytes allows 1,048,576: keep "
        "large state in a file, and its name here\n"
        "raised by the task 'task-5f3a' at worker tcp://10.0.0.1:40331 (attempt 1)",
        "Keep large state in a file, or raise the option.",
    ),
    Mistake(
        "A checkpoint outside of a task",
        'checkpoint("state", 1)',
        "RuntimeError: checkpoint() is for tasks that dask_ownership runs, and nothing of "
        "that kind runs here; threads that a task starts by itself are in no task",
        "Checkpoints belong to owned tasks.",
    ),
    # ---- clients ----
    Mistake(
        "The client is closed",
        "with Client(client.scheduler.address, set_as_default=False) as other:\n"
        "    future = other.submit(inc, 1)\nother.submit(inc, 2)",
        "ClosedOwner: Client-5f3a is closed; make a new Client to go on",
        "Submit inside the `with`, or make a new client.",
    ),
    Mistake(
        "The client of the future is closed",
        "with Client(client.scheduler.address, set_as_default=False) as other:\n"
        "    future = other.submit(inc, 1)\nfuture.result()",
        "ClosedOwner: 'inc-5f3a': its client Client-5f3a is closed, which freed it. Gather "
        "what you need before the client closes; a queue, variable or dataset keeps values "
        "beyond their client",
        "Gather before the client closes. Values in queues, variables and datasets outlive it.",
    ),
    Mistake(
        "A future of Dask for an owned key",
        'future = client.submit(inc, 1, key="mine")\ndistributed.Future("mine", client)',
        "NotHere: 'mine' is owned by this client; distributed.Future(key, client) makes "
        "futures of the central scheduler. Keep the future that submit gave, or submit it "
        "again",
        "Keep the future that `submit` returned.",
    ),
    Mistake(
        "The address of the dashboard",
        "Client(client.dashboard_link)",
        "ValueError: http://10.0.0.1:8787/status is the address of a web page, such as the "
        "dashboard, and not of a scheduler, which is as tcp://10.0.0.1:8786. The log of "
        "the scheduler, and the page Info of the dashboard, have it",
        "Give the address of the scheduler.",
    ),
    Mistake(
        "The port of the dashboard",
        "Client(client.dashboard_link.split('/')[2], timeout=0.5)",
        "OSError: cannot connect to 10.0.0.1:8787: a web server answers there, such as a "
        "dashboard. The scheduler has another port, 8786 unless told otherwise; its log, "
        "and the page Info of the dashboard, have its address",
        "Give the address of the scheduler.",
    ),
    # ---- configuration ----
    Mistake(
        "A wrong value in the configuration",
        'with dask.config.set({"ownership.silence": "5 bananas"}):\n'
        "    Client(client.scheduler.address)",
        "ValueError: ownership.silence in Dask's configuration is a time, such as '5s', "
        "not '5 bananas'",
        "Mend the value in the file, variable or call that sets it.",
    ),
    Mistake(
        "A typing error in the configuration",
        'with dask.config.set({"ownership.silense": "5s"}):\n'
        "    Client(client.scheduler.address, set_as_default=False).close()",
        "UserWarning: ownership.silense in Dask's configuration is no option, and changes "
        "nothing: is ownership.silence meant?",
        "Use the name in the warning.",
    ),
)


def written() -> str:
    """Return the page."""
    lines = [
        "# Mistakes and their messages",
        "",
        "The table in `tests/mistakes.py` makes this page (`python tests/mistakes.py`), and a test",
        "makes each mistake and compares the messages. Addresses, keys and attempts differ each",
        "time. Exceptions of tasks end with a note from Python 3.11 on. Each program has a",
        "`client`, and begins with",
        "",
        "```python",
        COMMON.rstrip(),
        "```",
    ]
    for mistake in MISTAKES:
        lines += [
            "",
            f"## {mistake.title}",
            "",
            "```python",
            mistake.code,
            "```",
            "",
            "```text",
            mistake.says,
            "```",
            "",
            mistake.cure,
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
