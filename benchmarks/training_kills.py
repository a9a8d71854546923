"""Kill train_model.py with SIGKILL at random moments, go on with --resume, and compare with a run that nobody killed.

    python -m benchmarks.training_kills --kills 50

A small network learns from pictures made on the spot, in two phases. Each round trains it anew: the run is killed at a
random moment of its expected length, gone on with --resume, killed again, and so on until one gets through. After every
kill the model file must be absent or whole; at the end of every round it must hold the very weights and figures of the
run that was let alone. The machine may be busy: moments are drawn anew from how long a run has taken lately.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from benchmarks.training_speed import make_set

SCRIPT = Path(__file__).resolve().parent.parent / "train_model.py"
RECIPE = """
image_size: 32
weights: none
network: {name: cnn, filters: [8, 16]}
report: {resave_images: 20}
training:
  average_weights: 0.9
  phases:
    - {train: all, epochs: 6, batch_size: 16}
    - {train: head, epochs: 6, batch_size: 16}
"""
PICTURES = 600
LIMIT_S = 600  # of one run
STAGES = {"reading": r"images \(|nothing away|weights:", "training": r"epoch \d+/6", "measuring": r"\nmeasuring"}
"""What a run was doing when it was killed, by what it had said last."""


@dataclass
class Tally:
    """What the experiment came to."""

    kills: Counter = field(default_factory=Counter)  # by what the run was doing
    rounds: int = 0
    damaged: list[str] = field(default_factory=list)  # model files that were there but not whole after a kill
    different: list[str] = field(default_factory=list)  # rounds that ended with another model
    failed: list[str] = field(default_factory=list)  # runs that ended by themselves with an error


def main() -> int:
    """Runs the rounds and prints what they came to; returns 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, tally = random.Random(options.seed), Tally()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_set(work / "set", PICTURES)
        (work / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        length_s = _run(work, "whole", None)[0]
        expected = contents(work / "whole.h5")
        print(f"a run that nobody kills: {length_s:.0f} s", file=sys.stderr)
        while tally.kills.total() < options.kills and not (tally.failed or tally.damaged):
            length_s = one_round(work, options.kills, length_s, expected, chance, tally)
    print(
        f"{tally.kills.total()} kills ({', '.join(f'{count} {stage}' for stage, count in tally.kills.most_common())}),"
        f" {tally.rounds} rounds to the end: {len(tally.damaged)} damaged models, {len(tally.different)} models that"
        f" differ, {len(tally.failed)} runs that failed"
    )
    print(*tally.damaged, *tally.different, *tally.failed, sep="\n", end="")
    return int(bool(tally.damaged or tally.different or tally.failed))


def one_round(
    work: Path, kills: int, length_s: float, expected: dict[str, bytes], chance: random.Random, tally: Tally
) -> float:
    """Trains one model through as many kills as come; returns how long its last run took, if that was a whole one."""
    name = f"round{tally.rounds}"
    resumed = False
    while True:
        due = None if tally.kills.total() >= kills else chance.uniform(0.0, 1.1 * length_s)
        seconds, code, said = _run(work, name, due, resumed)
        if code != -9:
            break
        tally.kills[_stage(said)] += 1
        print(f"kill {tally.kills.total()} after {seconds:.1f} s, {_stage(said)}", file=sys.stderr)
        model = work / f"{name}.h5"
        if model.exists() and contents(model) != expected:
            tally.damaged.append(f"{name}: a model that is not whole after {seconds:.1f} s")
            return length_s
        resumed = True
    tally.rounds += 1
    if code:
        tally.failed.append(f"{name}: exit code {code}: {said[-300:]}")
    elif contents(work / f"{name}.h5") != expected:
        tally.different.append(f"{name}: other weights or figures")
    return length_s if resumed else seconds


def _run(work: Path, name: str, kill_after_s: float | None, resume: bool = False) -> tuple[float, int, str]:
    """Trains; returns the seconds, the exit code (-9: killed) and what was said."""
    command = [sys.executable, SCRIPT, "--config", "recipe.yaml", "--data", "set", "--output", f"{name}.h5"]
    command += ["--cache-dir", "none", *(["--resume"] if resume else [])]
    log = work / f"{name}.log"
    started = time.monotonic()
    with open(log, "wb") as file:
        process = subprocess.Popen(command, cwd=work, stdout=file, stderr=file)
        try:
            process.wait(LIMIT_S if kill_after_s is None else kill_after_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    said = log.read_text(encoding="utf-8", errors="replace")
    if kill_after_s is None and process.returncode:
        sys.exit(f"expected a run that ends well, found exit code {process.returncode}: {said[-2000:]}")
    return time.monotonic() - started, process.returncode, said


def _stage(said: str) -> str:
    places = {stage: [found.end() for found in re.finditer(words, said)] for stage, words in STAGES.items()}
    reached = {stage: ends[-1] for stage, ends in places.items() if ends}
    return max(reached, key=reached.get) if reached else "starting"


def contents(model: Path) -> dict[str, bytes]:
    """Returns every weight of a model file and its figures, as bytes; {} where the file is not whole."""
    found: dict[str, bytes] = {}

    def take(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if name == "fakereal_metadata":
            found[name] = json.dumps(json.loads(item[()])["metrics"]).encode()
        else:
            found[name] = np.asarray(item).tobytes()

    try:
        with h5py.File(model, "r") as file:
            file.visititems(take)
    except (OSError, ValueError):
        return {}
    return found


if __name__ == "__main__":
    sys.exit(main())
