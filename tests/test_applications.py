"""The applications in ``examples/``, small: what they say of their own results."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_example(*command: str) -> str:
    """What a program of the examples prints. It ends well, so its own checks are fulfilled."""
    program = [sys.executable, "-W", "error", str(EXAMPLES / command[0]), *command[1:]]
    done = subprocess.run(program, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_video_is_steadier_and_whole_after_its_owner_died(tmp_path: Path) -> None:
    printed = run_example(
        "video_stabilization.py", "--input", "rendered", "--seconds", "3", "--workers", "1",
        "--owners", "1", "--fail", "owner", "--at", "1.8", "--checkpoint", "5",
        "--output", str(tmp_path),
    )  # fmt: skip
    assert "kill -9 of the owner of video 0" in printed
    assert "75 frames: none is lost, doubled or out of order." in printed
    before, after = re.search(r"was meant: ([\d.]+) pixels, then ([\d.]+)", printed).groups()
    assert float(after) < float(before) / 2
    header, frame, rest = (tmp_path / "video-0.y4m").read_bytes().split(b"\n", 2)
    assert header == b"YUV4MPEG2 W320 H240 F25000:1000 Ip A1:1 Cmono" and frame == b"FRAME"
    assert rest.count(b"FRAME\n") >= 74


def test_requests_are_answered_without_the_router_having_a_photo() -> None:
    printed = run_example(
        "model_serving.py", "--seconds", "2", "--rate", "80", "--batch", "8", "--fail", "model",
        "--at", "1",
    )  # fmt: skip
    assert "kill -9 of a model" in printed
    assert "all 160 requests were answered, also those of the model that was killed." in printed
    assert "photos: 41.9 MB; through the router: 0.0 MB" in printed
    assert float(re.search(r"right answers: ([\d.]+)%", printed).group(1)) > 90


def test_rows_are_sorted_as_by_stock_dask() -> None:
    printed = run_example("shuffle.py", "--size", "40MB", "--parts", "6", "--compare")
    assert printed.count("All rows are there, and in order.") == 2


def test_a_search_cancels_what_loses_however_deep() -> None:
    printed = run_example("search.py", "--depth", "3")
    assert float(re.search(r"best: ([\d.]+)% of the digits", printed).group(1)) > 90
    trained, whole = re.search(r"(\d+) models trained, of (\d+) in the", printed).groups()
    assert int(trained) < int(whole) == 84
    assert "0 more were trained in the second after the end." in printed
