"""The section ``ownership`` of Dask's configuration: what is wrong in it is said by its name."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
import yaml

import dask_ownership
from dask_ownership import Client, config


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("ownership.silence", "5 bananas", "a time, such as '5s'"),
        ("ownership.grace", -1, "a time"),
        ("ownership.inline.limit", "much", "a number of bytes, such as '64KiB'"),
        ("ownership.lineage.max-bytes", [], "a number of bytes, such as '64KiB', or null"),
        ("ownership.lineage.inline", "perhaps", "true or false"),
        ("ownership.reach", "fast", "one of auto, direct, relay"),
        ("distributed.scheduler.allowed-failures", "three", "a number"),
    ],
)
def test_a_wrong_value_names_its_option(name: str, value: Any, kind: str) -> None:
    with dask.config.set({name: value}), pytest.raises(ValueError) as told:
        Client("tcp://127.0.0.1:1", set_as_default=False)
    assert str(told.value).startswith(f"{name} in Dask's configuration is {kind}")
    assert str(told.value).endswith(f"not {value!r}")


def test_a_value_in_place_of_the_section() -> None:
    with dask.config.set({"ownership": "yes"}), pytest.raises(ValueError, match="is a section"):
        config.check()


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("ownership.silense", "ownership.silence"),
        ("ownership.max-bytes", None),
        ("ownership.lineage.max_byte", "ownership.lineage.max-bytes"),
        ("ownership.limit", "ownership.inline.limit"),
        ("ownership.quite.different", None),
    ],
)
def test_an_unknown_option_is_warned_of_with_the_nearest_name(name: str, near: str | None) -> None:
    full = name.replace("_", "-")
    with dask.config.set({name: 1}), pytest.warns(UserWarning, match=f"^{full} in ") as told:
        config.check()
    text = str(told[0].message)
    if near is not None:
        assert text.endswith(f": is {near} meant?")


def test_defaults_and_other_spellings_are_well() -> None:
    with warnings.catch_warnings(), dask.config.set({"ownership.inline.max_bytes": "1MB"}):
        warnings.simplefilter("error")
        config.check()
    with dask.config.set({"ownership.relay.enabled": "false"}):
        assert config.value_of("ownership.relay.enabled") is False
    with dask.config.set({"ownership": {}}):
        assert config.value_of("ownership.silence") == 5.0


def test_every_default_has_a_kind() -> None:
    with config._DEFAULTS.open() as file:
        section = yaml.safe_load(file)["ownership"]
    names = {name for name, _ in config._options_in(section, "ownership")}
    assert names == {name for name in config.OPTIONS if name.startswith("ownership.")}


def test_all_errors_that_users_meet_are_exported() -> None:
    assert issubclass(dask_ownership.NotUnpickled, dask_ownership.NotSerializable)
    assert issubclass(dask_ownership.NoWorkerInTime, TimeoutError)
    assert {"NotUnpickled", "NoWorkerInTime"} <= set(dask_ownership.__all__)


def test_the_address_of_a_dashboard(cluster: distributed.LocalCluster) -> None:
    link = cluster.dashboard_link
    with pytest.raises(ValueError, match="is the address of a web page"):
        Client(link)
    with pytest.raises(OSError, match="a web server answers there, such as a dashboard"):
        Client(link.split("/")[2], timeout=1, set_as_default=False)


def test_a_snapshot_of_an_asynchronous_client_is_there_at_once(
    cluster: distributed.LocalCluster,
) -> None:
    async def main() -> None:
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            future = client.submit(sum, [1, 2])
            assert await future == 3
            assert client.ownership().objects["inline"] == 1
            assert client.ownership(future).state == "inline"
            assert (await client.ownership()).name == client.id
            assert (await client.ownership(future, asynchronous=True)).key == future.key
            with pytest.raises(KeyError):
                client.ownership("nothing-like-it")

    asyncio.run(main())


def test_a_snapshot_shows_no_zeros_and_no_label_twice(client: Client) -> None:
    future = client.submit(sum, [1, 2])
    future.result()
    text = repr(client.ownership())
    assert not re.search(r" 0( B)?(,|$)", text)
    labels = [line[2:].split("  ")[0].strip() for line in text.splitlines()[1:]]
    labels = [label for label in labels if label]
    assert len(labels) == len(set(labels))


def test_a_worker_logs_an_unknown_option(tmp_path: Path) -> None:
    """The client does not see the configuration of a worker, and cannot warn of it."""
    program = tmp_path / "program.py"
    program.write_text(
        "import dask\n"
        "from dask_ownership import Client, LocalCluster\n"
        "if __name__ == '__main__':\n"
        "    with dask.config.set({'ownership.silense': '9s'}):\n"
        "        cluster = LocalCluster(n_workers=1, dashboard_address=':0')\n"
        "    with cluster, Client(cluster) as client:\n"
        "        print(client.submit(abs, -1).result())\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1\n"
    assert done.stderr.count("ownership.silense") == 1
    assert "changes nothing: is ownership.silence meant?" in done.stderr
