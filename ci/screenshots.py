"""Take the pictures of docs/monitoring.md: ``python ci/screenshots.py [FOLDER]``.

The pages are those of a small cluster on which a bit of everything goes on: tasks that submit
tasks, a worker that is killed, tasks that fail or that no worker may run, a client behind relays,
and a published object. Chromium takes the pictures, in its light and in its dark theme.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dask
import distributed

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from browser import Browser  # noqa: E402
from live import small_cluster  # noqa: E402

from dask_ownership import Client, wait  # noqa: E402
from dask_ownership.monitoring.pages.server import PAGES  # noqa: E402

SIZE = (1440, 900)

DRAWN = "window.Bokeh != null && Object.keys(Bokeh.index).length > 0"
"""The page is there."""

BEFORE = 25.0
"""Seconds for which pages are open before the pictures are taken, so that lines have a length."""


def load(path: str, seed: int) -> bytearray:
    time.sleep(0.02)
    return bytearray([seed % 256]) * 400_000


def clean(block: bytearray) -> bytes:
    time.sleep(0.01)
    return bytes(block[:1000])


def score(x: int) -> float:
    time.sleep(0.005)
    return x / 7


def search(n: int) -> float:
    client = distributed.get_client()
    return float(sum(client.gather(client.map(score, range(n), pure=False))))


def join(*parts: Any) -> int:
    return sum(map(len, parts))


def parse(row: str) -> float:
    return float(row)


def price_of(name: str) -> float:
    return {"tea": 1.5}[name]


def train(model: bytearray, epochs: int) -> int:
    time.sleep(6)
    return len(model) * epochs


def watch(seconds: float) -> None:
    """A task that goes on when it is cancelled, as one that does not ask does."""
    time.sleep(seconds)


def stream(client: Client, stop: threading.Event) -> None:
    """Consume a stream, more slowly than it comes."""
    for _ in client.map(score, itertools.count(), buffer_size=8, pure=False):
        if stop.wait(0.3):
            return


def program(client: Client, stop: threading.Event) -> None:
    """Keep a cluster busy until it is told to stop."""
    workers = list(client.scheduler_info(n_workers=-1)["workers"])
    model = client.submit(load, "model", 0, key="model", workers=workers[:3])
    client.publish_dataset(model=model)
    trained = client.submit(train, model, 3, resources={"GPU": 1}, key="train-7")
    pinned = client.submit(score, 1, workers=["10.0.0.9:4000"], key="score-7")
    stuck = [trained, pinned, client.submit(join, trained, model, key="report-7")]
    kept: list[Any] = []
    lingering = client.submit(watch, 45, key="watch-1", workers=workers[3])
    turn = 0
    while not stop.is_set():
        turn += 1
        blocks = [
            client.submit(load, "part", turn + n, key=f"load-{turn}-{n}", workers=workers[n % 3],
                          allow_other_workers=True)
            for n in range(6)
        ]  # fmt: skip
        cleaned = [client.submit(clean, one, key=f"clean-{one.key}") for one in blocks]
        merged = client.submit(join, *blocks, key=f"join-{turn}")
        searches = [client.submit(search, 20, pure=False) for _ in range(2)]
        kept = [*kept, *blocks, merged][-14:]
        if turn == 3:
            lingering.cancel()
        if turn % 4 == 0:
            kept.append(client.submit(parse, "12,5", key=f"parse-{turn}"))
        if turn % 7 == 0:
            kept.append(client.submit(price_of, "coffee", key=f"price-of-{turn}"))
        if turn % 9 == 0:
            kept.append(client.submit(parse, "", retries=1, key=f"parse-{turn}-again"))
        wait([*cleaned, merged, *searches])
    client.cancel(stuck)


def behind_relays(address: str, stop: threading.Event) -> None:
    """A client that reaches all workers through the scheduler."""
    with dask.config.set({"ownership.reach": "relay"}):
        client = Client(address, set_as_default=False)
    with client:
        while not stop.is_set():
            client.gather(client.map(load, ["far"] * 3, range(3), pure=False))
            stop.wait(0.2)


async def look(base: str, folder: Path, kill: Any) -> None:
    async with Browser(*SIZE) as browser:
        await browser.go(f"{base}/ownership")
        await asyncio.sleep(BEFORE / 2)
        kill()
        await asyncio.sleep(BEFORE / 2)
        for path, name in (
            ("ownership", "ownership"),
            # The first page is what the tabs begin with.
            *((f"individual-ownership-{name}", name) for name in list(PAGES)[1:]),
            ("status", "status"),
        ):
            # Dask's own pages are light in any browser.
            for theme in ("light",) if path == "status" else ("light", "dark"):
                await browser.theme(theme == "dark")
                await browser.go(f"{base}/{path}")
                await browser.until(f"location.pathname == '/{path}'")
                await browser.until(DRAWN)
                await asyncio.sleep(3)
                await browser.screenshot(folder / f"{name}-{theme}.png")
        for problem in browser.problems:
            print(problem, file=sys.stderr)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    with (
        small_cluster(n_workers=4) as cluster,
        Client(cluster) as client,
    ):
        threads = [
            threading.Thread(target=program, args=(client, stop)),
            threading.Thread(target=stream, args=(client, stop)),
            threading.Thread(target=behind_relays, args=(cluster.scheduler_address, stop)),
        ]
        for thread in threads:
            thread.start()
        base = client.dashboard_link.replace("/status", "")

        def kill() -> None:
            os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)

        try:
            asyncio.run(look(base, folder, kill))
        finally:
            stop.set()
            for thread in threads:
                thread.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images")
