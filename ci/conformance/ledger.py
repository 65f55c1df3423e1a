"""What is known to differ from upstream, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]


@dataclass
class Entry:
    """One test that upstream's client passes and this project's does not."""

    test: str
    expected: str
    reason: str
    modes: tuple[str, ...]


@dataclass
class Ledger:
    """The entries, by the node ids of their tests."""

    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Read ``conformance-ledger.toml``.

        Raises
        ------
        ValueError
            When an entry has no reason, another outcome than ``failed``, or comes twice.
        """
        ledger = cls()
        if not path.exists():
            return ledger
        for group in tomllib.loads(path.read_text()).get("group", ()):
            expected, reason = group.get("expected", "failed"), group.get("reason", "").strip()
            modes = tuple(group.get("modes", ("ours", "forbidden")))
            if not reason:
                raise ValueError(f"{path}: a group without a reason: {group}")
            if expected not in ("failed", "hung", "either"):
                raise ValueError(f"{path}: expected= is failed, hung or either, not {expected!r}")
            for test in group["tests"]:
                if test in ledger.entries:
                    raise ValueError(f"{path}: {test} is there twice")
                ledger.entries[test] = Entry(test, expected, reason, modes)
        return ledger

    def expects(self, test: str, mode: str) -> Entry | None:
        """The entry of a test: of itself, or of all its parameters."""
        entry = self.entries.get(test) or self.entries.get(test.split("[")[0])
        return entry if entry is not None and mode in entry.modes else None
