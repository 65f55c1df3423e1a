"""The protocol's number changes with the protocol.

``protocol.txt`` is what processes say to each other, as the modules of the messages document it,
with the number that it had. A change of one without the other fails. When the protocol changes:
raise ``PROTOCOL`` and run ``python tests/core/test_protocol.py``.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

from dask_ownership.core.protocol import messages, peer_messages
from dask_ownership.runtime.comm.link import PROTOCOL
from dask_ownership.runtime.executor.server import Server
from dask_ownership.scheduler.plugin import OwnershipSchedulerPlugin

WRITTEN = Path(__file__).parent / "protocol.txt"


def forms(module: ModuleType) -> list[str]:
    """Each number of a module with the form of its message, from the text below the number."""
    found = []
    body = ast.parse(inspect.getsource(module)).body
    for statement, text in pairwise(body):
        if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Constant):
            continue
        name = ast.unparse(statement.targets[0])
        form = None
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            form = re.match(r"``(\(.*?\))``", str(text.value.value), re.DOTALL)
        found.append(f"{name} = {statement.value.value!r} {form[1] if form else ''}".rstrip())
    return found


def written() -> str:
    """The protocol as this version has it."""
    handlers = [
        f"{handler.__qualname__}({', '.join(inspect.signature(handler).parameters)})"
        for handler in (
            OwnershipSchedulerPlugin.join,
            Server.link,
            Server.get,
            Server.put,
            Server.leave,
        )
    ]
    options = re.findall(r"^- ``(\w+)``:", inspect.getsource(messages), re.MULTILINE)
    return "\n".join(
        [
            f"version {PROTOCOL}", "",
            "-- links --", *forms(messages), f"options of PUSH: {', '.join(options)}", "",
            "-- owners --", *forms(peer_messages), "",
            "-- operations --", *handlers, "",
        ]
    )  # fmt: skip


def test_the_number_changes_with_the_protocol() -> None:
    assert written() == WRITTEN.read_text(), (
        "what processes say to each other has changed: raise PROTOCOL, unless it was raised since "
        f"the last release, and run `python {Path(__file__).name}`"
    )


if __name__ == "__main__":
    sys.stdout.write(written())
    WRITTEN.write_text(written())
