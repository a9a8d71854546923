"""Presses Ctrl-C at random moments of a Keras training, as Python raises it and as ours waits for the end of a batch.

    python -m benchmarks.training_interrupts --times 500                           about 7 minutes on 2 free cores

A small network learns from pictures made on the spot, epoch after epoch, each followed by a prediction, all in one
process. Up to a quarter of a second after a training began SIGINT is sent, and what happens is counted:

    ended     KeyboardInterrupt arrived within two seconds
    lost      it did not, and the training went on
    failed    another error came in its place, or at the next call of a function that it had left half made

A crash of the process ends a way: what was counted so far is printed, with the exit code.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.training_speed import make_set
from fakereal import runtime

WAYS = ("plain", "ours")
_LOST_S = 2.0
_LATEST_S = 0.25
_REBUILT = 0.3  # share of trainings that begin with a new network, so that functions are traced now and then


def main() -> int:
    """Runs both ways, each in a process of its own; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # what the processes are started with
    options = parser.parse_args()
    if options.way:
        press(options)
        return 0
    print("| way | pressed | ended | lost | failed | exit code |\n|---|---|---|---|---|---|")
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.training_interrupts", "--way", way]
        command += ["--times", str(options.times), "--seed", str(options.seed)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        counts = Counter(done.stdout.split())
        cells = [sum(counts.values()), counts["ended"], counts["lost"], counts["failed"], done.returncode]
        print(f"| {way} | {' | '.join(map(str, cells))} |", flush=True)
    return 0


def press(options: argparse.Namespace) -> None:
    """Trains and presses, and prints a word for each time."""
    runtime.start_keras()
    from fakereal.runtime import interrupts_at_checks_only

    rng = random.Random(options.seed)
    armed = threading.Event()  # Ctrl-C counts while a training runs, not while this script sets the next one up

    def raise_it(*_: Any) -> None:
        if armed.is_set():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, raise_it)
    with tempfile.TemporaryDirectory() as folder:
        make_set(Path(folder), 80)
        records, preprocessing = scanned(Path(folder))
        model = None
        for _ in range(options.times):
            if model is None or rng.random() < _REBUILT:
                model = network()
            sent: list[float] = []
            sender = threading.Thread(target=send, args=(rng.uniform(0, _LATEST_S), sent))
            armed.set()
            try:
                with interrupts_at_checks_only() if options.way == "ours" else nullcontext():
                    sender.start()
                    word = train(options.way, model, records, preprocessing, sent)
            except KeyboardInterrupt:
                word = "ended"
            except Exception as error:  # noqa: BLE001 - whatever comes of it is what is counted
                armed.clear()
                print(f"{type(error).__name__}: {runtime.one_line(error)}", file=sys.stderr)
                word, model = "failed", None
            armed.clear()
            sender.join()
            print(word, flush=True)


def send(delay_s: float, sent: list[float]) -> None:
    """Sends SIGINT to this process, after noting when."""
    time.sleep(delay_s)
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)


def train(way: str, model: Any, records: Any, preprocessing: Any, sent: list[float]) -> str:
    """Trains until KeyboardInterrupt, or until it is plain that it was lost."""
    from fakereal.config import AugmentationConfig
    from fakereal.training import loop
    from fakereal.training.input_pipeline import EpochSampler, plain_batches, training_batches

    epoch = 0
    while not sent or time.monotonic() - sent[0] < _LOST_S:
        epoch += 1
        x = training_batches(records, preprocessing, AugmentationConfig(), EpochSampler(0, 0, epoch), 16)
        judged = plain_batches(records[:16], preprocessing, 16)
        if way == "ours":
            loop.fit(model, {"x": x})
            loop.predict(model, judged)
        else:
            model.fit(x, verbose=0, shuffle=False)
            model.predict(judged, verbose=0)
    return "lost"


def scanned(folder: Path) -> tuple[Any, Any]:
    """Returns the records of a folder and the preprocessing for the network."""
    from fakereal.dataset.scan import scan
    from fakereal.preprocessing import Preprocessing

    preprocessing = Preprocessing(32)
    return scan(folder, preprocessing).records, preprocessing


def network() -> Any:
    """Returns a small network, compiled."""
    import keras
    from keras import layers

    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return model


if __name__ == "__main__":
    sys.exit(main())
