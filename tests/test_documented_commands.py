"""Every command line of the documentation runs, or is understood; what is shown below it is said.

Numbers, addresses, versions and times differ each time, and are compared as such.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import click
import distributed
import pytest
from click.testing import CliRunner
from distributed import LocalCluster
from live import boom, inc, pid_of, slowinc, small_cluster, until, wait_for_members
from terminals import Terminal, ownership

from dask_ownership import Client, wait
from dask_ownership.benchmarks import cli
from dask_ownership.cli import main

TOP = Path(__file__).parent.parent
sys.path.append(str(TOP / "ci"))

import documents  # noqa: E402
import reference  # noqa: E402

DEPLOYING = TOP / "docs" / "deploying.md"
COMMAND_LINE = TOP / "docs" / "command-line.md"
PAGES = [*documents.pages(), TOP / "examples" / "README.md"]


def blocks(path: Path, language: str = "sh") -> list[documents.Block]:
    found = documents.blocks(path.read_text(encoding="utf-8"))
    return [block for block in found if block.language == language]


def lines(block: documents.Block) -> list[str]:
    """The command lines of a block, without what is said of each."""
    return [line.partition("  #")[0].strip() for line in block.code.splitlines()]


def all_lines() -> list[str]:
    return [line for path in PAGES for block in blocks(path) for line in lines(block)]


# ---- what is understood ----


def words_after(start: str) -> list[list[str]]:
    """The words behind the same first words of command lines."""
    found = [shlex.split(line) for line in all_lines() if line.startswith(start)]
    return [words[len(start.split()) :] for words in found]


def test_each_command_line_is_looked_at() -> None:
    """A new kind of line needs a test below."""
    kinds = {" ".join(shlex.split(line)[:2]) for line in all_lines()}
    examples = {kind for kind in kinds if kind.startswith("python examples/")}
    assert examples and kinds - examples == {
        "DASK_DISTRIBUTED__SCHEDULER__PRELOAD=['dask_ownership.preload'] dask",
        "DASK_OWNERSHIP__SILENCE=10s DASK_OWNERSHIP__LINEAGE__MAX_BYTES=4GiB",
        "dask ownership",
        "dask scheduler",
        "dask worker",
        "pip install",
        "python -m",
    }


def test_commands_are_understood() -> None:
    names = set()
    for name, *arguments in words_after("dask ownership"):
        names.add(name)
        command = main.get_command(click.Context(main), name)
        assert command is not None
        context = command.make_context(name, list(arguments))
        if name == "bench":
            cli._choose(cli._parser("bench").parse_args(context.params["options"]))
    assert names == {"bench", "check", "simulate", "top"}
    assert names < set(main.list_commands(click.Context(main)))


EXAMPLES = sorted({words[0] for words in words_after("python") if words[0] != "-m"})


@pytest.mark.parametrize("program", [*EXAMPLES, "-m dask_ownership.benchmarks paper"])
def test_options_of_programs_are_there(program: str) -> None:
    done = subprocess.run(
        [sys.executable, *program.split(), "--help"],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    uses = words_after(f"python {program}")
    assert uses
    given = {word for words in uses for word in words if word.startswith("--")}
    assert given <= set(re.findall(r"--[a-z0-9-]+", done.stdout))


def test_extras_that_are_installed_are_there() -> None:
    declared = (TOP / "pyproject.toml").read_text(encoding="utf-8")
    for path in PAGES:
        for names in re.findall(r"pip install '\.\[([\w,]+)\]'", path.read_text(encoding="utf-8")):
            for name in names.split(","):
                assert re.search(rf"^{name} = \[", declared, re.MULTILINE), (path, name)


def test_targets_of_make_are_there() -> None:
    targets = re.findall(r"^([\w-]+):", (TOP / "Makefile").read_text("utf-8"), re.MULTILINE)
    for path in (*PAGES, TOP / "CONTRIBUTING.md", TOP / "ci" / "README.md"):
        named = re.findall(r"`make ([\w-]+)", path.read_text(encoding="utf-8"))
        assert set(named) <= set(targets), path


def test_variables_of_the_environment_are_options() -> None:
    [line] = [line for line in all_lines() if line.startswith("DASK_OWNERSHIP__")]
    variables = dict(word.split("=", 1) for word in shlex.split(line) if "=" in word)
    known = {name for name, _ in reference.options(reference.schema())}
    for name in variables:
        words = name.removeprefix("DASK_").lower().replace("_", "-").split("--")
        assert ".".join(words) in known


# ---- what is shown ----

MASKS = (
    (r"(tcp://)?127\.0\.0\.1:\d+", "ADDRESS"),
    (r"Client-\w+", "CLIENT"),
    (r"\b\d\d:\d\d:\d\d\b", "TIME"),
    (r"[▁▂▃▄▅▆▇█ ]*[▁▂▃▄▅▆▇█]", " BARS"),
    (r"\d[\d,]*(\.\w+)*(\+[\w.]+)?( (%|[µm]?s|[kMG]iB|B))?(?![\w/])", "N"),
    (r"N/N", "N"),
    (r" +", " "),
)
"""What differs each time, and what is compared in place of it."""


def masked(text: str) -> str:
    for pattern, constant in MASKS:
        text = re.sub(pattern, constant, text)
    return text.strip()


def shown(name: str) -> str:
    """What the page shows below the command."""
    [block] = [one for one in blocks(COMMAND_LINE) if f"dask ownership {name}" in one.code]
    assert block.output
    return block.output


def test_check_says_what_the_page_shows() -> None:
    with small_cluster() as cluster, Client(cluster, set_as_default=False) as client:
        wait_for_members(client, 2)
        with Terminal("check", cluster.scheduler_address, columns=100) as terminal:
            assert terminal.wait() == 0
            told = terminal.text

    def whole(text: str) -> str:
        """Where lines are broken depends on the lengths of numbers."""
        return masked(" ".join(text.split()))

    assert whole(told) == whole(shown("check"))


def fan(n: int) -> int:
    client = distributed.get_client()
    return sum(client.gather(client.map(inc, range(n), pure=False)))


@contextlib.contextmanager
def everything_happens(client: Client) -> Iterator[None]:
    """Nested tasks, failures, and the death of a worker, while the body runs."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.05):
            nested = [client.submit(fan, 20, pure=False) for _ in range(3)]
            wait([*nested, client.submit(boom, pure=False)])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def kinds_of_lines(frame: str) -> set[str]:
    """The lines of `top`, each kind once."""
    cut = (
        # Reasons, and what happened, as far as there is room.
        (r"hand(ed out again|[a-z ]*…).*", "handed out again"),
        (r"^TIME \S+ .*", "TIME EVENT"),
        (r"N workers? gone", "N gone"),
        (r"^(ADDRESS|CLIENT) N.*", r"\1 NUMBERS"),
    )
    found = set()
    for line in frame.splitlines():
        kind = masked(line)
        for pattern, constant in cut:
            kind = re.sub(pattern, constant, kind)
        found.add(kind.strip())
    return found - {""}


