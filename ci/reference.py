"""Writes what is made from the source into the pages about options, errors, the API and metrics.

``python ci/reference.py`` writes it between the comments that say *begin* and *end*; a test checks
that the pages are as this gives them. They are plain Markdown, for a forge as for the site.
`docs/api.md` has a comment for each name, in whose place the site has the signature and the
docstring (`ci/site_pages.py`).
"""

from __future__ import annotations

import inspect
import pydoc
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distributed
import yaml

from dask_ownership import errors
from dask_ownership.monitoring.metrics import METRICS

TOP = Path(__file__).parent.parent
DOCS = TOP / "docs"
PACKAGE = TOP / "dask_ownership"

# ---- options ----

Option = dict[str, Any]


def schema() -> dict[str, Any]:
    """The schema of the section ``ownership``."""
    with (PACKAGE / "ownership-schema.yaml").open(encoding="utf-8") as file:
        section: dict[str, Any] = yaml.safe_load(file)["properties"]["ownership"]
    return section


def options(part: dict[str, Any], path: str = "ownership") -> Iterator[tuple[str, Option]]:
    """The options below a part of the schema, with their full names."""
    for name, below in part["properties"].items():
        if "properties" in below:
            yield from options(below, f"{path}.{name}")
        else:
            yield f"{path}.{name}", below


def _value(value: Any) -> str:
    return f"`{yaml.safe_dump(value).splitlines()[0]}`"


def _joined(words: Any) -> str:
    return ", ".join(words if isinstance(words, list) else [words])


def options_section() -> str:
    """All options, first in one table, then each with what it means."""
    found = list(options(schema()))
    table = "| option | default | read by |\n|---|---|---|\n"
    parts = []
    for name, option in found:
        link = f"[`{name}`](#{name.replace('.', '')})"
        table += f"| {link} | {_value(option['default'])} | {_joined(option['read-by'])} |\n"
        about = [
            ("default", _value(option["default"])),
            ("type", _joined(option["type"])),
            ("unit", option.get("unit", "")),
            ("one of", _joined([_value(value) for value in option.get("enum", [])])),
            ("read by", _joined(option["read-by"])),
            ("read at", option["read-at"]),
            ("environment", f"`DASK_{name.upper().replace('.', '__').replace('-', '_')}`"),
        ]
        rows = "".join(f"| {what} | {text} |\n" for what, text in about if text)
        text = option["description"].strip()
        parts.append(f"## `{name}`\n\n{text}\n\n| | |\n|---|---|\n{rows}")
    return "\n".join([table, *parts])


# ---- errors ----

MARK = "What to do:"

ALSO = {
    errors.CancelledError: "concurrent.futures.CancelledError",
    errors.FutureCancelledError: "distributed.client.FutureCancelledError",
    distributed.KilledWorker: "distributed.KilledWorker",
}
"""Full names of bases of errors that are neither built in nor this project's."""


def error_classes() -> list[type[BaseException]]:
    """The errors that are this project's own, in the order of the source; not their base."""
    return [
        kind
        for kind in vars(errors).values()
        if inspect.isclass(kind)
        and issubclass(kind, errors.OwnershipError)
        and kind is not errors.OwnershipError
    ]


def cause_and_cure(kind: type[BaseException]) -> tuple[str, str]:
    """What the docstring of an error says, without the list of attributes."""
    text = (inspect.getdoc(kind) or "").partition("\nAttributes\n")[0]
    cause, _, cure = text.partition(MARK)
    return _markdown(cause.strip()), _markdown(cure.strip())


def caught_as(kind: type[BaseException]) -> list[str]:
    """What an error can be caught as, besides `OwnershipError` and `Exception`."""
    ours = {base: base.__name__ for base in error_classes()}
    builtin = {base: base.__name__ for base in (TimeoutError, ValueError, TypeError, RuntimeError)}
    names = {**ours, **ALSO, **builtin}
    return [f"`{names[base]}`" for base in kind.__mro__[1:] if base in names]


