"""Pages about ownership in Dask's dashboard."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from importlib.util import find_spec
from typing import Any
from urllib.request import urlopen

import distributed
import pytest
from browser import Browser, chromium
from live import blob, boom, inc, slowinc, until
from test_activity import activity, mine, settled

from dask_ownership import Client, wait

pytestmark = pytest.mark.alone  # it says how long things may take

NAMES = ("owners", "tasks", "objects", "flow", "failures", "latency")

bokeh = pytest.mark.skipif(find_spec("bokeh") is None, reason="bokeh is not installed")


def page(name: str, dask_scheduler: Any = None) -> dict[str, Any]:
    """What all sources of one page have, when it is opened now."""
    from bokeh.models import ColumnDataSource

    from dask_ownership.monitoring.pages.server import PAGES

    shown = PAGES[name](dask_scheduler)
    shown.update()
    return {
        attribute: {column: list(values) for column, values in source.data.items()}
        for attribute, source in {**vars(shown), **parts(shown)}.items()
        if isinstance(source, ColumnDataSource)
    }


def parts(shown: Any) -> dict[str, Any]:
    return {
        name: part.source for name, part in vars(shown).items() if type(part).__name__ == "Matrix"
    }


def read(client: Any, path: str) -> str:
    with urlopen(client.dashboard_link.replace("/status", path)) as answer:
        assert answer.status == 200
        return str(answer.read().decode())


@bokeh
def test_pages_are_served_and_named(client: Client) -> None:
    assert 'href="ownership"' in read(client, "/status")
    assert "bk-root" in (text := read(client, "/ownership")) or "Bokeh" in text
    plots = json.loads(read(client, "/individual-plots.json"))
    assert "Individual Task Stream" in plots
    for name in NAMES:
        path = f"/individual-ownership-{name}"
        assert path in plots.values()
        assert f'href="{path[1:]}"' in read(client, "/status")
        assert "Bokeh" in read(client, path)


@bokeh
def test_pages_show_what_owners_say(client: Client, workers: Any) -> None:
    from dask_ownership.monitoring.pages.page import short

    activity(client)
    small = client.map(slowinc, range(40), delay=0.01)
    large = [client.submit(blob, key=f"blob-{n}", seed=n, workers=workers[0]) for n in range(2)]
    moved = client.submit(len, large[0], workers=workers[1], pure=False)
    bad = client.submit(boom, retries=1)
    wait([*small, *large, moved, bad])
    assert client.gather(large) == [blob(seed=n) for n in range(2)]
    owner = mine(client, settled(client))
    traffic = client.owner.core.placement.workers[workers[0]].byte_counter
    until(lambda: mine(client, activity(client))["traffic"][workers[0]][1] == traffic.received)

    owners = client.run_on_scheduler(page, "owners")
    at = owners["source"]["id"].index(client.owner.incarnation)
    for column in ("name", "done", "failed", "objects", "inline_nbytes", "lineage_nbytes"):
        assert str(owners["source"][column][at]).strip() == str(owner[column])
    groups = dict(
        zip(owners["groups_source"]["group"], owners["groups_source"]["inline"], strict=True)
    )
    assert groups["slowinc"] == 40
    assert len(owners["history_source"]["time"]) >= 1
    links = owners["links_source"]
    ours = [n for n, name in enumerate(links["owner"]) if name == client.id]
    assert {links["worker"][n] for n in ours} == set(workers)
    assert sum(links["given"][n] for n in ours) == owner["attempts"]
    (to_first,) = [n for n in ours if links["worker"][n] == workers[0]]
    assert links["received"][to_first] == traffic.received > 400_000
    assert 0 < links["sent"][to_first] < 100_000

    objects = client.run_on_scheduler(page, "objects")
    assert 41 in objects["source"]["inline"]
    largest = objects["largest_source"]
    at = largest["key"].index("blob-0")
    assert {"blob-0", "blob-1"} <= set(largest["key"])
    assert largest["nbytes"][at] >= 200_000 and largest["state"][at] == "stored"
    assert [largest[why][at] for why in ("local_refs", "task_refs", "borrowers")] == [1, 0, 0]
    assert objects["oldest_source"]["key"] and set(objects["oldest_source"]["age"]) <= {
        f"0:00:{seconds:02d}" for seconds in range(10)
    }
    assert sum(objects["bytes_source"]["owned"]) >= 400_000

    latency = client.run_on_scheduler(page, "latency")
    ran = [seconds for seconds in latency["source"]["ran_p50"] if seconds == seconds]
    assert ran and 0 < ran[-1] < 1
    last = {name: values[-1] for name, values in latency["source"].items()}
    assert (last["pending"], last["queued"], last["running"]) == (0, 0, 0)
    assert last["threads"] == 2
    assert max(latency["source"]["running"]) <= 2

    failures = client.run_on_scheduler(page, "failures")
    times = dict(zip(failures["source"]["reason"], failures["source"]["times"], strict=True))
    assert times["it failed before"] >= 1
    assert "retried" in failures["events_source"]["event"]

    flow = client.run_on_scheduler(page, "flow")
    assert set(flow["tasks"]["to"]) == {address.partition("://")[2] for address in workers}
    assert len(flow["bytes"]["from"]) >= 1
    shown = zip(*(flow["received"][column] for column in ("to", "from", "many")), strict=True)
    rates = {source: many for target, source, many in shown if target == short(client.id)}
    # The two values were read from the first worker.
    assert rates[short(workers[0])] > max(50_000, 5 * rates[short(workers[1])])
    assert set(flow["sent"]["to"]) == set(flow["tasks"]["to"])


@bokeh
def test_one_owner_when_it_is_clicked_on(client: Client) -> None:
    future = client.submit(inc, 1)
    wait(future)
    until(lambda: mine(client, activity(client))["done"])

    def click(incarnation: str, dask_scheduler: Any = None) -> tuple[str, list[str], set[str]]:
        from dask_ownership.monitoring.pages.owners import Owners

        shown = Owners(dask_scheduler)
        shown.update()
        shown.source.selected.indices = [shown.source.data["id"].index(incarnation)]
        linked = set(shown.links_source.data["owner"])
        return shown.title.text, list(shown.groups_source.data["group"]), linked

    assert client.run_on_scheduler(click, client.owner.incarnation) == (
        f"Objects, links and streams of {client.id}",
        ["inc"],
        {client.id},
    )


def test_a_scheduler_without_a_dashboard() -> None:
    with (
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            dashboard_address=":0",
            scheduler_kwargs={"dashboard": False},
        ) as cluster,
        Client(cluster) as client,
    ):
        assert client.submit(inc, 1).result() == 2
        assert len(activity(client)["workers"]) == 1


WITHOUT_BOKEH = """
import sys
sys.modules["bokeh"] = None
sys.modules["prometheus_client"] = None
from distributed import LocalCluster
from dask_ownership import Client
if __name__ == "__main__":
    with LocalCluster(1, processes=False, threads_per_worker=1, dashboard_address=":0") as cluster:
        with Client(cluster) as client:
            assert client.submit(sum, [1, 2]).result() == 3
            async def ask():
                return await client.scheduler.ownership_activity()
            told = client.sync(ask)
            assert len(told["workers"]) == 1, told
            print("fine")
