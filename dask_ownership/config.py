"""The ``ownership`` section of Dask's configuration: defaults, and values that are checked."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import dask
import yaml
from dask.utils import parse_bytes, parse_timedelta

_DEFAULTS = Path(__file__).parent / "ownership.yaml"

REACHES = ("auto", "direct", "relay")
"""Values of ``ownership.reach``."""


class LastResort(logging.Handler):
    """Writes warnings in Dask's format, for programs that do not set up logging.

    Python's own last resort writes the bare text, with no time, level or name.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter(dask.config.get("distributed.admin.log-format")))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless the root logger has a handler, which writes the record."""
        if not logging.getLogger().handlers:
            print(self.format(record), file=sys.stderr)


@dataclass(frozen=True)
class Kind:
    """A kind of values.

    Attributes
    ----------
    words : str
        What values are, for people.
    parse : callable
        Returns the value in the form that the code uses; any exception says that it is wrong.
    """

    words: str
    parse: Callable[[Any], Any]


def _flag(value: Any) -> bool:
    """Return a yes or no; the environment may give it as text or a number."""
    return {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]


def _seconds(value: Any) -> float:
    seconds = float(parse_timedelta(value))
    if seconds < 0:
        raise ValueError
    return seconds


def _bytes(value: Any) -> int:
    nbytes = int(parse_bytes(value))
    if nbytes < 0:
        raise ValueError
    return nbytes


def _optional(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else parse(value)


SECONDS = Kind("a time, such as '5s'", _seconds)
BYTES = Kind("a number of bytes, such as '64KiB'", _bytes)
BYTES_OR_NONE = Kind("a number of bytes, such as '64KiB', or null", _optional(_bytes))
FLAG = Kind("true or false", _flag)
COUNT = Kind("a number", int)
REACH = Kind(f"one of {', '.join(REACHES)}", lambda value: REACHES[REACHES.index(value)])

OPTIONS = {
    "ownership.leave-timeout": SECONDS,
    "ownership.lineage.max-bytes": BYTES_OR_NONE,
    "ownership.lineage.inline": FLAG,
    "ownership.inline.limit": BYTES,
    "ownership.inline.max-bytes": BYTES_OR_NONE,
    "ownership.scheduler-timeout": SECONDS,
    "ownership.checkpoint.max-bytes": BYTES,
    "ownership.silence": SECONDS,
    "ownership.reach": REACH,
    "ownership.relay.enabled": FLAG,
    "ownership.relay.max-bandwidth": BYTES_OR_NONE,
    "ownership.grace": SECONDS,
    "distributed.scheduler.allowed-failures": COUNT,
}
"""The kind of each option of this project, and of Dask's options that only this project reads."""


def value_of(name: str) -> Any:
    """Return the value of one of `OPTIONS`: seconds, bytes, a flag, or what the kind says.

    Raises
    ------
    ValueError
        When the value is wrong; the text names the option.
    """
    value = dask.config.get(name, _defaults.get(name))
    kind = OPTIONS[name]
    try:
        return kind.parse(value)
    except Exception:
        raise ValueError(f"{name} in Dask's configuration is {kind.words}, not {value!r}") from None


def check() -> None:
    """Check all options, and warn of names below ``ownership`` that are no options.

    Raises
    ------
    ValueError
        When an option has a wrong value.
    """
    section = dask.config.get("ownership")
    if not isinstance(section, Mapping):
        raise ValueError(f"ownership in Dask's configuration is a section, not {section!r}")
    for text in unknown_options():
        warnings.warn(text, stacklevel=3)
    for name in OPTIONS:
        value_of(name)


def unknown_options() -> list[str]:
    """Return a sentence for each name below ``ownership`` that is no option."""
    section = dask.config.get("ownership", {})
    found = []
    for name, _ in _options_in(section if isinstance(section, Mapping) else {}, "ownership"):
        if name not in OPTIONS:
            near = get_close_matches(name, OPTIONS, 1, 0.7)
            last = {option.rpartition(".")[2]: option for option in OPTIONS}
            near = near or [last[n] for n in get_close_matches(name.rpartition(".")[2], last, 1)]
            meant = f": is {near[0]} meant?" if near else ""
            text = f"{name} in Dask's configuration is no option, and changes nothing{meant}"
            found.append(text)
    return found


def _options_in(section: Mapping[Any, Any], above: str) -> Iterator[tuple[str, Any]]:
    """Return the full names of all options in a section, with hyphens, and their values."""
    for name, value in section.items():
        full = f"{above}.{str(name).replace('_', '-')}"
        if isinstance(value, Mapping):
            yield from _options_in(value, full)
        else:
            yield full, value


OWN_FRAMES = r"dask_ownership[\\\/]((client[\\\/](client|data))|(futures[\\\/]gather)|get)\.py"
"""Files whose frames Dask leaves out of tracebacks, as it does with `distributed.client`."""

ACTIVE = {"dataframe.shuffle.method": "tasks", "array.rechunk.method": "tasks"}
"""Settings while a client is open: P2P shuffles, Dask's default, need the central scheduler."""

_defaults: dict[str, Any] = {}
_lock = threading.Lock()
_open_clients = 0
_changed: list[str] = []


def client_opened() -> None:
    """Apply `ACTIVE` when the first client opens, except for settings that the user chose."""
    global _open_clients
    with _lock:
        _open_clients += 1
        if _open_clients == 1:
            for name, value in ACTIVE.items():
                if dask.config.get(name, None) is None:
                    dask.config.set({name: value})
                    _changed.append(name)


def client_closed() -> None:
    """Undo `client_opened` when the last client closed; the user's later settings stay."""
    global _open_clients
    with _lock:
        _open_clients -= 1
        if _open_clients == 0:
            for name in _changed:
                # Another value than ours is the user's.
                if dask.config.get(name, None) == ACTIVE[name]:
                    dask.config.set({name: None})
            _changed.clear()


def install() -> None:
    """Add the defaults to Dask's configuration; settings of the user stay."""
    logger = logging.getLogger("dask_ownership")
    if not logger.handlers:
        logger.addHandler(LastResort())
    with _DEFAULTS.open() as file:
        defaults = yaml.safe_load(file)
    dask.config.update_defaults(defaults)
    _defaults.update(_options_in(defaults["ownership"], "ownership"))
    shorten = dask.config.get("admin.traceback.shorten", None)
    if shorten and OWN_FRAMES not in shorten:
        dask.config.update_defaults({"admin": {"traceback": {"shorten": [*shorten, OWN_FRAMES]}}})
