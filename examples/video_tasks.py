"""The tasks of ``video_stabilization.py``: what runs on the workers.

They live in a module of their own, so that workers import them: functions of a script that runs as
``__main__`` are pickled whole with every task, and have no state that stays in the worker process.

``stabilize`` is the task that owns a video. It submits five small tasks for each frame, whose
values are the inputs of later ones; it never fetches a picture itself.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from distributed import Future, worker_client

from dask_ownership import checkpoint, restore

try:
    import cv2
except ImportError:  # numpy finds shifts as well, but no turns
    cv2 = None
try:
    import av
except ImportError:
    av = None

HEIGHT, WIDTH = 240, 320  # of a rendered clip
PAN = 40  # how far the rendered camera moves on purpose, in pixels
SHAKE = 3.0  # standard deviation of how far it shakes, in pixels
PATCH = 128  # side of the square in the middle whose shift numpy finds
LATE = 0.2  # seconds; what is later than this is caught up on, after the frames that come in
STILL = np.zeros(3)  # no movement: to the right, down, and turned


class Video(NamedTuple):
    """One clip: the file at ``path``, or without one a rendered clip with a known camera path."""

    number: int
    frames: int
    fps: float
    path: str | None = None

    @property
    def radius(self) -> int:
        """Frames on each side over which the camera path is smoothed: one second."""
        return round(self.fps)


class Plan(NamedTuple):
    """What all owners of videos are told. Workers are given by names or addresses."""

    start: float  # when frame 0 is there, in seconds since 1970
    compute: list[int | str]
    sink: int | str
    checkpoint: int  # frames between checkpoints; 0 for none
    output: str | None  # the folder for stabilised videos


# ---- where frames come from ----


@lru_cache(maxsize=100)
def scene(number: int) -> np.ndarray:
    """A picture without repetition, like clouds: the smaller a detail, the fainter."""
    rows, columns = HEIGHT + 2 * PAN + 48, WIDTH + 2 * PAN + 48
    noise = np.fft.rfft2(np.random.default_rng(number).standard_normal((rows, columns)))
    noise /= 0.01 + np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns))
    picture = np.fft.irfft2(noise, s=(rows, columns))
    return np.uint8(np.clip(128 + 50 * picture / picture.std(), 0, 255))


@lru_cache(maxsize=100)
def camera(video: Video) -> tuple[np.ndarray, np.ndarray]:
    """Where the rendered camera is meant to be at each frame, and where it is."""
    rng = np.random.default_rng(1000 + video.number)
    angle = np.arange(video.frames) / video.fps * (2 * np.pi / 60) + 6 * rng.random()
    meant = PAN * np.stack([np.cos(angle), np.sin(1.3 * angle)], axis=1)
    shaken = meant + np.clip(rng.normal(0, SHAKE, meant.shape), -20, 20)
    return meant, np.rint(shaken).astype(int)


class Reader:
    """Reads the frames of a file in their order; to go far back means to begin again."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.next = 0
        self.last: dict[int, np.ndarray] = {}  # the frames that were read last, by number
        self.frames = self._frames()

    def _frames(self) -> Any:
        if av is not None:
            with av.open(self.path) as container:
                for frame in container.decode(video=0):
                    yield frame.to_ndarray(format="gray")
            return
        capture = cv2.VideoCapture(self.path)
        while (read := capture.read())[0]:
            yield cv2.cvtColor(read[1], cv2.COLOR_BGR2GRAY)

    def read(self, number: int) -> np.ndarray:
        if number in self.last:
            return self.last[number]
        if number < self.next:
            self.next, self.frames = 0, self._frames()
        while self.next <= number:
            self.last[self.next] = next(self.frames)
            self.last.pop(self.next - 64, None)
            self.next += 1
        return self.last[number]


READERS: dict[int, Reader] = {}  # of this process, by the video's number


def decode(video: Video, number: int) -> np.ndarray:
    """One frame, in grey."""
    if video.path is None:
        column, row = camera(video)[1][number] + PAN + 24
        return scene(video.number)[row : row + HEIGHT, column : column + WIDTH].copy()
    reader = READERS.get(video.number)
    if reader is None:
        reader = READERS[video.number] = Reader(video.path)
    return reader.read(number)


