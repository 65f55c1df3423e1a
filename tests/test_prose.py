"""Sentences name their subjects: docstrings and comments of the package, README and docs.

The words below leave a subject open, or point back to a subject that a reader has to look for. Few
of them are fine, and each file is held to the same number of them per 1000 words.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent

VAGUE = re.compile(
    r"\b(whoever|whatever|somebody|someone|nobody|one that|those that|of those|what is|what was"
    r"|what of|that one|this one|who asks|others)\b",
    re.I,
)
PRONOUN = re.compile(r"\b(it|its|that|those|these|this|they|them)\b", re.I)
WORD = re.compile(r"[A-Za-z']+")

MOST_VAGUE, MOST_PRONOUNS = 1.0, 60.0
"""Per 1000 words."""


def of_code(path: Path) -> Iterator[str]:
    """Yield docstrings and comments."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            yield ast.get_docstring(node) or ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def of_page(path: Path) -> str:
    """Return a page without code and link targets."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return re.sub(r"`[^`\n]*`|\]\([^)]*\)", "", text)


def per_thousand(text: str) -> tuple[float, float]:
    """Return the vague subjects and the pronouns for each 1000 words."""
    words = max(len(WORD.findall(text)), 1)
    found = (len(pattern.findall(text)) for pattern in (VAGUE, PRONOUN))
    vague, pronouns = (1000 * count / words for count in found)
    return vague, pronouns


@pytest.mark.parametrize("folder", ["", "core", "runtime", "futures", "client", "monitoring"])
def test_the_package_names_its_subjects(folder: str) -> None:
    files = sorted((TOP / "dask_ownership" / folder).rglob("*.py"))
    vague, pronouns = per_thousand("\n".join(text for path in files for text in of_code(path)))
    assert vague <= MOST_VAGUE and pronouns <= MOST_PRONOUNS, (vague, pronouns)


def test_the_documentation_names_its_subjects() -> None:
    """A page may be too short for its pronouns to be counted; the pages together are not."""
    pages = [TOP / "README.md", TOP / "CONTRIBUTING.md", *sorted((TOP / "docs").glob("*.md"))]
    texts = {path.name: of_page(path) for path in pages}
    vague = {name: per_thousand(text)[0] for name, text in texts.items()}
    assert {name: value for name, value in vague.items() if value > MOST_VAGUE} == {}
    _, pronouns = per_thousand("\n".join(texts.values()))
    assert pronouns <= MOST_PRONOUNS
