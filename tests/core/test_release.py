"""What a release is made of says the same as ``pyproject.toml``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

TOP = Path(__file__).parent.parent.parent
PROJECT = (TOP / "pyproject.toml").read_text()
PYTHONS = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
OLDEST = re.findall(r'requires-python = ">=(3\.\d+)"', PROJECT)
WORKFLOWS = sorted((TOP / ".github" / "workflows").glob("*.yml"))


def requirements(name: str) -> set[str]:
    """The lines of a list of ``pyproject.toml``."""
    found = re.search(rf"^{name} = \[(.*?)\]$", PROJECT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return set(re.findall(r'"([^"]+)"', found[1]))


def steps(workflow: dict[str, Any]) -> list[str]:
    """The commands of all jobs."""
    return [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]


def test_workflows_run_every_python_and_what_exists() -> None:
    read = {path.stem: yaml.safe_load(path.read_text()) for path in WORKFLOWS}
    assert set(read) == {"docs", "release", "tests"}
    jobs = read["tests"]["jobs"]
    assert jobs["each"]["strategy"]["matrix"]["python"] == PYTHONS
    setup = jobs["packages"]["steps"][1]["with"]["python-version"]
    assert setup.split() == PYTHONS
    assert [jobs["oldest"]["steps"][1]["with"]["python-version"]] == OLDEST
    targets = set(re.findall(r"^([\w-]+):", (TOP / "Makefile").read_text(), re.MULTILINE))
    for workflow in read.values():
        for command in steps(workflow):
            words = command.split()
            if words[0] == "make":
                assert words[1] in targets, command
            elif words[0] in ("python", "bash"):
                assert (TOP / words[1]).is_file(), command


def test_the_recipe_has_the_requirements_of_the_package() -> None:
    recipe = (TOP / "recipe" / "meta.yaml").read_text()
    run = recipe[recipe.index("  run:") : recipe.index("test:")]
    # dask-core is what conda calls the package without the collections' requirements.
    lines = {line.replace(" ", "") for line in re.findall(r"- ([\w-]+ >=[\d.]+)", run)}
    assert {line.replace("dask-core", "dask") for line in lines} == requirements("dependencies")
    host = recipe[recipe.index("  host:") : recipe.index("  run:")]
    needed = {line.replace(" ", "") for line in re.findall(r"- ([\w-]+ >=[\d.]+)", host)}
    assert needed == requirements("requires")
    assert [re.search(r'python_min = "(3\.\d+)"', recipe)[1]] == OLDEST  # type: ignore[index]


def test_fragments_of_the_changelog() -> None:
    """Each names its kind, and is short."""
    kinds = "|".join(re.findall(r'directory = "(\w+)", name', PROJECT))
    for path in (TOP / "changes").iterdir():
        if path.name == "README.md":
            continue
        assert re.fullmatch(rf"\+[\w.-]+\.({kinds})\.md", path.name), path.name
        text = path.read_text()
        assert 0 < len(text) < 600 and not text.startswith(("-", "#")), path.name


@pytest.mark.parametrize("name", ["CITATION.cff", ".github/ISSUE_TEMPLATE/bug.yml"])
def test_what_a_forge_reads_is_yaml(name: str) -> None:
    assert yaml.safe_load((TOP / name).read_text())
