"""Reads the Markdown files of the repository: code blocks with their output, headings, links.

``python ci/documents.py`` writes `docs/quickstart.ipynb`, the notebook of `docs/quickstart.md`; a
test checks that the notebook is as this gives it.

A block of Python is an example that runs when it is pasted below the blocks before it on its page.
What it prints is in a block with the language ``text`` right below it; ``...`` there stands for any
text. A block that is no example has a comment right above it, ``<!-- fragment: why -->``. Command
lines are in blocks with the language ``sh``, and what they print is right below, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parent.parent
QUICKSTART = TOP / "docs" / "quickstart.md"
NOTEBOOK = QUICKSTART.with_suffix(".ipynb")

FENCE = re.compile(r"^ *```(?P<language>\S*)[^\n]*\n(?P<code>.*?)^ *```$", re.MULTILINE | re.DOTALL)
FRAGMENT = re.compile(r"<!-- fragment: (?P<why>\S[^\n]*) -->\n\Z")


@dataclass(frozen=True)
class Block:
    """One code block.

    Attributes
    ----------
    line : int
        Of the file, from 1: the first line of the code.
    language, code : str
    output : str or None
        What the block below it says that this block prints.
    fragment : str or None
        Why this block is no example.
    start, end : int
        Where the block, with its output, stands in the text.
    """

    line: int
    language: str
    code: str
    output: str | None
    fragment: str | None
    start: int
    end: int


def pages() -> list[Path]:
    """The README and the pages of the documentation."""
    return [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]


def blocks(text: str) -> Iterator[Block]:
    """The code blocks of a text, without those that are the output of another."""
    found = list(FENCE.finditer(text))
    outputs = set()
    for at, fence in enumerate(found):
        if at in outputs:
            continue
        output, end = None, fence.end()
        if fence["language"] in ("python", "sh") and at + 1 < len(found):
            below = found[at + 1]
            if below["language"] == "text" and not text[fence.end() : below.start()].strip():
                output, end = below["code"], below.end()
                outputs.add(at + 1)
        above = FRAGMENT.search(text, 0, fence.start())
        yield Block(
            line=text.count("\n", 0, fence.start("code")) + 1,
            language=fence["language"],
            code=fence["code"],
            output=output,
            fragment=above["why"] if above else None,
            start=fence.start(),
            end=end,
        )


def printed_as_said(said: str, printed: str) -> bool:
    """Whether what was printed is what a page says, where ``...`` is any text."""
    parts = [re.escape(part) for part in said.strip().split("...")]
    return re.fullmatch(".*?".join(parts), printed.strip(), re.DOTALL) is not None


def prose(text: str) -> str:
    """The text without code and comments."""
    text = FENCE.sub("", text)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as forges and the site make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *#*$", prose(text), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        found.add(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    return found


def links(text: str) -> list[str]:
    """The targets of links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]+`", "", prose(text)))


# ---- the notebook ----


def notebook(text: str) -> str:
    """The notebook of a page: each example is a cell, and the text between examples another."""
    cells = []
    at = 0
    for block in blocks(text):
        if block.language == "python" and block.fragment is None:
            cells.append(_cell(len(cells), "markdown", text[at : block.start]))
            cells.append(_cell(len(cells), "code", block.code, block.output))
            at = block.end
    cells.append(_cell(len(cells), "markdown", text[at:]))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": [cell for cell in cells if cell["source"]],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _cell(number: int, kind: str, text: str, output: str | None = None) -> dict[str, object]:
    cell: dict[str, object] = {
        "cell_type": kind,
        "id": f"cell-{number}",
        "metadata": {},
        "source": text.strip().splitlines(keepends=True),
    }
    if kind == "code":
        stream = {"name": "stdout", "output_type": "stream"}
        shown = [] if output is None else [{**stream, "text": output.splitlines(keepends=True)}]
        cell |= {"execution_count": None, "outputs": shown}
    return cell


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(QUICKSTART.read_text(encoding="utf-8")), encoding="utf-8")