def errors_section() -> str:
    """All errors, each with its cause and its cure."""
    parts = []
    for kind in error_classes():
        cause, cure = cause_and_cure(kind)
        bases = caught_as(kind)
        also = f"Can be caught as {', '.join(bases)} as well.\n\n" if bases else ""
        parts.append(f"## `{kind.__name__}`\n\n{cause}\n\n{also}**{MARK}** {cure}\n")
    return "\n".join(parts)


def _markdown(text: str) -> str:
    return text.replace("``", "`")


# ---- the API ----

GROUPS = {
    "Clients and clusters": ("Client", "LocalCluster"),
    "Futures": ("Future", "wait", "as_completed", "futures.streaming.Stream"),
    "Inside tasks": ("delegate", "checkpoint", "restore", "cancelled"),
    "Dask collections": ("get",),
    "Snapshots of objects": (
        "monitoring.snapshot.Snapshot",
        "monitoring.snapshot.ObjectSnapshot",
    ),
    "Dask's own": ("fire_and_forget", "get_client", "get_worker", "progress", "worker_client"),
}
"""The names of the API by what they are for."""

INTERNAL = {"bind_client", "for_worker", "start", "sync"}
"""Public methods that are for Dask's code."""


def api_section() -> str:
    """The names by group, with what each is, and a comment where the site has more."""
    parts = []
    for title, names in GROUPS.items():
        rows = "".join(f"| `{name}` | {_first_line(name)} |\n" for name in names)
        parts.append(f"## {title}\n\n| name | what it is |\n|---|---|\n{rows}")
        parts += [
            f"<!-- api: dask_ownership.{name} [{', '.join(_members(_object(name)))}] -->\n"
            for name in names
            if _is_ours(_object(name))
        ]
    return "\n".join(parts)


def _object(name: str) -> Any:
    return pydoc.locate(f"dask_ownership.{name}")


def _is_ours(what: Any) -> bool:
    return bool(what.__module__.startswith("dask_ownership"))


def _first_line(name: str) -> str:
    if not _is_ours(_object(name)):
        return f"see `distributed.{name}`"
    text = inspect.getdoc(_object(name)) or ""
    return " ".join(_markdown(text).split("\n\n")[0].split())


def _members(kind: Any) -> list[str]:
    """The methods and properties of a class that this project defines."""
    if not inspect.isclass(kind):
        return []
    found = [
        name
        for base in filter(_is_ours, kind.__mro__)
        for name, member in vars(base).items()
        if not name.startswith("_") and name not in INTERNAL and getattr(member, "__doc__", None)
        if inspect.isroutine(member) or isinstance(member, property)
    ]
    return list(dict.fromkeys(found))


# ---- metrics ----


def metrics_section() -> str:
    """All metrics for Prometheus, in the order of the answer."""
    rows = [
        f"| `{metric.full_name}` | {metric.kind} | {_code(metric.label)} | {metric.text} |\n"
        for metric in METRICS
    ]
    return "| metric | type | label | what it counts |\n|---|---|---|---|\n" + "".join(rows)


def _code(name: str) -> str:
    return f"`{name}`" if name else ""


# ---- pages ----

PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": options_section,
    "errors.md": errors_section,
    "api.md": api_section,
    "monitoring.md": metrics_section,
}
"""The pages with a made part, and what makes it."""

BEGIN, END = (f"<!-- made by ci/reference.py: {which} -->" for which in ("begin", "end"))


def written(page: str, make: Callable[[], str]) -> str:
    """The text of a page with its made part as it is to be."""
    whole = f"{BEGIN}\n\n{make()}\n{END}"
    return re.sub(f"{BEGIN}.*?{END}", lambda _: whole, page, flags=re.DOTALL)


if __name__ == "__main__":
    for name, make in PAGES.items():
        path = DOCS / name
        path.write_text(written(path.read_text(encoding="utf-8"), make), encoding="utf-8")
