"""``dask ownership simulate``: predicts how a cluster of any size would run a program."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from random import SystemRandom

import click
from dask.utils import parse_timedelta

from dask_ownership.cli.terminal import console
from dask_ownership.testing.prediction import Plan, Prediction, predict

PARTS = 16
"""Equal parts of the makespan; each has a line with its rate."""

BAR = 40
"""Characters of the longest bar."""

DEFAULT = Plan()
"""The defaults of the options."""


def seconds(text: str) -> float:
    """Return the seconds of a text such as ``10ms`` or ``2s``, or of a number."""
    try:
        found = float(parse_timedelta(text, default="seconds"))
    except (ValueError, TypeError, KeyError):
        raise click.BadParameter(f"{text!r} is no time such as 10ms, 2s or 0.5") from None
    if found < 0:
        raise click.BadParameter(f"{text!r} is less than nothing")
    return found


def spell(time: float) -> str:
    """Return a time with its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if time >= size:
            return f"{time / size:.4g} {unit}"
    return f"{time * 1e6:.3g} µs" if time else "0 s"


def count(number: float, what: str) -> str:
    """Return a number with a noun, in the plural if need be."""
    return f"{number:,.0f} {what}{'' if number == 1 else 's'}"


def outcome(found: Prediction, undisturbed: Prediction | None) -> list[tuple[str, str]]:
    """Return names and texts of the results of a prediction.

    ``undisturbed`` is the prediction of the same program without deaths, if there are deaths.
    """
    plan = found.plan
    rows = [
        ("makespan", spell(found.makespan)),
        ("throughput", count(found.throughput, "task") + "/s"),
        ("busy slots", f"{found.efficiency:.1%} of their time"),
        ("least possible", f"{spell(plan.least)}, with {plan.bound} always busy"),
    ]
    if undisturbed is not None:
        more = found.makespan - undisturbed.makespan
        part = more / undisturbed.makespan if undisturbed.makespan else 0.0
        rows += [
            ("workers lost", f"{len(found.kills):,d}"),
            ("tasks run again", f"{found.again:,d} to their end ({found.again / plan.total:.1%})"),
            (
                "recovery cost",
                f"{spell(more) if more > 0 else 'none'} of the makespan ({part:+.1%})",
            ),
            ("tasks failed", f"{found.failed:,d}"),
        ]
    return rows


def bars(found: Prediction) -> list[tuple[str, str, str, str]]:
    """Return for each part of the makespan its start, a bar, its rate, and the number of deaths."""
    rates = found.rates(PARTS)
    width = found.makespan / PARTS
    most = max(rates) or 1.0
    rows = []
    for part, rate in enumerate(rates):
        start = part * width
        died = sum(1 for when in found.kills if start <= when < start + width)
        bar = "█" * round(BAR * rate / most)
        note = count(died, "worker") + " died" if died else ""
        rows.append((spell(start), bar, f"{rate:,.0f}", note))
    return rows


def show(found: Prediction, undisturbed: Prediction | None) -> None:
    """Print a prediction."""
    from rich.table import Table
    from rich.text import Text

    plan = found.plan
    terminal = console()
    tree = f", each the root of a tree of {plan.tree:,d}" if plan.depth else ""
    terminal.print(
        f"{count(plan.tasks, 'task')} of {spell(plan.length)}{tree}, from "
        f"{count(plan.owners, 'owner')}, on {count(plan.workers, 'worker')} of "
        f"{count(plan.threads, 'thread')}; seed {plan.seed}"
    )
    terminal.print()
    grid = Table.grid(padding=(0, 2))
    for name, text in outcome(found, undisturbed):
        grid.add_row(Text(name, "bold"), Text(text))
    terminal.print(grid)
    terminal.print()
    table = Table(box=None, padding=(0, 1), show_edge=False)
    table.add_column("from", justify="right", no_wrap=True)
    table.add_column("tasks that ended", no_wrap=True)
    table.add_column("per second", justify="right", no_wrap=True)
    table.add_column("")
    for start, bar, rate, note in bars(found):
        table.add_row(start, Text(bar, "cyan"), rate, Text(note, "red"))
    terminal.print(table)


def draw(found: Prediction, path: str) -> None:
    """Draw the rate over time into a file."""
    from matplotlib.figure import Figure

    plan = found.plan
    # Steps shorter than the tasks would picture the tasks' length and not the rate.
    parts = int(found.makespan / (3 * plan.length)) if plan.length else 10 * PARTS
    parts = max(PARTS, min(parts, 10 * PARTS))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    edges = [part * found.makespan / parts for part in range(parts + 1)]
    axes.stairs(found.rates(parts), edges, fill=True, color="tab:blue", alpha=0.6)
    for number, when in enumerate(found.kills):
        label = "a worker died" if not number else None
        axes.axvline(when, color="tab:red", linewidth=0.8, linestyle="--", label=label)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("tasks that ended (1/s)")
    axes.set_xlim(0, found.makespan)
    axes.set_ylim(bottom=0)
    axes.set_title(
        f"{count(plan.total, 'task')} of {spell(plan.length)} on {count(plan.workers, 'worker')} "
        f"of {count(plan.threads, 'thread')} (seed {plan.seed})",
        fontsize="medium",
    )
    if found.kills:
        axes.legend()
    figure.savefig(path, dpi=120)


