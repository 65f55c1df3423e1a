"""What the pages about ownership show of what happened."""

from __future__ import annotations

import json
from colorsys import rgb_to_hsv
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import pairwise
from math import isnan
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import dask
import distributed
import pytest
from live import blob, boom, inc, slowinc, until, until_there
from programs import wait_for_file
from test_activity import activity, mine

from dask_ownership import Client, wait

pytestmark = pytest.mark.skipif(find_spec("bokeh") is None, reason="bokeh is not installed")


def opened(client: Client, name: str, look: Any) -> Any:
    """What ``look`` returns of one page that is opened now, in the scheduler's process."""

    def open_page(dask_scheduler: Any) -> Any:
        from dask_ownership.monitoring.pages.server import PAGES

        page = PAGES[name](dask_scheduler)
        page.update()
        return look(page)

    return client.run_on_scheduler(open_page)


def legend(fig: Any) -> dict[str, str]:
    """The color of each name in the legend of a figure."""
    return {
        item.label.value: getattr(glyph, "fill_color", None) or glyph.line_color
        for item in fig.legend[0].items
        for glyph in (item.renderers[0].glyph,)
    }


def test_a_color_means_the_same_on_all_pages(client: Client) -> None:
    from dask_ownership.monitoring.pages import look

    objects = opened(client, "objects", lambda page: legend(page.states))
    assert objects["error"] == look.ERROR
    assert [state for state, color in objects.items() if color == look.ERROR] == ["error"]
    where = opened(client, "latency", lambda page: legend(page.where))
    assert where["with owners"] == objects["waiting"]
    assert where["queued at workers"] == objects["ready"]
    assert where["running"] == objects["handed out"]
    stored = opened(client, "objects", lambda page: legend(page.bytes))
    assert stored["of one owner"] == objects["stored"]
    costs = opened(client, "failures", lambda page: dict(page.losses_source.data))
    shown = dict(zip(costs["kind"], costs["color"], strict=True))
    # Red are only errors: a worker that died may have cost nothing.
    assert shown["tasks: KilledWorker"] == shown["values lost"] == look.ERROR
    assert shown["losses of workers"] == shown["owners gone"] == look.AGAIN


def lines(source: Any) -> list[dict[str, Any]]:
    """The lines of a table."""
    names = list(source.data)
    return [dict(zip(names, line, strict=True)) for line in zip(*source.data.values(), strict=True)]


def parse(row: str) -> float:
    return float(row)


def test_failures_say_what_was_raised_and_where(client: Client) -> None:
    activity(client)
    bad = [client.submit(parse, "12,5", key=f"parse-{n}", retries=n) for n in range(2)]
    bad.append(client.submit(boom, "text"))
    wait(bad)

    def failures(text: str = "") -> Any:
        def look(page: Any) -> Any:
            page.filter.value_input = text
            return {
                "groups": lines(page.groups_source),
                "errors": lines(page.errors_source),
                "events": lines(page.events_source),
                "bars": dict(zip(*page.source.data.values(), strict=True)),
                "summary": page.summary.text,
            }

        activity(client)
        return opened(client, "failures", look)

    def told() -> Any:
        shown = failures("parse")
        # Workers tell the errors, and the owner the events: both are there in the end.
        times = [one["times"] for one in shown["groups"]]
        return times == [3] and len(shown["events"]) >= 3 and shown

    shown = until(told)
    (group,) = shown["groups"]
    assert (group["name"], group["exception"]) == ("parse", "ValueError")
    assert group["message"] == "could not convert string to float: '12,5'"
    assert group["where"] == f"test_pages.py, line {parse.__code__.co_firstlineno + 1}, in parse"
    assert group["owner"] == client.id and group["worker"].startswith("tcp://")
    assert {one["key"] for one in shown["errors"]} == {"parse-0", "parse-1"}
    ended = [one for one in shown["events"] if one["event"] in ("error", "retried")]
    assert len(ended) == 3
    assert all("ValueError: could not convert string" in one["detail"] for one in ended)
    # The filter takes words of any column.
    both = failures(f"boom zerodivision {client.id}")
    assert [one["exception"] for one in both["groups"]] == ["ZeroDivisionError"]
    assert not failures("no such word")["errors"]


def test_recalls_are_no_failures(client: Client) -> None:
    core = client.owner.core
    core.history.again["recalled"] += 7
    core.history.events.append(("moved", "recalled", "from a, for a worker with nothing to do", 1))
    assert activity(client)["owners"]
    core.history.events.append(("moved", "recalled", "from b, for a worker with nothing to do", 2))
    core.history.again["recalled"] += 1
    until(lambda: mine(client, activity(client))["again"]["recalled"] >= 8)

    def look(page: Any) -> Any:
        return page.summary.text, [*page.source.data["reason"]], [*page.events_source.data["event"]]

    summary, reasons, events = opened(client, "failures", look)
    moved = summary.partition("which is no failure: ")[2].rstrip(".")
    assert int(moved.replace(",", "")) >= 8
    assert "recalled" not in events and not [one for one in reasons if "idle" in one]


