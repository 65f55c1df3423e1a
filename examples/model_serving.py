"""Serve a model to clients that ask at a fixed rate, through a router that makes batches.

    python examples/model_serving.py                          160 requests a second for 10 s
    python examples/model_serving.py --rate 400 --fail model --at 5
    python examples/model_serving.py --by-value               photos go through the router
    python examples/model_serving.py --by-value --engine distributed     on stock Dask

A request is a photo of a handwritten digit, 256 KiB, prepared by a task. The client hands the
*future* of the photo to the router, which never fetches it: it passes the futures of a full batch
on to a model, and gives the future of the answers back. So photos go from the worker that prepared
them to the model, and the router has nothing to carry. The program counts the bytes. On stock Dask
it runs by value only: a future inside an object does not keep its value there.

The digits and the model are scikit-learn's. Answers are compared with what the digits are.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import common
import numpy as np
import serving_tasks
from distributed import LocalCluster
from serving_tasks import Answer, Held, Plan

PERCENTILES = (50, 90, 99, 99.9, 100)


def run(args: argparse.Namespace) -> tuple[list[Answer], int]:
    """Serve all requests; return the answers, and the bytes of photos that the router got."""
    # Dask names the workers by numbers: the router, then the clients, then the models.
    router, askers = 0, list(range(1, 1 + args.clients))
    models = list(range(1 + args.clients, 1 + args.clients + args.models))
    with (
        LocalCluster(
            n_workers=1 + args.clients + args.models, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        common.client_class(args.engine)(cluster) as client,
    ):
        ready = {
            name: client.submit(serving_tasks.warm_up, workers=[name], pure=False)
            for name in (router, *askers, *models)
        }
        pids = client.gather(ready)
        model = client.submit(serving_tasks.train, workers=models)
        model.result()
        start = time.time() + 2
        rate = args.rate / args.clients
        requests = round(args.seconds * rate)
        seconds = args.model_ms / 1000
        plan = Plan(
            start, rate, requests, args.batch, seconds, args.by_value, router, models, args.batch
        )
        client.submit(serving_tasks.serve, plan, Held(model), workers=[router]).result()
        tasks = [
            client.submit(serving_tasks.ask, number, plan, workers=[name])
            for number, name in enumerate(askers)
        ]
        killer = threading.Timer(start + args.at - time.time(), kill, (pids[models[0]],))
        if args.fail:
            killer.start()
        try:
            while not all(task.done() for task in tasks):
                time.sleep(1)
                now = min(max(0.0, time.time() - start), args.seconds)
                print(f"{now:.0f} of {args.seconds:g} s", flush=True)
            answers = [answer for answers in client.gather(tasks) for answer in answers]
        finally:
            killer.cancel()
        arrived = client.submit(serving_tasks.stop, workers=[router], pure=False).result()
        if args.by_value:
            arrived -= len(tasks) * args.batch * photo_bytes()  # those that warmed up
    if len(answers) != requests * args.clients:
        raise SystemExit(f"{len(answers)} answers to {requests * args.clients} requests")
    return answers, arrived


def photo_bytes() -> int:
    return (8 * serving_tasks.SCALE) ** 2 * 4


def kill(pid: int) -> None:
    print("kill -9 of a model", flush=True)
    os.kill(pid, signal.SIGKILL)


def report(answers: list[Answer], arrived: int, args: argparse.Namespace) -> int:
    """Print what came of it, and return the exit status."""
    print(f"\n{args.engine}, {args.rate:g} requests/s, batches of {args.batch}")
    whole = np.array([answer.seconds * 1000 for answer in answers])
    beyond = np.array([answer.beyond * 1000 for answer in answers])
    for name, values in (("question to answer", whole), ("full batch to answer", beyond)):
        print(f"milliseconds from {name}:", end="")
        for percent, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True):
            print(f"  p{percent:g} {value:.1f}", end="")
        print()
    print(f"all {len(answers)} requests were answered", end="")
    print(", also those of the model that was killed." if args.fail else ".")
    sent = len(answers) * photo_bytes() / 1e6
    print(f"photos: {sent:.1f} MB; through the router: {arrived / 1e6:.1f} MB")
    target = serving_tasks.digits().target
    right = np.mean([answer.told == target[answer.digit] for answer in answers])
    print(f"right answers: {right:.1%}")
    return 0 if right > 0.9 else 1


def plot(answers: list[Answer], args: argparse.Namespace) -> None:
    """Draw the share of requests that were answered within so long."""
    figure = common.new_figure()
    axes = figure.subplots()
    late = np.sort([answer.seconds * 1000 for answer in answers])
    axes.plot(late, np.arange(1, len(late) + 1) / len(late) * 100)
    axes.set_xscale("log")
    axes.set_xlabel("answered within (ms)")
    axes.set_ylabel("requests (%)")
    failure = f", a model killed after {args.at:g} s" if args.fail else ""
    axes.set_title(f"{args.rate:g} requests/s, {args.engine}{failure}")
    axes.grid(alpha=0.3)
    figure.savefig(args.plot, dpi=120)


def parse_args() -> argparse.Namespace:
    parser = common.parser(__doc__, "draw how long answers took")
    parser.add_argument("--rate", type=float, default=160, help="requests per second; default: 160")
    parser.add_argument("--seconds", type=common.seconds, default=10.0, help="default: 10")
    parser.add_argument("--batch", type=int, default=16, help="requests in one; default: 16")
    parser.add_argument("--clients", type=int, default=1, help="processes that ask; default: 1")
    parser.add_argument("--models", type=int, default=2, help="processes that answer; default: 2")
    parser.add_argument(
        "--model-ms",
        type=float,
        default=35,
        metavar="MS",
        help="that a model takes longer for a batch, as a large one would; default: 35",
    )
    parser.add_argument("--by-value", action="store_true", help="photos go through the router")
    parser.add_argument("--fail", choices=("model",), help="kill the worker of a model")
    parser.add_argument(
        "--at", type=common.seconds, default=5.0, help="seconds after the start; default: 5"
    )
    parser.add_argument("--json", metavar="FILE", help="write how long each answer took, in ms")
    args = parser.parse_args()
    if min(args.rate, args.seconds, args.batch, args.clients, args.models) <= 0:
        parser.error("numbers must be positive")
    if args.fail and args.at >= args.seconds:
        parser.error("--at must be before the end")
    if args.engine == "distributed" and not args.by_value:
        parser.error("stock Dask loses futures inside objects: add --by-value")
    return args


def main() -> int:
    args = parse_args()
    answers, arrived = run(args)
    if args.plot:
        plot(answers, args)
    if args.json:
        answers.sort(key=lambda answer: answer.due)
        record = {
            "arguments": vars(args),
            "ms": [answer.seconds * 1000 for answer in answers],
            "beyond_ms": [answer.beyond * 1000 for answer in answers],
        }
        Path(args.json).write_text(json.dumps({**record, "bytes_through_router": arrived}))
    return report(answers, arrived, args)


if __name__ == "__main__":  # worker processes import this file
    sys.exit(main())
