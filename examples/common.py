"""What several examples have in common: the options of their command lines, and their client."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import Any

from distributed import Client


def parser(description: str, plot: str) -> argparse.ArgumentParser:
    """A parser with ``--engine``, and ``--plot``, which is described by ``plot``."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--engine", choices=("ownership", "distributed"), default="ownership")
    found.add_argument("--plot", type=_picture, metavar="FILE", help=plot)
    return found


def client_class(engine: str) -> type[Client]:
    """The class of the client: programs differ between the engines in nothing else."""
    if engine == "distributed":
        return Client
    import dask_ownership  # stock Dask runs without it

    return dask_ownership.Client


def seconds(text: str) -> float:
    """Seconds on a command line, as ``5`` or ``5s``."""
    return float(text.removesuffix("s"))


def _picture(path: str) -> str:
    """The file of a picture; whether it can be drawn is known before the program has run."""
    if find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("needs matplotlib: pip install matplotlib")
    return path


def new_figure(width: float = 7) -> Any:
    """A figure of matplotlib, which only programs that draw import."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, 4), layout="constrained")
