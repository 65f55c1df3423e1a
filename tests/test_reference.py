"""The pages about options, errors, the API and metrics say what the source says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import dask_ownership
from dask_ownership import errors
from dask_ownership.monitoring.metrics import METRICS, Collector

TOP = Path(__file__).parent.parent
sys.path.append(str(TOP / "ci"))

import reference  # noqa: E402

TYPES = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
"""Types of Python by their names in a JSON Schema."""

PROCESSES = ["client", "worker", "scheduler"]


def leaves(section: dict[str, Any], path: str = "ownership") -> dict[str, Any]:
    """The options below a part of the defaults, with their full names."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        inner = f"{path}.{name}"
        found.update(leaves(value, inner) if isinstance(value, dict) else {inner: value})
    return found


@pytest.mark.parametrize("name", reference.PAGES)
def test_the_made_part_of_a_page_is_up_to_date(name: str) -> None:
    page = (reference.DOCS / name).read_text(encoding="utf-8")
    assert reference.BEGIN in page
    assert reference.written(page, reference.PAGES[name]) == page, "run python ci/reference.py"


def test_each_option_is_in_the_schema_with_its_default() -> None:
    defaults = yaml.safe_load((reference.PACKAGE / "ownership.yaml").read_text(encoding="utf-8"))
    found = dict(reference.options(reference.schema()))
    assert {name: option["default"] for name, option in found.items()} == leaves(
        defaults["ownership"]
    )


def test_each_option_says_what_it_is() -> None:
    for name, option in reference.options(reference.schema()):
        types = option["type"] if isinstance(option["type"], list) else [option["type"]]
        assert isinstance(option["default"], tuple(TYPES[one] for one in types)), name
        assert option["description"].strip().endswith("."), name
        assert option["read-at"], name
        assert set(option["read-by"]) <= set(PROCESSES), name
        # A text or a number is an amount of something, unless it is one of a few words.
        assert "enum" in option or "unit" in option or types == ["boolean"], name


def test_each_error_has_a_cause_and_a_cure() -> None:
    for kind in reference.error_classes():
        cause, cure = reference.cause_and_cure(kind)
        assert cause.endswith(".") and cure.endswith("."), kind
    page = (reference.DOCS / "errors.md").read_text(encoding="utf-8")
    named = {name for name in errors.__all__ if name != "OwnershipError"}
    assert {name for name in named if f"## `{name}`" in page} == named


def test_the_collector_gives_the_metrics_of_the_table() -> None:
    pytest.importorskip("prometheus_client")
    owner = dict.fromkeys(
        ("submitted", "done", "failed", "inline_nbytes", "lineage_nbytes", "borrowed"), 1
    )
    owner |= {"states": {"ready": 1}, "again": {"died": 1}, "traffic": {"tcp://w": (1, 1)}}
    worker = dict.fromkeys(("running", "queued", "parked"), 1)
    worker |= {"stored": {"nbytes": 1, "spilled": 1}, "received": {"tcp://v": 1}}
    told = {
        "owners": [owner],
        "workers": [worker],
        "losses": {"client": {"lost": 1}},
        "workers_gone": 1,
        "relays": {"nbytes": 1, "open": 1},
    }

    class Feed:
        def looked(self, seconds: float) -> None:
            pass

        def now(self, history: bool) -> dict[str, Any]:
            return told

    collector = Collector()
    collector.feeds.append(Feed())
    samples = [
        (sample.name, family.type, family.documentation, *sample.labels)
        for family in collector.collect()
        for sample in family.samples
    ]
    assert samples == [
        (metric.full_name, metric.kind, metric.text, *filter(None, [metric.label]))
        for metric in METRICS
    ]


def test_each_public_name_is_on_a_page() -> None:
    pages = "".join(
        (reference.DOCS / name).read_text(encoding="utf-8") for name in ("api.md", "errors.md")
    )
    assert [name for name in dask_ownership.__all__ if f"`{name}`" not in pages] == []
