"""Random programs by their seed alone: many of them for as long as asked, or one again.

``python tests/simulation/random_programs.py soak --hours 2`` prints the seed of each that
fails and goes on; ``... replay SEED`` runs that one again.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from random import Random
from time import monotonic
from typing import Any

import click
from simulation_programs import run_program
from travel_programs import run_travels

from dask_ownership.testing.network import Faults


def program_of(seed: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Which program a seed stands for, and with which troubles."""
    random = Random(seed)
    run: Callable[..., Any] = random.choice([run_program, run_travels])
    arguments: dict[str, Any] = {
        "seed": seed,
        "workers": random.randint(1, 5),
        "slots": random.randint(1, 3),
        "clients": random.randint(1, 3),
        "length": random.randint(1, 120),
        "kills": random.choice([0, 0, 1, 3]),
        "freezes": random.random() < 0.3,
        "partitions": random.random() < 0.3,
        "faults": Faults(
            random.choice([0.0, 0.2]),
            random.choice([0.0, 0.1]),
            random.choice([2_000.0, 2_000.0, 20_000.0]),
        ),
    }
    if run is run_travels:
        arguments["cancels"] = random.random() < 0.5
        arguments["leaves"] = random.random() < 0.5
        arguments["retires"] = random.choice([0, 0, 1, 3])
    return run, arguments


def replay(seed: int) -> None:
    """Run the program of a seed."""
    run, arguments = program_of(seed)
    run(**arguments)


def soak(seconds: float, first: int | None = None, stop: bool = True) -> tuple[int, list[int]]:
    """Run programs with seeds of their own until the time is over.

    Parameters
    ----------
    seconds : float
    first : int, optional
        The first seed; the others follow. A random one when None.
    stop : bool
        Raise at the first that fails, in place of printing its traceback.

    Returns
    -------
    int, list of int
        How many ran, and the seeds of those that failed.
    """
    first = Random().randrange(2**32) if first is None else first
    print(f"seeds from {first}", flush=True)
    end = monotonic() + seconds
    count = 0
    failed = []
    while monotonic() < end:
        seed = first + count
        try:
            replay(seed)
        except Exception:
            print(f"failed: python {__file__} replay {seed}", flush=True)
            failed.append(seed)
            if stop:
                raise
            traceback.print_exc()
        count += 1
    return count, failed


@click.group()
def main() -> None:
    """Random programs in the virtual cluster."""
    # Tables go by the hashes of keys: with those of another process a seed gives another run.
    if os.environ.get("PYTHONHASHSEED") != "0":
        arguments = [sys.executable, *sys.argv]
        os.execve(sys.executable, arguments, {**os.environ, "PYTHONHASHSEED": "0"})


@main.command("soak")
@click.option("--hours", type=float, default=0.1, show_default=True)
@click.option("--first", type=int, default=None, help="The first seed; random when not given.")
def soak_command(hours: float, first: int | None) -> None:
    """Run programs for so many hours; print the seeds of those that fail."""
    count, failed = soak(hours * 3600, first, stop=False)
    print(f"{count} programs, {len(failed)} failed: {failed}")
    raise SystemExit(bool(failed))


@main.command("replay")
@click.argument("seed", type=int)
def replay_command(seed: int) -> None:
    """Run the program of a seed again."""
    run, arguments = program_of(seed)
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    print(f"{run.__name__}({given})", flush=True)
    run(**arguments)
    print("it holds")


if __name__ == "__main__":
    main()
