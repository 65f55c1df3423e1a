"""Commands in a pseudo-terminal of a given size, as a user has them."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

OWNERSHIP = (sys.executable, "-W", "error", "-m", "dask", "ownership")

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>78]")
"""What moves the cursor and colours."""


def ownership(*arguments: str, seconds: float = 30) -> subprocess.CompletedProcess[str]:
    """Run ``dask ownership ...`` without a terminal."""
    return subprocess.run([*OWNERSHIP, *arguments], capture_output=True, text=True, timeout=seconds)


def all_at_once(*lines: tuple[str, ...]) -> list[subprocess.CompletedProcess[str]]:
    """Run several ``dask ownership ...`` beside each other."""
    with ThreadPoolExecutor(len(lines)) as pool:
        return list(pool.map(lambda line: ownership(*line), lines))


class Terminal:
    """A process of ``dask ownership ...`` in a pseudo-terminal.

    Attributes
    ----------
    output : str
        All that was read of it so far.
    """

    def __init__(self, *arguments: str, columns: int = 80, rows: int = 24) -> None:
        self._end, there = pty.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._there = there
        self.modes = termios.tcgetattr(there)
        environment = {**os.environ, "TERM": "xterm-256color"}
        environment.pop("COLUMNS", None)
        environment.pop("LINES", None)
        self.process = subprocess.Popen(
            [*OWNERSHIP, *arguments], stdin=there, stdout=there, stderr=there, env=environment
        )
        self.output = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: Any) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._there)
        os.close(self._end)

    def press(self, keys: str) -> None:
        """What a user types."""
        os.write(self._end, keys.encode())

    def read(self, seconds: float = 0.1) -> str:
        """Everything so far, with what comes within some seconds."""
        while select.select([self._end], [], [], seconds)[0]:
            self.output += os.read(self._end, 65536).decode(errors="replace")
            seconds = 0
        return self.output

    @property
    def text(self) -> str:
        """Everything so far, without colours."""
        return ESCAPES.sub("", self.read(0)).replace("\r\n", "\n")

    @property
    def frame(self) -> str:
        """What was drawn last of what is drawn over and over, without colours.

        A drawing is complete once the next has begun: what was read of the newest may end in the
        middle of a line, or of an escape sequence.
        """
        *complete, newest = self.read(0).split("\x1b[H")
        drawn = complete[-1] if len(complete) > 1 else newest
        return ESCAPES.sub("", drawn).replace("\r\n", "\n")

    def until(self, condition: Any, seconds: float = 15) -> None:
        """Read until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            self.read()
            if time.monotonic() > end:
                raise AssertionError(f"not so after {seconds} s: {self.text[-3000:]}")

    def wait(self, seconds: float = 15) -> int:
        """Wait for the end; the exit status."""
        self.until(lambda: self.process.poll() is not None, seconds)
        self.read()
        return int(self.process.returncode)

    @property
    def restored(self) -> bool:
        """Whether the terminal is as it was: echo, lines, cursor and screen."""
        shown = self.output.rfind("\x1b[?25h") >= self.output.rfind("\x1b[?25l")
        left = self.output.rfind("\x1b[?1049l") >= self.output.rfind("\x1b[?1049h")
        return termios.tcgetattr(self._there) == self.modes and shown and left