"""


def test_without_bokeh() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_BOKEH], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "fine", done.stderr
    assert "Traceback" not in done.stderr


# ---- in a browser ----

DRAWN = """
window.Bokeh != null && Bokeh.documents.length > 0 && Bokeh.documents[0].roots().length > 0 &&
Object.keys(Bokeh.index).length > 0
"""
"""The page is there, with something that draws it."""

ROWS = """
Math.max(0, ...[...Bokeh.documents[0]._all_models.values()]
  .filter(model => model.type == "ColumnDataSource")
  .map(model => Math.max(0, ...[...Object.values(
    model.data instanceof Map ? Object.fromEntries(model.data) : model.data)]
    .map(column => column.length))))
"""
"""How many lines the longest source of the page has."""


def load(client: Client, workers: list[str], stop: threading.Event) -> None:
    """A program that does a bit of everything until it is told to stop."""
    kept: list[Any] = []
    turn = 0
    while not stop.is_set():
        turn += 1
        large = [
            client.submit(blob, 100_000, turn + n, workers=workers[n % 2], key=f"blob-{turn}-{n}")
            for n in range(4)
        ]
        sizes = [
            client.submit(len, one, workers=workers[(n + 1) % 2]) for n, one in enumerate(large)
        ]
        small = client.map(slowinc, range(turn * 100, turn * 100 + 20), delay=0.005)
        kept = [*kept, *large][-8:]
        wait([*sizes, *small, client.submit(boom, f"turn {turn}", retries=1)])


WRITTEN = """
(function look(root) {
  return [...root.querySelectorAll("*")].map(one =>
    (one.shadowRoot ? look(one.shadowRoot) : "") +
    (one.classList.contains("slick-row") ? one.textContent + ";" : "")).join("");
})(document)
"""
"""What is written in tables."""

SHOWN = """
[...Bokeh.documents[0]._all_models.values()].filter(model => model.type == "Div")
  .map(model => model.text).join(" ")
