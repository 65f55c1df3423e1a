"""Cells in the kernel of a notebook, and cells that are stopped there.

A program of its own, as the client of the kernel leaves sockets open. Without arguments it stops
cells, for `test_interrupts.py`, and on a machine that reaches the scheduler only, for
`test_relay.py`; with the path of a notebook it prints what each of its cells shows,
for `test_documents.py`.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

from jupyter_client.manager import start_new_kernel

START = """
import os, time, dask
from dask_ownership import Client, as_completed, wait
local = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
scheduler = os.environ.get("SCHEDULER")
client = Client(scheduler) if scheduler else Client(**local)
def slow(x):
    time.sleep(0.25)
    return x + 1
workers = client.run(os.getpid)
client
"""

CELLS = {
    # What is stopped, and what comes of the same when it is run again.
    "futures[3].result()": "5",
    "client.gather(futures)": "[2, 3, 4, 5]",
    "sum(f.result() for f in as_completed(futures))": "14",
    "dask.delayed(slow)(5).compute()": "6",
}


class Notebook:
    """A kernel, as Jupyter starts it."""

    def __init__(self) -> None:
        self.manager, self.channels = start_new_kernel(kernel_name="python3")

    def run(self, source: str, stop_after: float | None = None) -> str:
        """Run a cell, and press the stop button; what it showed, or the error that ended it."""
        shown: list[str] = []

        def hook(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "execute_result":
                shown.append(content["data"]["text/plain"])
            elif message["msg_type"] == "stream" and content["name"] == "stdout":
                shown.append(content["text"])
            elif message["msg_type"] == "error":
                shown.append(content["ename"])

        if stop_after is not None:
            threading.Timer(stop_after, self.manager.interrupt_kernel).start()
        self.channels.execute_interactive(source, timeout=20, output_hook=hook)
        return "".join(shown)

    def close(self) -> None:
        self.channels.stop_channels()
        self.manager.shutdown_kernel(now=True)


def shown_by(path: Path) -> list[str]:
    """What each cell with code shows, in order."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    notebook = Notebook()
    try:
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        return [notebook.run(source) for source in code]
    finally:
        notebook.close()


def stop_cells() -> None:
    notebook = Notebook()
    try:
        assert notebook.run(START).startswith("<Client:")
        for cell, outcome in CELLS.items():
            notebook.run("futures = client.map(slow, range(1, 5), pure=False)")
            assert notebook.run(cell, stop_after=0.2) == "KeyboardInterrupt", cell
            assert notebook.run(cell) == outcome, cell
        assert notebook.run("workers == client.run(os.getpid)") == "True"
        # The notebook has an event loop of its own: cells may await futures.
        assert notebook.run("await client.submit(slow, 1, pure=False)") == "2"
        assert notebook.run("client.close()") == ""
    finally:
        notebook.close()


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(shown_by(Path(sys.argv[1]))))
    else:
        stop_cells()