def test_a_flow_has_one_hue_numbers_and_a_zero_state() -> None:
    from dask_ownership.monitoring.pages import look
    from dask_ownership.monitoring.pages.flow import Matrix, nbytes_per_second

    matrix = Matrix("Values", "to", "from", "bytes per second", nbytes_per_second)
    matrix.show([])
    assert matrix.fig.title.text == "Values, bytes per second: none in the last seconds"
    matrix.show([["a", "b", 2 << 20], ["b", "a", 1024], ["b", "c", 0]])
    assert matrix.fig.title.text == "Values, bytes per second"
    most, little, nothing = lines(matrix.source)
    assert [one["number"] for one in (most, little, nothing)] == ["2.00 MiB", "1.00 kiB", "0"]
    # One hue from little to much; a field with nothing has no color.
    assert (most["fill"], little["fill"]) == (look.amount(1), look.amount(0.0005))
    assert nothing["fill"] == "transparent" and nothing["color"] == look.TEXT
    hues = [rgb_to_hsv(*bytes.fromhex(look.amount(part)[1:]))[0] for part in (0, 0.3, 1)]
    assert max(hues) - min(hues) < 0.01
    many = [[str(n), str(m), 1] for n in range(20) for m in range(20)]
    matrix.show(many)
    # No room for numbers: they are under the pointer.
    assert {(one["number"], one["text"]) for one in lines(matrix.source)} == {("", "1 B")}


def test_one_range_of_times_and_no_line_over_a_gap(client: Client) -> None:
    def pause(dask_scheduler: Any) -> None:
        feed = dask_scheduler.extensions["dask-ownership"].feed
        feed.watchers.until = 0.0
        feed._watch()

    activity(client)
    client.run_on_scheduler(pause)
    activity(client)

    def look(page: Any) -> Any:
        figs = [page.where, page.depth, *page.figures.values()]
        source = page.source.data
        points = list(zip(source["time"], source["running"], source["ran_p50"], strict=True))
        return len({fig.x_range.id for fig in figs}), points

    ranges, points = opened(client, "latency", look)
    assert ranges == 1
    times = [when for when, *_ in points]
    assert times == sorted(times)
    # Between the rounds before and after, there is a point without a number.
    (*_, gap) = [n for n, (_, running, _) in enumerate(points) if isnan(running)]
    assert 0 < gap < len(points) - 1
    assert not isnan(points[gap - 1][1]) and not isnan(points[gap + 1][1])
    owners = opened(client, "owners", lambda page: [*page.history_source.data["rate"]])
    assert any(map(isnan, owners))


def test_streams_of_an_owner(client: Client) -> None:
    stream = client.map(inc, iter(range(10)), buffer_size=3, pure=False)

    def told() -> Any:
        activity(client)
        rows = opened(client, "owners", lambda page: lines(page.streams_source))
        return [
            (r["name"], r["submitted"], r["waiting"], r["buffer_size"], r["state"]) for r in rows
        ]

    until(lambda: told() == [("inc", 0, 0, 3, "open")])
    assert next(stream).result() == 1
    taken = next(stream)
    wait([taken])
    until(lambda: told()[0][1] > 2)
    assert [future.result() for future in stream][-1] == 10
    until(lambda: told() == [("inc", 10, 0, 3, "at its end")])
    del stream
    until(lambda: told() == [])


def test_tasks_say_why_they_wait(client: Client, workers: Any) -> None:
    gate = "open-tasks-page"
    held = client.map(wait_for_event, [gate] * 2, key=["held-0", "held-1"], pure=False)
    nowhere = client.submit(inc, 1, resources={"GPU": 1}, key="needs-gpu")
    pinned = client.submit(inc, 1, workers=["10.0.0.9:1"], key="pinned")
    behind = client.submit(inc, nowhere, key="behind")

    def look(page: Any) -> Any:
        return lines(page.source), lines(page.groups_source)

    def told() -> Any:
        activity(client)
        single, groups = opened(client, "tasks", look)
        mine = {one["key"]: one for one in single if one["owner"] == client.id}
        return len(mine) == 5 and (mine, groups)

    single, groups = until(told)
    assert single["needs-gpu"]["state"] == "ready"
    assert "no worker has resources={'GPU': 1" in single["needs-gpu"]["why"]
    assert "workers=[10.0.0.9:1] names no worker" in single["pinned"]["why"]
    assert single["behind"]["state"] == "waiting"
    assert single["behind"]["why"].startswith("it waits for its input 'needs-gpu': no worker has")
    assert {single[one.key]["worker"] for one in held} == set(workers)
    assert single["held-0"]["state"] == "handed out" and single["held-0"]["age"]
    (by_name,) = [one for one in groups if one["name"] == "held" and one["owner"] == client.id]
    # What no worker may run comes first.
    assert {one["name"] for one in groups[:2]} == {"needs-gpu", "pinned"}
    assert by_name["pushed"] == 2 and by_name["why"].startswith("it was handed to tcp://")

    def only(page: Any) -> Any:
        page.filter.value_input = "gpu no worker"
        return [*page.source.data["key"]]

    assert sorted(opened(client, "tasks", only)) == ["behind", "needs-gpu"]
    distributed.Event(gate).set()
    client.cancel([nowhere, pinned, behind])
    wait(held)


