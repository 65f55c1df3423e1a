"""Keys pressed while ``dask ownership top`` displays its picture."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator

SORTS = {"r": "rate", "p": "pending", "f": "failed", "m": "memory", "n": "name"}
"""Keys, and the orders they choose."""


class Keys:
    """Takes key presses without echo and without waiting for the end of a line.

    Attributes
    ----------
    sort : str
        The chosen order.
    quit : bool
        Whether the user wants to quit.
    pressed : asyncio.Event
        Set when `sort` or `quit` may differ from the picture.
    """

    def __init__(self, sort: str) -> None:
        self.sort = sort
        self.quit = False
        self.pressed = asyncio.Event()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take keys and signals for the time of a context, and restore the terminal afterwards."""
        loop = asyncio.get_running_loop()
        # A signal that ended the process at once would leave the terminal without echo.
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
        """Take keys for the time of a context, if standard input is a terminal."""
        try:
            import termios
            import tty
        except ImportError:  # Windows has no termios; there Ctrl-C quits
            yield
            return
        if not sys.stdin.isatty():
            yield
            return
        there = sys.stdin.fileno()
        before = termios.tcgetattr(there)
        # Keys arrive one by one and without echo; Ctrl-C still makes a signal.
        tty.setcbreak(there)
        loop.add_reader(there, self._read, there)
        try:
            yield
        finally:
            loop.remove_reader(there)
            termios.tcsetattr(there, termios.TCSADRAIN, before)

    def _read(self, there: int) -> None:
        """Take the pressed keys."""
        typed = os.read(there, 64).decode(errors="ignore")
        if not typed:  # no bytes: the terminal is gone
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
        """Wait until a key is pressed, for at most so many seconds."""
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(self.pressed.wait(), seconds)
        self.pressed.clear()
