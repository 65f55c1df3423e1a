"""Writes the list of the core's modules into ``docs/architecture.md``, from their first lines.

``python ci/modules.py`` writes it; a test checks that it is as this gives it.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

TOP = Path(__file__).parent.parent
PAGE = TOP / "docs" / "architecture.md"
BEGIN, END = "<!-- modules of the core: begin -->\n", "<!-- modules of the core: end -->"


def described() -> str:
    """The table of modules."""
    rows = ["| module | job |", "|---|---|"]
    for path in sorted((TOP / "dask_ownership" / "core").glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if path.stem != "__init__":
            first = " ".join(text.split("\n\n")[0].split())
            rows.append(f"| `{path.stem}` | {first} |")
    return "\n".join(rows) + "\n"


def written(page: str) -> str:
    """The page with the list as it is to be."""
    made = BEGIN + "\n" + described() + "\n" + END
    return re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: made, page, flags=re.S)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