"""
"""The texts above tables."""


LINKS = """
(function look(root) {
  return [...root.querySelectorAll("*")].flatMap(one =>
    [...(one.shadowRoot ? look(one.shadowRoot) : []),
     ...(one.tagName == "A" && one.href.includes("/logs/") ? [one.href] : [])]);
})(document)
"""
"""Where the links to logs in tables lead."""


def text_at(url: str) -> str:
    with urlopen(url) as answer:
        return str(answer.read().decode())


BACKGROUND = "getComputedStyle(document.documentElement).backgroundColor"


@bokeh
@pytest.mark.skipif(chromium() is None, reason="no chromium is installed")
def test_in_a_browser_each_page_shows_a_running_program(client: Client, workers: Any) -> None:
    stop = threading.Event()
    running = threading.Thread(target=load, args=(client, workers, stop))
    running.start()
    base = client.dashboard_link.replace("/status", "")

    async def look() -> None:
        async with Browser() as browser:
            await browser.go(f"{base}/status")
            await browser.until("document.querySelector('a[href=ownership]') != null")
            await browser.js("document.querySelector('a[href=ownership]').click()")
            await browser.until("location.pathname.endsWith('/ownership')")
            await browser.until(DRAWN)
            await browser.until(f"({SHOWN}).includes('streams of all owners')")
            await browser.until(f"({WRITTEN}).includes('{client.id}')")
            before = json.dumps(await browser.js(WRITTEN))
            await browser.until(f"({WRITTEN}) != {before}")
            await browser.click(client.id)
            await browser.until(f"({SHOWN}).includes('streams of {client.id}')")
            # A worker in a table leads to its logs.
            await browser.click("Links")
            link = await browser.until(f"({LINKS})[0]")
            assert link.startswith(f"{base}/info/logs/tcp%3A%2F%2F")
            assert "Logs" in await asyncio.to_thread(text_at, link)
            # Only the tab that is to be seen is kept up to date.
            await browser.click("Latency")
            rows = await browser.js(ROWS)
            await browser.until(f"{ROWS} > {rows} + 1")
            for name in ("", *NAMES):
                path = f"individual-ownership-{name}" if name else "ownership"
                await browser.go(f"{base}/{path}")
                await browser.until(f"location.pathname == '/{path}'")
                await browser.until(DRAWN)
                await browser.until(f"{ROWS} > 0")
                for dark, background in (False, "255, 255, 255"), (True, "27, 27, 27"):
                    await browser.theme(dark)
                    await browser.until(f"{BACKGROUND} == 'rgb({background})'")
            assert browser.problems == []
            # It goes on: what is shown later is not what was shown before.
            rows = await browser.js(ROWS)
            await browser.until(f"{ROWS} > {rows}")

    try:
        asyncio.run(look())
    finally:
        stop.set()
        running.join()
