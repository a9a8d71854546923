"""Count how often Ctrl-C at a random moment ends a Keras training, raised by Python and deferred to the end of a batch.

    python -m benchmarks.training_interrupts --times 500                           about 7 minutes on 2 free cores

A small network is trained on generated images, epoch after epoch, each followed by a prediction, all in one process.
SIGINT is sent up to a quarter of a second after a training began, and the outcome is counted:

    ended     KeyboardInterrupt arrived within two seconds
    lost      it did not, and the training continued
    failed    another error came instead, or at the next call of a function that it had left unfinished

A crash of the process ends a way: the counts so far are printed, with the exit code.
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

from benchmarks._shared import Table, make_labeled_set, new_parser
from fakereal import runtime

WAYS = ("plain", "ours")
_LOST_S = 2.0
_LATEST_S = 0.25
_REBUILT = 0.3  # share of trainings that begin with a new network, so that functions are traced now and then


def main() -> int:
    """Run both ways, each in a process of its own; return the exit code."""
    parser = new_parser(__doc__)
    parser.add_argument("--times", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        press(options)
        return 0
    table = Table("way", "pressed", "ended", "lost", "failed", "exit code")
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.training_interrupts", "--way", way]
        command += ["--times", str(options.times), "--seed", str(options.seed)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        counts = Counter(done.stdout.split())
        table.row(way, counts.total(), counts["ended"], counts["lost"], counts["failed"], done.returncode)
    return 0


def press(options: argparse.Namespace) -> None:
    """Train, send SIGINT, and print the outcome in one word, repeatedly."""
    runtime.start_keras()
    from fakereal.runtime import interrupts_at_checks_only

    rng = random.Random(options.seed)
    armed = threading.Event()  # Ctrl-C counts while a training runs, not while the next one is set up

    def raise_it(*_: Any) -> None:
        if armed.is_set():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, raise_it)
    with tempfile.TemporaryDirectory() as folder:
        make_labeled_set(Path(folder), 80)
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
                    outcome = train(options.way, model, records, preprocessing, sent)
            except KeyboardInterrupt:
                outcome = "ended"
            except Exception as error:  # noqa: BLE001 - whatever comes of it is what is counted
                armed.clear()
                print(f"{type(error).__name__}: {runtime.one_line(error)}", file=sys.stderr)
                outcome, model = "failed", None
            armed.clear()
            sender.join()
            print(outcome, flush=True)


def send(delay_s: float, sent: list[float]) -> None:
    """Send SIGINT to this process, after noting the time."""
    time.sleep(delay_s)
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)


def train(way: str, model: Any, records: Any, preprocessing: Any, sent: list[float]) -> str:
    """Train until KeyboardInterrupt, or until it is clear that it was lost."""
    from fakereal.config import AugmentationConfig
    from fakereal.training import loop
    from fakereal.training.input_pipeline import EpochSampler, augmented_batches, plain_batches

    epoch = 0
    while not sent or time.monotonic() - sent[0] < _LOST_S:
        epoch += 1
        x = augmented_batches(records, preprocessing, AugmentationConfig(), EpochSampler(0, 0, epoch), 16)
        evaluated = plain_batches(records[:16], preprocessing, 16)
        if way == "ours":
            loop.fit(model, x)
            loop.predict(model, evaluated)
        else:
            model.fit(x, verbose=0, shuffle=False)
            model.predict(evaluated, verbose=0)
    return "lost"


def scanned(folder: Path) -> tuple[Any, Any]:
    """Return the records of a folder and the preprocessing for the network."""
    from fakereal.dataset.scan import scan
    from fakereal.preprocessing import Preprocessing

    preprocessing = Preprocessing(32)
    return scan(folder, preprocessing).records, preprocessing


def network() -> Any:
    """Return a small network, compiled."""
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