@pytest.mark.waits
def test_top_shows_what_the_page_shows() -> None:
    expected = kinds_of_lines(shown("top"))
    with small_cluster() as cluster, Client(cluster, set_as_default=False) as client:
        first, _ = wait_for_members(client, 2)
        with (
            everything_happens(client),
            Terminal("top", cluster.scheduler_address, columns=80, rows=24) as terminal,
        ):
            terminal.until(lambda: "tasks/s" in terminal.frame)
            pid = pid_of(client, first)
            again = client.submit(slowinc, 1, 1, workers=[first], allow_other_workers=True)
            until(lambda: client.ownership(again).worker == first)
            os.kill(pid, signal.SIGKILL)
            terminal.until(lambda: kinds_of_lines(terminal.frame) == expected, 30)
            terminal.press("q")
            assert terminal.wait() == 0


def test_the_prediction_is_what_the_page_shows() -> None:
    """The same seed gives the numbers in the document, also beside the bars that are left out."""
    [arguments] = [rest for name, *rest in words_after("dask ownership") if "--seed" in rest]
    done = CliRunner().invoke(main, ["simulate", *arguments])
    assert done.exit_code == 0, done.output
    told = [line.rstrip() for line in done.output.splitlines()]
    said = shown("simulate").splitlines()
    assert told[: len(said)] == said


# ---- clusters that command lines start ----