@click.command("simulate")
@click.option(
    "--workers", type=click.IntRange(1), default=DEFAULT.workers, show_default=True,
    help="Worker processes.",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1), default=DEFAULT.threads, show_default=True,
    help="Threads of each worker.",
)  # fmt: skip
@click.option(
    "--owners", type=click.IntRange(1), default=DEFAULT.owners, show_default=True,
    help="Clients, which submit the tasks in equal parts.",
)  # fmt: skip
@click.option(
    "--tasks", type=click.IntRange(1), default=DEFAULT.tasks, show_default=True,
    help="Tasks that the clients submit.",
)  # fmt: skip
@click.option(
    "--task-length", type=seconds, metavar="TIME", default="10ms", show_default=True,
    help="How long each task runs.",
)  # fmt: skip
@click.option(
    "--depth", type=click.IntRange(0), default=0, show_default=True,
    help="Have each task submit others, and wait for them, down to this depth.",
)  # fmt: skip
@click.option(
    "--fan-out", type=click.IntRange(1), default=DEFAULT.fan_out, show_default=True,
    help="How many each task submits, with --depth.",
)  # fmt: skip
@click.option(
    "--stored", is_flag=True,
    help="Values are large: they stay at their workers, and are made again when those die.",
)  # fmt: skip
@click.option(
    "--kill-every", type=seconds, metavar="TIME", help="A worker dies each time this has passed.",
)  # fmt: skip
@click.option(
    "--restart-after", type=seconds, metavar="TIME", default="3s", show_default=True,
    help="Until another worker takes the place of a dead one.",
)  # fmt: skip
@click.option(
    "--latency", type=seconds, metavar="TIME", default="100us", show_default=True,
    help="Of a message, on average; exponentially distributed.",
)  # fmt: skip
@click.option(
    "--owner-cost", type=seconds, metavar="TIME", default="8us", show_default=True,
    help="What a task costs the process of its owner.",
)  # fmt: skip
@click.option(
    "--worker-cost", type=seconds, metavar="TIME", default="8us", show_default=True,
    help="What a task costs the process of its worker, beside its length.",
)  # fmt: skip
@click.option("--seed", type=int, help="For the same run again.  [default: another each time]")
@click.option("--plot", type=click.Path(dir_okay=False, writable=True), help="Write a picture.")
def command(
    *,
    workers: int,
    threads: int,
    owners: int,
    tasks: int,
    task_length: float,
    depth: int,
    fan_out: int,
    stored: bool,
    kill_every: float | None,
    restart_after: float,
    latency: float,
    owner_cost: float,
    worker_cost: float,
    seed: int | None,
    plot: str | None,
) -> None:
    """Predict throughput, makespan and the cost of failures on a cluster of any size.

    The decisions are those of this project's owners and executors, message by message; only
    the network, the clock and the tasks are virtual. Times may be written as 10ms, 2s or 0.5.

    Not modelled: the size of values, bandwidth, serializing, memory and spilling; Python's
    lock between the threads of a worker while tasks run; machines of different speed, several
    processes on one core, and the scheduler (which owned tasks do not pass). A death is noticed
    after one message. Costs are constants: the defaults were measured with no-ops on one
    machine of 2 cores. With the defaults, 2 workers reach 82,000 no-ops per second here;
    130,000 were measured there.

    10,000 tasks take about 2 seconds on 10 workers, 5 on 500; with --depth every worker links
    to every other, which takes memory and time for each pair.
    """
    terminal = console()
    if plot is not None:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise click.ClickException("--plot needs matplotlib: pip install matplotlib") from None
    plan = Plan(
        workers=workers,
        threads=threads,
        owners=owners,
        tasks=tasks,
        length=task_length,
        depth=depth,
        fan_out=fan_out,
        stored=stored,
        kill_every=kill_every or None,
        restart_after=restart_after,
        latency=latency,
        owner_cost=owner_cost,
        worker_cost=worker_cost,
        seed=SystemRandom().randrange(1 << 32) if seed is None else seed,
    )
    # In a file the moving status would only be noise.
    shown = terminal.status("") if sys.stdout.isatty() else nullcontext()
    with shown as status:

        def progress(ended: int) -> None:
            if status is not None:
                status.update(f"{ended:,d} of {count(plan.total, 'task')} have ended")

        undisturbed = None
        if plan.kill_every:
            # The same seed without deaths: the difference is the cost of the deaths.
            undisturbed = predict(replace(plan, kill_every=None), progress)
        found = predict(plan, progress)
    if found.unfinished:
        raise click.ClickException(
            f"after {spell(found.makespan)} {count(found.unfinished, 'task')} had not ended, and "
            f"{count(len(found.kills), 'worker')} had died: they die faster than work is done "
            f"(seed {plan.seed})"
        )
    show(found, undisturbed)
    if plot is not None:
        draw(found, plot)
