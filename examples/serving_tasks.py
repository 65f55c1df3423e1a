"""The tasks of ``model_serving.py``: what runs on the workers.

They live in a module of their own, so that workers import them: the router keeps the requests that
wait for a batch in its process, between one call and the next.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from distributed import Future, get_client
from distributed.client import FutureCancelledError
from sklearn.datasets import load_digits
from sklearn.svm import SVC

TRAINING = 1200  # digits that the model learns from; clients show it the others
SCALE = 32  # a photo has so many pixels for each of a digit, in both directions


class Plan(NamedTuple):
    """What clients and the router are told. Workers are given by their names."""

    start: float  # in seconds since 1970; before, one batch warms up
    rate: float  # requests per second of each client
    requests: int  # of each client
    batch: int
    seconds: float  # that a model takes for a batch, beside the real work
    by_value: bool  # send photos through the router, not futures
    router: int
    models: list[int]
    warm_up: int  # requests of each client that are not counted


class Photo:
    """A picture of a digit, which counts the bytes that arrive in a process."""

    arrived = 0

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        Photo.arrived += self.pixels.nbytes


@dataclass
class Held:
    """A future that stays a future: as an argument by itself it would arrive as its value."""

    future: Future


class Request(NamedTuple):
    """A digit that a client asks about, and the time when it meant to ask."""

    digit: int
    due: float


@dataclass
class Batch:
    """Requests, and the future of their answers."""

    requests: list[Request]
    answers: Future


class Answer(NamedTuple):
    """What a client was told about a digit, how long after it meant to ask, and when that was.

    A batch is sent when its last request is due; ``beyond`` does not count the wait for that.
    """

    digit: int
    told: int
    due: float
    seconds: float
    beyond: float


digits = lru_cache(load_digits)


def warm_up() -> int:
    """Do in this process once what takes longer the first time; return the process."""
    digits()
    return os.getpid()


def train() -> SVC:
    """The model: which of the ten digits a picture of 8 x 8 pixels is."""
    data = digits()
    return SVC(gamma=0.001).fit(data.data[:TRAINING], data.target[:TRAINING])


def photograph(digit: int) -> Photo:
    """Prepare a picture for the model: 256 KiB, which stay with the worker that made them."""
    noise = np.random.default_rng(digit).standard_normal((8 * SCALE, 8 * SCALE), dtype="f4")
    picture = digits().images[digit].astype("f4")
    return Photo(np.kron(picture, np.ones((SCALE, SCALE), "f4")) + noise)


def predict(model: SVC, photos: list[Photo], seconds: float) -> list[int]:
    """Which digits the photos show. The time stands for a larger model, on a GPU perhaps."""
    time.sleep(seconds)
    small = [photo.pixels.reshape(8, SCALE, 8, SCALE).mean(axis=(1, 3)) for photo in photos]
    return [int(digit) for digit in model.predict(np.reshape(small, (len(small), 64)))]


# ---- the router ----

WAITING: list[tuple[Request, Any]] = []  # in the router's process, with their photos
GIVEN: deque[Future] = deque(maxlen=100)  # stock Dask frees what a client has not asked for yet
SERVED: list[tuple[Plan, Held]] = []  # the plan and the model, which the router is told once


def serve(plan: Plan, model: Held) -> None:
    """Tell the router what it serves."""
    SERVED[:] = [(plan, model)]


def route(request: Request, photo: Held | Photo) -> Batch | None:
    """Take a request. With the last one of a batch, give the batch to a model and return it.

    The photo is a future in ``Held``, which the router passes on. By value it is the picture.
    """
    WAITING.append((request, photo.future if isinstance(photo, Held) else photo))
    return flush() if len(WAITING) == SERVED[0][0].batch else None


def flush() -> Batch | None:
    """Give the requests that wait to a model, and return at once with the future of its answers."""
    if not WAITING:
        return None
    plan, model = SERVED[0]
    requests, photos = zip(*WAITING, strict=True)
    WAITING.clear()
    answers = get_client().submit(
        predict, model.future, list(photos), plan.seconds, workers=plan.models, pure=False
    )
    GIVEN.append(answers)
    return Batch(list(requests), answers)


def stop() -> int:
    """Let go of the model, and return the bytes of photos that came to this process."""
    SERVED.clear()
    GIVEN.clear()
    return Photo.arrived


# ---- a client ----


async def value_of(client: Any, future: Future) -> list[int]:
    """The value of a future that came inside a result."""
    while type(future) is Future:
        # The client of stock Dask hears nothing of such a future, but its tasks can take the value,
        # once the scheduler has heard of the key from the client that made the future.
        try:
            return list(await client.submit(list, Future(future.key, client), pure=False))
        except FutureCancelledError:
            await asyncio.sleep(0.005)
    return list(await future)


async def ask(number: int, plan: Plan) -> list[Answer]:
    """Send requests at a fixed rate, however long answers take. Returns all answers it was told.

    The answers of a batch go to the client that had the last of its requests. The first requests
    open connections, and are not counted.
    """
    client = get_client()
    answers: list[Answer] = []

    async def take(batch: Batch | None) -> None:
        if batch is None:
            return
        told = await value_of(client, batch.answers)
        now = time.time()
        full = max(request.due for request in batch.requests)
        for request, digit in zip(batch.requests, told, strict=True):
            if request.due:
                seconds = now - request.due
                answers.append(Answer(request.digit, digit, request.due, seconds, now - full))

    async def one(request: Request) -> None:
        photo = client.submit(photograph, request.digit, workers=plan.models, pure=False)
        given = photo if plan.by_value else Held(photo)
        await take(await client.submit(route, request, given, workers=[plan.router], pure=False))

    shown = np.random.default_rng(number).integers(TRAINING, len(digits().images), plan.requests)
    await asyncio.gather(*(one(Request(TRAINING, 0.0)) for _ in range(plan.warm_up)))
    asked = []
    for count, digit in enumerate(shown):
        due = plan.start + count / plan.rate
        await asyncio.sleep(due - time.time())
        asked.append(asyncio.create_task(one(Request(int(digit), due))))
    await asyncio.gather(*asked)
    await take(await client.submit(flush, workers=[plan.router], pure=False))
    return answers
