"""Clients and futures as notebooks and terminals show them."""

from __future__ import annotations

import re
import threading
from html.parser import HTMLParser
from typing import Any

import distributed
import pytest
from dask.utils import format_bytes
from distributed import wait
from live import blob, boom, inc, slowinc, total, until

from dask_ownership import Client

EVIL = "<script>alert('1')</script>&"


class Page(HTMLParser):
    """Checks that tags nest; the tags and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.words = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.tags.add(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data + " "

    @property
    def text(self) -> str:
        return " ".join(self.words.split())


def of(client: Client) -> str:
    return Page(client._repr_html_()).text


def test_client_html_has_what_dask_shows_and_live_numbers(client: Client) -> None:
    stock = Page(distributed.Client._repr_html_(client)).text
    assert of(client).startswith(stock)
    part = of(client)[len(stock) :]
    empty = "Owned by this process Pending 0 Running 0 Finished 0 Failed 0 Borrowed 0 Inline 0 B"
    assert part.strip().startswith(empty)
    done = client.map(inc, range(3), pure=False)
    stored = client.submit(blob, 300_000, pure=False)
    failed = client.submit(boom, pure=False)
    wait([*done, stored, failed])
    slow = [client.submit(slowinc, i, delay=0.5, pure=False) for i in range(4)]
    until(lambda: "Running 0" not in of(client))
    text = of(client)
    [pending] = re.findall(r"Pending (\d+)", text)
    [running] = re.findall(r"Running (\d+)", text)
    assert int(pending) + int(running) == 4
    assert "Finished 4 Failed 1" in text
    assert f"Inline {format_bytes(client.owner.core.lifecycle.inline_bytes)}" in text
    assert f"Stored {format_bytes(client.ownership(stored).nbytes)}" in text
    kept = client.owner.core.lineages
    assert (
        f"Lineage {format_bytes(kept.nbytes)} of {format_bytes(kept.limits.lineage_bytes)}" in text
    )
    assert kept.nbytes > 0
    wait(slow)
    assert "Pending 0 Running 0 Finished 8 Failed 1" in of(client)


def test_client_text(client: Client) -> None:
    stock = distributed.Client.__repr__(client)
    assert repr(client) == stock
    futures = client.map(inc, range(3), pure=False)
    wait(futures)
    assert repr(client) == f"{stock[:-1]}, objects=3 running=0>"


def test_client_that_closed(client: Client, cluster: Any) -> None:
    other = Client(cluster, set_as_default=False)
    future = other.submit(inc, 1)
    future.result()
    other.close()
    assert "No scheduler connected" in repr(other)
    assert "Pending 0 Running 0 Finished 0" in of(other)
    assert "cancelled" in Page(future._repr_html_()).text


def test_future_html_says_where_it_is(client: Client, workers: list[str]) -> None:
    small = client.submit(inc, 1, key="small-1")
    large = client.submit(blob, 300_000, key="large-1", workers=workers[0])
    failed = client.submit(boom, key="failed-1")
    wait([small, large, failed])
    text = Page(small._repr_html_()).text
    assert re.fullmatch(
        r"Future: small status: finished , type: int , key: small-1 , "
        r"where: owned here, \d+ B inline",
        text,
    )
    assert re.search(rf"owned here, 29\d\.\d+ kiB at {workers[0]}$", Page(large._repr_html_()).text)
    assert "status: error" in Page(failed._repr_html_()).text
    slow = client.submit(slowinc, 1, delay=1.0, key="slow-1", workers=workers[1])
    beside = client.submit(slowinc, 2, delay=1.0, key="slow-2", workers=workers[0])
    after = client.submit(total, slow, beside, key="after-1")
    until(lambda: "here, handed to" in slow._repr_html_())
    assert f"status: pending , key: slow-1 , where: owned here, handed to {workers[1]}" in (
        Page(slow._repr_html_()).text
    )
    until(lambda: "owned here, waits for 2 of its inputs" in Page(after._repr_html_()).text)
    assert after.result() == 5
    nowhere = client.submit(inc, 1, key="nowhere-1", workers=["10.0.0.9:1"])
    until(
        lambda: "because: workers=[10.0.0.9:1] names no worker" in Page(nowhere._repr_html_()).text
    )
    borrowed = client.submit(submits, pure=False).result()
    assert "borrowed from tcp://" in Page(borrowed._repr_html_()).text


def submits() -> Any:
    return distributed.get_client().submit(blob, 300_000, pure=False)


@pytest.mark.parametrize("function", [inc, boom])
def test_keys_and_types_are_escaped(client: Client, function: Any) -> None:
    future = client.submit(function, 1, key=f"{EVIL}-1")
    wait(future)
    page = Page(future._repr_html_())
    assert page.tags == {"div", "strong", "span"}
    assert f"key: {EVIL}-1" in page.text
    odd = client.submit(strange, pure=False)
    wait(odd)
    page = Page(odd._repr_html_())
    assert page.tags == {"div", "strong", "span"}


def strange() -> Any:
    return type("<script>", (int,), {"__module__": "nowhere"})(1)


def test_looking_from_another_thread_while_tasks_run(client: Client) -> None:
    texts: list[str] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            texts.append(client._repr_html_())
            texts.append(repr(client))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(5):
            client.gather(client.map(inc, range(200), pure=False))
    finally:
        stop.set()
        thread.join()
    assert len(texts) > 2