class Started:
    """Processes of command lines, in a folder of their own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, line: str, **environment: str) -> Path:
        """Run a command line; return the file of what it says."""
        words = shlex.split(line)
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        assert words[0] == "dask"
        if words[1] == "scheduler":  # the usual ports of this machine may be taken
            words += ["--host", "127.0.0.1", "--port", "0"]
        log = self.path / f"{len(self.processes)}.log"
        with open(log, "wb") as file:
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", *words, "--no-dashboard"],
                    env={**os.environ, **environment},
                    cwd=self.path,
                    stdout=file,
                    stderr=file,
                )
            )
        return log

    def start_scheduler(self, line: str, **environment: str) -> str:
        """Run the command line of a scheduler; return its address."""
        log = self.start(line, **environment)
        until(lambda: re.search(r"Scheduler at: +(\S+)", log.read_text()), 20, log.read_text())
        return re.findall(r"Scheduler at: +(\S+)", log.read_text())[0]

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()  # and not killed: a nanny ends its workers
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    monkeypatch.chdir(tmp_path)
    started = Started(tmp_path)
    try:
        yield started
    finally:
        started.stop()


def block_with(path: Path, text: str, language: str = "sh") -> documents.Block:
    [block] = [block for block in blocks(path, language) if text in block.code]
    return block


@pytest.mark.waits
def test_scheduler_file(started: Started) -> None:
    scheduler, worker = lines(block_with(DEPLOYING, "--scheduler-file"))
    (started.path / "shared").mkdir()
    started.start_scheduler(scheduler)
    assert "--nworkers 4" in worker
    started.start(worker.replace("--nworkers 4", "--nworkers 2"))
    names: dict[str, Any] = {"Client": Client}
    exec(block_with(DEPLOYING, "Client(scheduler_file=", "python").code, names)
    with names["client"] as client:
        assert client.submit(inc, 1).result(timeout=30) == 2


NO_RIGHTS = {"DASK_DISTRIBUTED__SCHEDULER__BLOCKED_HANDLERS": "['register_scheduler_plugin']"}
"""Clients may register no plugin."""


@pytest.mark.waits
def test_schedulers_load_the_plugin(started: Started) -> None:
    """By an option, a variable of the environment, and a file of the configuration."""
    option, variable = lines(block_with(DEPLOYING, "--preload"))
    setting = started.path / "dask.yaml"
    setting.write_text(block_with(DEPLOYING, "preload:", "yaml").code)
    addresses = [
        started.start_scheduler(option, **NO_RIGHTS),
        started.start_scheduler(variable, **NO_RIGHTS),
        started.start_scheduler("dask scheduler", DASK_CONFIG=str(setting), **NO_RIGHTS),
    ]
    for address in addresses:
        assert "ok plugin installed at the scheduler" in " ".join(
            ownership("check", address).stdout.split()
        )


def test_certificates(started: Started) -> None:
    made = distributed.Security.temporary()
    Path("ca.pem").write_text(made.tls_ca_file)
    for name in ("scheduler", "worker", "me"):
        Path(f"{name}.pem").write_text(made.tls_client_cert + made.tls_client_key)
    scheduler, worker = lines(block_with(DEPLOYING, "--tls-ca-file"))
    address = started.start_scheduler(scheduler)
    assert address.startswith("tls://")
    started.start(worker.replace("tls://scheduler:8786", address))
    code = block_with(DEPLOYING, "tls_client_cert=", "python").code
    names: dict[str, Any] = {"Client": Client}
    exec(code.replace("tls://scheduler:8786", address), names)
    with names["client"] as client:
        assert client.submit(inc, 1).result(timeout=30) == 2


def test_hosts(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no other hosts here: what is called takes these arguments, and gives a cluster."""
    takes = signature(distributed.SSHCluster)

    def stand_in(*arguments: Any, **options: Any) -> LocalCluster:
        takes.bind(*arguments, **options)
        return cluster

    monkeypatch.setattr(distributed, "SSHCluster", stand_in)
    names: dict[str, Any] = {"Client": Client}
    exec(block_with(DEPLOYING, "SSHCluster(", "python").code, names)
    with names["client"] as client:
        assert client.submit(inc, 1).result() == 2
