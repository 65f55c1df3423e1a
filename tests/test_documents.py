"""Every example of the README and of the documentation runs, and every link leads somewhere."""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import distributed
import pytest
import yaml
from distributed import LocalCluster

import dask_ownership
from dask_ownership.client.client import Client

TOP = Path(__file__).parent.parent
sys.path.append(str(TOP / "ci"))

import documents  # noqa: E402
import reference  # noqa: E402

README = TOP / "README.md"
SERVICES = TOP / "docs" / "services.md"


def examples(path: Path) -> list[documents.Block]:
    """The blocks of Python that a page says run."""
    found = documents.blocks(path.read_text(encoding="utf-8"))
    return [block for block in found if block.language == "python" and block.fragment is None]


def name_of(path: Path) -> str:
    return str(path.relative_to(TOP))


# The quick start runs in a notebook, the README has a program, and `test_mistakes` makes mistakes.
ELSEWHERE = (README, documents.QUICKSTART, TOP / "docs" / "mistakes.md")
IN_TURN = [path for path in documents.pages() if path not in ELSEWHERE and examples(path)]


@pytest.fixture
def shared(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an example starts a cluster for its client, or names one, it gets this cluster."""

    def client(address: Any = None, **options: Any) -> Client:
        if address in (None, "tcp://scheduler:8786"):
            for name in ("n_workers", "threads_per_worker"):
                options.pop(name, None)
            address = cluster.scheduler_address
        return Client(address, **options)

    monkeypatch.setattr(dask_ownership, "Client", client)


class FastAPI:
    """As much of FastAPI as an example has."""

    def __init__(self, lifespan: Any) -> None:
        self.lifespan = lifespan
        self.state = SimpleNamespace()
        self.routes: list[SimpleNamespace] = []

    def get(self, path: str) -> Callable[[Any], Any]:
        def add(endpoint: Any) -> Any:
            self.routes.append(SimpleNamespace(path=path, endpoint=endpoint))
            return endpoint

        return add


@pytest.fixture
def fastapi(monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI itself, or a stand-in where it is not installed."""
    if find_spec("fastapi") is None:
        module = ModuleType("fastapi")
        vars(module).update(FastAPI=FastAPI, Request=SimpleNamespace)
        monkeypatch.setitem(sys.modules, "fastapi", module)


@pytest.fixture
def names() -> Iterator[dict[str, Any]]:
    """The names of a page's examples; clients that they left open are closed."""
    names = {"__name__": "__main__"}
    yield names
    for value in list(names.values()):
        if isinstance(value, distributed.Client) and value.status == "running":
            value.close()


@pytest.mark.parametrize("path", IN_TURN, ids=name_of)
@pytest.mark.usefixtures("shared", "fastapi")
@pytest.mark.filterwarnings("ignore:Port 8787 is already in use")
def test_the_examples_of_a_page(path: Path, names: dict[str, Any]) -> None:
    for block in examples(path):
        code = compile("\n" * (block.line - 1) + block.code, str(path), "exec")
        with redirect_stdout(io.StringIO()) as printed:
            exec(code, names)
        said = block.output or ""
        assert documents.printed_as_said(said, printed.getvalue()), (
            f"{name_of(path)}:{block.line} says that it prints\n{said}\n"
            f"and it prints\n{printed.getvalue()}"
        )


@pytest.mark.usefixtures("shared", "fastapi")
def test_the_service_answers() -> None:
    """A web server enters what lives as long as the service, and calls the endpoint."""
    [block] = [block for block in examples(SERVICES) if "FastAPI" in block.code]
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(block.code, names)
    app = names["app"]
    [score] = [route.endpoint for route in app.routes if route.path == "/score/{item}"]

    async def serve() -> list[Any]:
        async with names["lifespan"](app):
            request = SimpleNamespace(app=app)
            return await asyncio.gather(*(score(item, request) for item in range(3)))

    assert asyncio.run(serve()) == [{"score": 0.0}, {"score": 0.5}, {"score": 1.0}]


def test_what_cannot_run_is_python() -> None:
    left_out = [
        block
        for path in documents.pages()
        for block in documents.blocks(path.read_text(encoding="utf-8"))
        if block.fragment is not None
    ]
    assert left_out
    for block in left_out:
        compile(block.code, block.fragment, "exec")


def test_each_block_says_what_it_is() -> None:
    """Only Python, command lines, configuration, and what is shown; diagrams have no language."""
    for path in documents.pages():
        languages = {block.language for block in documents.blocks(path.read_text(encoding="utf-8"))}
        drawn = {""} if path.name == "architecture.md" else set()
        assert languages <= {"python", "sh", "yaml", "text"} | drawn, path


def test_the_program_of_the_readme(tmp_path: Path) -> None:
    """It is a whole program: pasted into a file it runs."""
    [block] = examples(README)
    program = tmp_path / "program.py"
    program.write_text(block.code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    assert documents.printed_as_said(block.output or "", done.stdout), done.stdout


def test_the_notebook_is_that_of_the_quick_start() -> None:
    made = documents.notebook(documents.QUICKSTART.read_text(encoding="utf-8"))
    assert documents.NOTEBOOK.read_text(encoding="utf-8") == made, "run python ci/documents.py"


def test_the_notebook_runs() -> None:
    program = Path(__file__).parent / "notebook.py"
    done = subprocess.run(
        [sys.executable, str(program), str(documents.NOTEBOOK)],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for block, shown in zip(
        examples(documents.QUICKSTART), json.loads(done.stdout.splitlines()[-1]), strict=True
    ):
        assert documents.printed_as_said(block.output or "", shown), (block, shown)


def test_configuration_that_pages_show_is_known() -> None:
    known = {name for name, _ in reference.options(reference.schema())}
    shown = set()
    for path in documents.pages():
        for block in documents.blocks(path.read_text(encoding="utf-8")):
            if block.language == "yaml":
                section = (yaml.safe_load(block.code) or {}).get("ownership", {})
                shown |= set(flat(section))
    assert shown and shown <= known


def flat(section: dict[str, Any], path: str = "ownership") -> Iterator[str]:
    """The full names of the options in a part of a configuration."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}"


LINKING = [
    path
    for folder in ("", "docs", "changes", "ci", "ci/conformance", "examples", "recipe")
    for path in sorted((TOP / folder).glob("*.md"))
    if not path.name.startswith("+")  # a fragment of the changelog
]


# Other sites are not reached from a test: only the form of their addresses is checked.
ELSEWHERE_IN_THE_WEB = re.compile(r"https://[a-z0-9-]+(\.[a-z0-9-]+)+(/[\w.~/#%=&?+-]*)?")


@pytest.mark.parametrize("path", LINKING, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for target in documents.links(path.read_text(encoding="utf-8")):
        if ":" in target:
            if not ELSEWHERE_IN_THE_WEB.fullmatch(target):
                broken.append(target)
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if there.exists() and not anchor:
            continue
        if not there.is_file() or anchor not in documents.anchors(there.read_text("utf-8")):
            broken.append(target)
    assert broken == []


def test_each_page_is_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    todo = [README]
    while todo:
        path = todo.pop()
        if path not in reached and path.suffix == ".md":
            reached.add(path)
            for target in documents.links(path.read_text(encoding="utf-8")):
                if "://" not in target:
                    todo.append((path.parent / target.partition("#")[0]).resolve())
    assert [name_of(path) for path in documents.pages() if path not in reached] == []
