"""Writes the lists of modules and states into ``docs/architecture.md``, from the code.

``python ci/modules.py`` writes them; a test checks that they are as this gives them.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from marks import filled

from dask_ownership.core.owner.rows.lifecycle import TRANSITIONS
from dask_ownership.core.protocol.states import STATE_NAMES

TOP = Path(__file__).parent.parent
PACKAGE = TOP / "dask_ownership"
PAGE = TOP / "docs" / "architecture.md"

LAYERS = (
    ("config", "core"),
    ("errors",),
    ("runtime",),
    ("monitoring",),
    ("futures",),
    ("interop",),
    ("worker",),
    ("scheduler",),
    ("client",),
    ("get", "deploy", "preload", "testing"),
    ("cli", "benchmarks"),
)
"""Folders and modules of the package: each may import those that come before it, and itself.

`tests/core/test_structure.py` checks the imports.
"""


def package() -> str:
    """The table of folders, with the modules of each."""
    rows = ["| folder | what it is | modules |", "|---|---|---|"]
    rows.append(f"| | the package itself | {_modules_of(PACKAGE)} |")
    for top in (part for layer in LAYERS for part in layer if (PACKAGE / part).is_dir()):
        inner = sorted({path.parent for path in (PACKAGE / top).rglob("*.py")})
        for folder in inner if top != "core" else inner[:1]:
            name = "/".join(folder.relative_to(PACKAGE).parts)
            modules = "see below" if top == "core" else _modules_of(folder)
            rows.append(f"| `{name}` | {_first_line(folder / '__init__.py')} | {modules} |")
    return "\n".join(rows) + "\n"


def core() -> str:
    """The table of the modules of the core."""
    rows = ["| module | job |", "|---|---|"]
    top = PACKAGE / "core"
    for folder in sorted({path.parent for path in top.rglob("*.py")}):
        if inside := ".".join(folder.relative_to(top).parts):
            rows.append(f"| **`{inside}`** | **{_first_line(folder / '__init__.py')}** |")
        rows.extend(f"| `{path.stem}` | {_first_line(path)} |" for path in _paths_in(folder))
    return "\n".join(rows) + "\n"


def states() -> str:
    """The table of the states of a row, with the states that may follow."""
    rows = ["| from | what the state means | to |", "|---|---|---|"]
    for state in sorted({pair[0] for pair in TRANSITIONS}):
        following = ", ".join(STATE_NAMES[to] for of, to in sorted(TRANSITIONS) if of == state)
        rows.append(f"| `{STATE_NAMES[state]}` | {_meaning(STATE_NAMES[state])} | {following} |")
    return "\n".join(rows) + "\n"


def _meaning(name: str) -> str:
    """The text below a state in the module of the states."""
    text = (PACKAGE / "core" / "protocol" / "states.py").read_text(encoding="utf-8")
    found = re.search(rf'^{name.upper()} = -?\d+\n"""(.*?)"""', text, re.S | re.M)
    return " ".join(found.group(1).split()) if found else ""


def written(page: str) -> str:
    """The page with the lists as they are to be."""
    lists = {
        "modules of the package": package(),
        "modules of the core": core(),
        "states of a row": states(),
    }
    return filled(page, lists)


def _paths_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.py") if not path.stem.startswith("__"))


def _modules_of(folder: Path) -> str:
    return ", ".join(path.stem for path in _paths_in(folder))


def _first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