# ---- what is done with each frame ----


def flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How the picture moved from one frame to the next: to the right, down, and turned."""
    if cv2 is None:
        return np.array([*shift(before, after), 0.0])
    points = cv2.goodFeaturesToTrack(before, 200, 0.01, 15, blockSize=3)
    if points is None:
        return STILL
    found, status, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None)
    kept = status.ravel() == 1
    if kept.sum() < 3:
        return STILL
    matrix, _ = cv2.estimateAffinePartial2D(points[kept], found[kept])
    if matrix is None:
        return STILL
    turned = np.arctan2(matrix[1, 0], matrix[0, 0])
    # Of the middle of the picture: the matrix turns around the corner.
    middle = np.array([before.shape[1] / 2, before.shape[0] / 2])
    return np.array([*(matrix[:, :2] @ middle + matrix[:, 2] - middle), turned])


def shift(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """The shift between two pictures by phase correlation, to a part of a pixel."""
    rows, columns = (max(0, (size - PATCH) // 2) for size in before.shape)
    patch = np.s_[rows : rows + PATCH, columns : columns + PATCH]
    spectra = []
    for picture in (before[patch], after[patch]):
        window = np.hanning(picture.shape[0])[:, None] * np.hanning(picture.shape[1])
        spectra.append(np.fft.rfft2((picture - picture.mean()) * window))
    cross = np.conj(spectra[0]) * spectra[1]
    peaks = np.fft.irfft2(cross / (np.abs(cross) + 1e-9), s=before[patch].shape)
    peak = np.unravel_index(np.argmax(peaks), peaks.shape)

    def along(axis: int) -> float:
        # A parabola through the peak and its neighbours; the far half is a negative shift.
        size = peaks.shape[axis]
        low, top, high = np.take(
            peaks.take(peak[1 - axis], axis=1 - axis), peak[axis] + [-1, 0, 1], mode="wrap"
        )
        part = 0.5 * (low - high) / min(low - 2 * top + high, -1e-12)
        return float((peak[axis] + size // 2) % size - size // 2 + part)

    return along(1), along(0)


def cumsum(before: np.ndarray, movement: np.ndarray) -> np.ndarray:
    """Where the picture is after one more movement: the sum of all of them."""
    return before + movement


def smooth(now: np.ndarray, around: list[np.ndarray]) -> np.ndarray:
    """What brings a frame to where the frames around it are on average."""
    return np.mean(around, axis=0) - now


def steady(frame: np.ndarray, correction: np.ndarray) -> np.ndarray:
    """The frame, moved by its correction; what moves in from outside is black."""
    right, down, turned = correction
    if cv2 is not None:
        matrix = cv2.getRotationMatrix2D(
            (frame.shape[1] / 2, frame.shape[0] / 2), -np.degrees(turned), 1.0
        )
        matrix[:, 2] += right, down
        return cv2.warpAffine(frame, matrix, frame.shape[::-1])
    right, down = round(right), round(down)
    moved = np.roll(frame, (down, right), axis=(0, 1))
    moved[: max(down, 0)] = 0
    moved[moved.shape[0] + min(down, 0) :] = 0
    moved[:, : max(right, 0)] = 0
    moved[:, moved.shape[1] + min(right, 0) :] = 0
    return moved


# ---- where frames go ----


class Arrival(NamedTuple):
    """A frame that reached the sink, the time when it could have been there, and when it was."""

    frame: int
    due: float
    at: float
    correction: np.ndarray


@dataclass
class Sink:
    """The stabilised video, and what the sink knows of it."""

    arrivals: list[Arrival] = field(default_factory=list)
    again: int = 0  # frames that came once more after a failure

    def take(self, arrival: Arrival) -> bool:
        """Whether this is the next frame. A frame that was here before is no harm, a gap is."""
        expected = len(self.arrivals)
        if arrival.frame > expected:
            raise RuntimeError(f"frame {arrival.frame} came, and frame {expected} never did")
        if arrival.frame < expected:
            self.again += 1
            return False
        self.arrivals.append(arrival)
        return True


SINKS: dict[int, Sink] = {}  # of the process that is the sink, by the video's number


def deliver(
    before: int | None,
    video: Video,
    number: int,
    due: float,
    correction: np.ndarray,
    picture: np.ndarray | None = None,
    output: str | None = None,
) -> int:
    """Take a frame at the sink, after the frame ``before``, and return its number."""
    sink = SINKS.setdefault(video.number, Sink())
    if sink.take(Arrival(number, due, time.time(), correction)) and picture is not None:
        write(Path(str(output), f"video-{video.number}.y4m"), video, number, picture)
    return number


def write(path: Path, video: Video, number: int, picture: np.ndarray) -> None:
    """Append a frame to a file in the YUV4MPEG2 format, which needs no library; players show it."""
    height, width = picture.shape
    with open(path, "ab" if number else "wb") as file:
        if not number:
            rate = f"{round(video.fps * 1000)}:1000"
            file.write(f"YUV4MPEG2 W{width} H{height} F{rate} Ip A1:1 Cmono\n".encode())
        file.write(b"FRAME\n" + picture.tobytes())


def arrived() -> dict[int, int]:
    """How many frames of each video are at the sink."""
    return {number: len(sink.arrivals) for number, sink in SINKS.items()}


def sinks() -> dict[int, Sink]:
    """All that the sink knows."""
    return SINKS


# ---- the owner of a video ----


def stabilize(video: Video, plan: Plan) -> int:
    """Stabilise one video, a frame at a time as they come in. Frames have absolute numbers.

    When this process dies, the task runs again elsewhere: from the first frame, or with
    checkpoints from a frame that was at the sink. The frames that came in meanwhile are caught up
    on, and the sink drops those that it has.
    """
    first, position = restore("video", (0, STILL)) if plan.checkpoint else (0, STILL)
    radius, last = video.radius, video.frames - 1
    # A process that has the decoder of this video; another one if that one is gone.
    decoder = {
        "workers": [plan.compute[video.number % len(plan.compute)]],
        "allow_other_workers": True,
    }
    frames: dict[int, Future] = {}
    positions: dict[int, Future] = {}
    sent: deque[tuple[int, Future]] = deque()
    with worker_client() as client:
        begin, following = max(0, first - radius), first
        for i in range(begin, video.frames):
            time.sleep(max(0.0, plan.start + i / video.fps - time.time()))
            # After a death, frames that come in go before those that are caught up on.
            late = time.time() > plan.start + i / video.fps + LATE
            submit = partial(client.submit, pure=False, priority=-1 if late else 0)
            compute = partial(submit, workers=plan.compute)
            to_sink = partial(submit, workers=[plan.sink])
            frames[i] = submit(decode, video, i, **decoder)
            if i == begin:
                positions[i] = compute(cumsum, position, STILL)
            else:
                movement = compute(flow, frames[i - 1], frames[i])
                positions[i] = compute(cumsum, positions[i - 1], movement)
            # A frame waits for the frames after it, of which the last frames have fewer.
            while following + radius <= i or (i == last and following <= last):
                until = min(following + radius, last)
                around = [positions[n] for n in range(max(0, following - radius), until + 1)]
                correction = compute(smooth, positions[following], around)
                picture = compute(steady, frames[following], correction) if plan.output else None
                due = plan.start + until / video.fps
                before = sent[-1][1] if sent else None
                delivered = to_sink(
                    deliver, before, video, following, due, correction, picture, plan.output
                )
                sent.append((following, delivered))
                following += 1
            while sent and (sent[0][1].done() or i == last):
                number, delivered = sent.popleft()
                if i == last or delivered.status != "finished":
                    delivered.result()
                if plan.checkpoint and number % plan.checkpoint == 0:
                    again = max(0, number + 1 - radius)  # the first frame around the next
                    checkpoint("video", (number + 1, positions[again].result()))
                frames.pop(number, None)
                positions.pop(number - radius, None)
    return video.frames
