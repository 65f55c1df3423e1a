"""The table of mistakes: what is said is what the page says, and helps."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest
from mistakes import COMMON, MISTAKES, PAGE, Mistake, masked, written

from dask_ownership import Client


def made(mistake: Mistake, client: Client) -> str:
    """Make a mistake; what is said then, or nothing."""
    there: dict[str, Any] = {"__name__": "a_program", "client": client}
    exec(COMMON, there)
    told = ""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            exec(mistake.code, there)
        except Exception as error:
            notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
            told = f"{type(error).__name__}: {error}{notes}"
            error.__traceback__ = error.__context__ = None  # its frames hold futures
            del error
    there.clear()
    [*_, last] = [told, *(f"{w.category.__name__}: {w.message}" for w in warned if not told)]
    return masked(last)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.title)
def test_mistake(mistake: Mistake, client: Client) -> None:
    said = made(mistake, client)
    client.cancel_pending()
    says = mistake.says
    if sys.version_info < (3, 11):  # exceptions have no notes
        says = says.partition("\nraised by")[0]
    assert said == says


def test_the_page_is_this_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == written(), "run python tests/mistakes.py"


def test_there_are_enough() -> None:
    assert len(MISTAKES) >= 30
    assert all(mistake.says and mistake.cure.endswith(".") for mistake in MISTAKES)
