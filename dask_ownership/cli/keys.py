"""What is typed while ``dask ownership top`` shows its picture."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator

SORTS = {"r": "rate", "p": "pending", "f": "failed", "m": "memory", "n": "name"}
"""Keys and what they sort by."""


class Keys:
    """What is typed, without echo and without waiting for the end of a line.

    Attributes
    ----------
    sort : str
    quit : bool
    pressed : asyncio.Event
        Something is different from what is shown.
    """

    def __init__(self, sort: str) -> None:
        self.sort = sort
        self.quit = False
        self.pressed = asyncio.Event()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take keys and signals; afterwards the terminal is as it was."""
        loop = asyncio.get_running_loop()
        ends = [
            number
            for name in ("SIGINT", "SIGTERM", "SIGHUP")
            if (number := getattr(signal, name, None)) is not None
        ]
        with contextlib.suppress(NotImplementedError):  # on Windows
            for number in ends:
                loop.add_signal_handler(number, self.end)
        try:
            with self._typing(loop):
                yield
        finally:
            with contextlib.suppress(NotImplementedError):
                for number in ends:
                    loop.remove_signal_handler(number)

    @contextlib.contextmanager
    def _typing(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        try:
            import termios
            import tty
        except ImportError:  # on Windows, where Ctrl-C ends it
            yield
            return
        if not sys.stdin.isatty():
            yield
            return
        there = sys.stdin.fileno()
        before = termios.tcgetattr(there)
        tty.setcbreak(there)
        loop.add_reader(there, self._read, there)
        try:
            yield
        finally:
            loop.remove_reader(there)
            termios.tcsetattr(there, termios.TCSADRAIN, before)

    def _read(self, there: int) -> None:
        typed = os.read(there, 64).decode(errors="ignore")
        if not typed:  # the terminal is gone
            self.end()
        for key in typed.lower():
            if key == "q":
                self.quit = True
            self.sort = SORTS.get(key, self.sort)
        self.pressed.set()

    def end(self) -> None:
        """Quit."""
        self.quit = True
        self.pressed.set()

    async def within(self, seconds: float) -> None:
        """Wait until something is pressed, or so long."""
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(self.pressed.wait(), seconds)
        self.pressed.clear()
