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
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from dask_ownership.core.protocol import messages, peer_messages
from dask_ownership.monitoring.feed import Feed
from dask_ownership.monitoring.owner_report import Reporter
from dask_ownership.runtime.comm import scheduler_ops
from dask_ownership.runtime.comm.link import PROTOCOL
from dask_ownership.runtime.executor.server import Server
from dask_ownership.runtime.owner.members import Members
from dask_ownership.runtime.owner.owner import Owner
from dask_ownership.scheduler.detached import Holding
from dask_ownership.scheduler.plugin import OwnershipSchedulerPlugin
from dask_ownership.scheduler.relay import Relays

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


def test_each_message_has_a_form() -> None:
    """The page about the protocol is made of them."""
    for module, names in (
        (messages, messages.NAMES.values()),
        (peer_messages, peer_messages.NAMES),
    ):
        formed = {line.split()[0] for line in forms(module) if "(" in line}
        assert set(names) <= formed, module


PLUGIN = OwnershipSchedulerPlugin
HANDLERS: dict[str, Callable[..., Any]] = {
    "JOIN": PLUGIN.join,
    "HOLD": Holding.hold,
    "DIAL": PLUGIN.dial,
    "RELAY": Relays.relay,
    "WHERE": PLUGIN.where,
    "ACTIVITY": Feed.activity,
    "WORD": PLUGIN.word,
    "CLOSES": PLUGIN.closes,
    "BACKLOG": PLUGIN.backlog,
    "RELEASE_HOLD": Holding.release,
    "REPORT": Feed.reported,
    "MEMBERS": Members.changed,
    "EXITED": Members.exited,
    "OWNER_GONE": Members.process_gone,
    "PROMOTION_OVER": Owner.promotion_over,
    "WATCH": Reporter.watch,
}
"""Handlers of the operations that `scheduler_ops` documents."""


def test_the_forms_of_operations_name_the_parameters_of_their_handlers() -> None:
    described = dict(
        line.replace(" (", "(").split(" = ", 1) for line in forms(scheduler_ops) if "(" in line
    )
    expected = {}
    for name, handler in HANDLERS.items():
        parameters = inspect.signature(handler).parameters.values()
        named = [
            parameter.name
            for parameter in parameters
            if parameter.name not in ("self", "comm", "sender")
            and parameter.kind is not parameter.VAR_KEYWORD
        ]
        fields = ", ".join([name, *named]) + ("" if named else ",")
        expected[name] = f"{getattr(scheduler_ops, name)!r}({fields})"
    assert described == expected


if __name__ == "__main__":
    sys.stdout.write(written())
    WRITTEN.write_text(written())