def wait_for_event(name: str) -> None:
    distributed.Event(name).wait(20)


def test_cancelled_functions_that_go_on_are_told(client: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    held = client.submit(wait_for_file, str(gate), pure=False)
    until_there(client, "running", held)
    where = client.ownership(held).worker
    held.cancel()
    told = f"1 cancelled function goes on and keeps its slot, at {where}."
    until(lambda: activity(client) and opened(client, "tasks", lambda p: p.lingering.text) == told)
    gate.touch()
    until(lambda: activity(client) and not opened(client, "tasks", lambda p: p.lingering.text))


def test_memory_by_name_and_what_is_kept_for_the_cluster(client: Client, workers: Any) -> None:
    large = [client.submit(blob, 300_000, n, key=f"memory-{n}", pure=False) for n in range(2)]
    small = client.submit(inc, 1, key="little")
    wait([*large, small])
    client.publish_dataset(large[0], name="prices")
    distributed.Variable("latest").set(large[1])

    def look(page: Any) -> Any:
        return lines(page.memory_source), lines(page.detached_source)

    def told() -> Any:
        activity(client)
        memory, detached = opened(client, "objects", look)
        names = {one["who"]: one for one in memory}
        kept = {one["name"]: one for one in detached}
        done = names.get("memory", {}).get("stored", 0) >= 4 * 300_000
        return done and len(kept) == 2 and (names, kept)

    # Each of the two values counts for the client and for the scheduler, which keeps it.
    names, kept = until(told)
    assert names["memory"]["inline"] == 0 and "adopted" not in names
    assert names["little"]["stored"] == 0 < names["little"]["inline"] < 100
    assert kept["prices"]["kind"] == "dataset" and kept["latest"]["kind"] == "variable"
    for one in kept.values():
        assert one["objects"] == 1 and one["nbytes"] >= 300_000 and one["states"] == "stored"
        assert one["at"] in workers
    client.unpublish_dataset("prices")
    distributed.Variable("latest").delete()

    def nothing() -> Any:
        activity(client)
        return opened(client, "objects", look)[1] == []

    until(nothing)


def test_relays_are_told_with_their_ends(client: Client, cluster: Any, workers: Any) -> None:
    with (
        dask.config.set({"ownership.reach": "relay"}),
        Client(cluster, set_as_default=False) as far,
    ):
        assert len(far.submit(bytes, 100_000, workers=workers[0]).result()) == 100_000

        def look(page: Any) -> Any:
            return lines(page.connections_source), page.connections.visible, page.relays.text

        activity(client)
        shown, visible, text = opened(client, "flow", look)
        mine = {one["worker"]: one["nbytes"] for one in shown if one["owner"] == far.id}
        assert mine[workers[0]] > 100_000
        count = sum(one["connections"] for one in shown)
        assert visible and text.startswith(f"The scheduler relays over {count} connections")


def test_the_timeline_is_a_chrome_trace(client: Client, workers: Any) -> None:
    link = client.dashboard_link.replace("/status", "/ownership-timeline.json?seconds=0.5")
    with ThreadPoolExecutor(1) as pool, urlopen(link.replace("0.5", "0")):
        reading = pool.submit(lambda: urlopen(link))
        futures = client.map(slowinc, range(20), delay=0.02, key="on-the-timeline")
        bad = client.submit(boom, key="boom-on-the-timeline")
        wait([*futures, bad])
        with reading.result(20) as answer:
            assert "attachment" in answer.headers["Content-Disposition"]
            trace = json.load(answer)
    events = trace["traceEvents"]
    named = {one["pid"]: one["args"]["name"] for one in events if one["name"] == "process_name"}
    assert set(workers) <= set(named.values())
    ran = [one for one in events if one["ph"] == "X" and one["name"] == "on-the-timeline"]
    assert len(ran) == 20 and {one["cat"] for one in ran} == {"compute"}
    assert all(15_000 < one["dur"] < 2_000_000 for one in ran)
    # Two tasks in one thread do not overlap.
    spans: dict[Any, list[tuple[int, int]]] = {}
    for one in sorted(ran, key=lambda one: one["ts"]):
        spans.setdefault((one["pid"], one["tid"]), []).append((one["ts"], one["ts"] + one["dur"]))
    for of_thread in spans.values():
        assert all(end <= start for (_, end), (start, _) in pairwise(of_thread))
    (failed,) = [one for one in events if one.get("args", {}).get("key") == "boom-on-the-timeline"]
    assert failed["cname"] == "terrible"  # red
    assert "ownership-timeline.json" in opened(client, "tasks", lambda page: page.timeline.text)
