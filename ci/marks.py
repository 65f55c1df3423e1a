"""Puts parts that are made from the code between the marks of a page.

A part stands between the comments ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``.
"""

from __future__ import annotations

import re


def filled(page: str, parts: dict[str, str]) -> str:
    """Return the page with each part, by its name, as the part is to be."""
    for name, made in parts.items():
        begin, end = (f"<!-- {name}: {which} -->" for which in ("begin", "end"))
        whole = f"{begin}\n\n{made}\n{end}"
        page, found = re.subn(f"{begin}.*?{end}", lambda _, whole=whole: whole, page, flags=re.S)
        if found != 1:
            raise ValueError(f"the page has the marks of {name!r} {found} times, not once")
    return page
