"""Count damaged or different models when train_model.py is killed at random moments and resumed.

    python -m benchmarks.training_kills --kills 50

A small network is trained on generated images, in two phases. In each round the run is killed at a random moment of its
expected duration, continued with --resume, killed again, and so on until it finishes. After every kill the model file
must be absent or complete; at the end of every round it must hold the same weights and metrics as a run that was not
interrupted. On a busy machine the expected duration follows that of the last rounds.
"""

from __future__ import annotations

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

from benchmarks._shared import ROOT, Table, make_labeled_set, new_parser

SCRIPT = ROOT / "train_model.py"
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
IMAGES = 600
LIMIT_S = 600  # of one run
STAGES = {"reading": r"images \(|nothing away|weights:", "training": r"epoch \d+/6", "measuring": r"\nmeasuring"}
"""By stage: the messages that a run prints in it."""


@dataclass
class Tally:
    """Counts of the whole benchmark."""

    kills: Counter = field(default_factory=Counter)  # by what the run was doing
    rounds: int = 0
    damaged: list[str] = field(default_factory=list)  # model files that existed but were incomplete after a kill
    different: list[str] = field(default_factory=list)  # rounds that ended with another model
    failed: list[str] = field(default_factory=list)  # runs that ended with an error


def main() -> int:
    """Run the rounds and print the table; return 1 where anything went wrong."""
    parser = new_parser(__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, tally = random.Random(options.seed), Tally()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_labeled_set(work / "set", IMAGES)
        (work / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        length_s = _run(work, "whole", None)[0]
        expected = contents(work / "whole.h5")
        print(f"a run without kills: {length_s:.0f} s", file=sys.stderr)
        while tally.kills.total() < options.kills and not (tally.failed or tally.damaged):
            length_s = one_round(work, options.kills, length_s, expected, chance, tally)
    stages = ", ".join(f"{count} {stage}" for stage, count in tally.kills.most_common())
    table = Table("kills", "complete rounds", "damaged models", "different models", "failed runs")
    faults = tally.damaged, tally.different, tally.failed
    table.row(f"{tally.kills.total()} ({stages})", tally.rounds, *map(len, faults))
    print(*tally.damaged, *tally.different, *tally.failed, sep="\n", end="", file=sys.stderr)
    return int(bool(tally.damaged or tally.different or tally.failed))


def one_round(
    work: Path, kills: int, length_s: float, expected: dict[str, bytes], chance: random.Random, tally: Tally
) -> float:
    """Train one model through any number of kills; return the duration of its last run, if that was a complete one."""
    name = f"round{tally.rounds}"
    resumed = False
    while True:
        due = None if tally.kills.total() >= kills else chance.uniform(0.0, 1.1 * length_s)
        seconds, code, output = _run(work, name, due, resumed)
        if code != -9:
            break
        tally.kills[_stage(output)] += 1
        print(f"kill {tally.kills.total()} after {seconds:.1f} s, {_stage(output)}", file=sys.stderr)
        model = work / f"{name}.h5"
        if model.exists() and contents(model) != expected:
            tally.damaged.append(f"{name}: incomplete model after {seconds:.1f} s")
            return length_s
        resumed = True
    tally.rounds += 1
    if code:
        tally.failed.append(f"{name}: exit code {code}: {output[-300:]}")
    elif contents(work / f"{name}.h5") != expected:
        tally.different.append(f"{name}: other weights or metrics")
    return length_s if resumed else seconds


def _run(work: Path, name: str, kill_after_s: float | None, resume: bool = False) -> tuple[float, int, str]:
    """Train; return the seconds, the exit code (-9: killed) and the output."""
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
    output = log.read_text(encoding="utf-8", errors="replace")
    if kill_after_s is None and process.returncode:
        sys.exit(f"train_model.py failed with exit code {process.returncode}: {output[-2000:]}")
    return time.monotonic() - started, process.returncode, output


def _stage(output: str) -> str:
    places = {stage: [found.end() for found in re.finditer(pattern, output)] for stage, pattern in STAGES.items()}
    reached = {stage: ends[-1] for stage, ends in places.items() if ends}
    return max(reached, key=reached.get) if reached else "starting"


def contents(model: Path) -> dict[str, bytes]:
    """Return every weight of a model file and its metrics, as bytes; {} where the file is incomplete."""
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
