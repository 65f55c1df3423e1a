"""Hooks of mkdocs: pages that are no files of ``docs/``, links that lead out of it, docstrings.

The Markdown files of the repository link to each other as files, so that they can be read on a
forge. On the site the same links lead to pages: this module has the page of each file. A link to
a file that has no page, as a source file, becomes plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

TOP = Path(__file__).parent.parent

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
    "ci/conformance/README.md": "conformance.md",
    "docs/scenarios": "scenarios.md",
}
"""Files and folders of the repository, with their pages on the site."""

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def page_of(path: str) -> str | None:
    """The page, or other file of the site, that a file of the repository is; None without one."""
    if path in PAGES:
        return PAGES[path]
    inside = path.removeprefix("docs/")
    return inside if inside != path and (TOP / path).is_file() else None


def with_links_of_the_site(text: str, path: str) -> str:
    """The text of a file of the repository, with each link to a file as a link to its page."""

    def link(found: re.Match[str]) -> str:
        mark, words, target = found.groups()
        file, _, anchor = target.partition("#")
        if not file or "://" in file or file.startswith("mailto:"):
            return found[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(path), file))
        page = page_of(there)
        if page is None:
            # A link that leads nowhere stays, for mkdocs to warn of.
            return words if (TOP / there).exists() else found[0]
        return f"{mark}[{words}]({page}{'#' + anchor if anchor else ''})"

    # Parts with odd numbers are code.
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if i % 2 else LINK.sub(link, part) for i, part in enumerate(parts))


def scenarios() -> str:
    """The page of the transcripts."""
    parts = [
        "# Transcripts\n\nScenarios as the virtual cluster plays them: every message between "
        "processes, and the contents of each table after it. A test compares these transcripts "
        "with what the code does.\n"
    ]
    for path in sorted((TOP / "docs" / "scenarios").glob("*.txt")):
        title = path.stem.replace("_", " ").capitalize()
        parts.append(f"## {title}\n\n```text\n{path.read_text(encoding='utf-8').rstrip()}\n```\n")
    return "\n".join(parts)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that come from elsewhere in the repository."""
    for path, page in PAGES.items():
        source = TOP / path
        text = scenarios() if source.is_dir() else source.read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=with_links_of_the_site(text, path)))
    return files


API = re.compile(r"^<!-- api: (\S+) \[(.*)\] -->$", re.MULTILINE)


def with_docstrings(text: str) -> str:
    """The text with a directive of mkdocstrings in place of each comment that names an object."""

    def directive(found: re.Match[str]) -> str:
        name, members = found.groups()
        return (
            f"::: {name}\n    options:\n      members: [{members}]\n      inherited_members: true"
        )

    return API.sub(directive, text)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead links of the pages of ``docs/`` to pages of the site."""
    if page.file.src_uri in PAGES.values():
        return markdown
    return with_links_of_the_site(with_docstrings(markdown), f"docs/{page.file.src_uri}")
