#!/usr/bin/env python3
"""Kill image_separate.py with SIGKILL at random moments of separating and undoing; count what is lost or doubled.

    python benchmarks/separation_kills.py --kills 200

Each round makes a set of pictures, separates it (move, copy or link, to the same or another device), kills that one to
three times, goes on to the end or not, undoes it, kills that as well, and undoes it to the end. After every kill each
original content must lie at its old name or its new one; at every end, each at exactly the one name it belongs to.
Half of the kills strike once a random number of files have gone, the others after a random time.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

SCRIPT = Path(__file__).resolve().parent.parent / "image_separate.py"
CLASS_FOLDERS = ("fake_images", "real_images")
LIMIT_S = 300  # of one run of the script

Contents = dict[bytes, str]  # path -> SHA-256


@dataclass
class PictureSet:
    """Pictures, their predictions, and where each has to go."""

    source: Path
    output: Path
    mode: str
    original: Contents = field(default_factory=dict)  # everything in source
    moves: dict[bytes, bytes] = field(default_factory=dict)  # old path -> new path; what is not in it stays


@dataclass
class Tally:
    """What the experiment came to."""

    kills: Counter = field(default_factory=Counter)  # by what the script was doing
    setups: Counter = field(default_factory=Counter)  # kills by mode and device
    lost: int = 0  # contents found nowhere
    doubled: int = 0  # contents at two names where one is due
    strange: list[str] = field(default_factory=list)  # files that should not be there, or hold something else
    rounds: int = 0

    @property
    def faults(self) -> int:
        """Everything that went wrong."""
        return self.lost + self.doubled + len(self.strange)


def make_set(source: Path, output: Path, mode: str, size: int, file_bytes: int, rng: random.Random) -> PictureSet:
    """Writes `size` pictures in two folders; one in ten has no prediction."""
    made = PictureSet(source, output, mode)
    for folder in ("a_images", "b"):
        (source / folder).mkdir(parents=True)
        entries = []
        for number in range(1, size // 2 + 1):
            path = source / folder / f"{number}.png"
            path.write_bytes(_picture(rng, file_bytes))
            label = rng.choice((0, 1, 0, 1, None) if number % 2 else (0, 1))
            if label is not None:
                entries.append({"index": number, "prediction": ("fake", "real")[label]})
                target = output / CLASS_FOLDERS[label] / f"{folder}__{path.name}"
                made.moves[os.fsencode(path)] = os.fsencode(target)
        (source / f"{folder.removesuffix('_images')}_preds.json").write_text(json.dumps(entries))
    made.original = contents_of(source)
    return made


def _picture(rng: random.Random, file_bytes: int) -> bytes:
    """Returns a PNG that no other is like; what follows its end makes it large, and every decoder ignores that."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", (8, 8), rng.randbytes(192)).save(buffer, "PNG")
    return buffer.getvalue() + rng.randbytes(file_bytes)


def contents_of(folder: Path) -> Contents:
    """Returns what lies in a folder, journals, reports and unfinished copies left out."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        os.fsencode(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if not path.name.startswith("separation_") and path.suffix != ".part"
    }


def check_after_kill(made: PictureSet, tally: Tally) -> None:
    """Counts originals that lie neither at their old nor at their new name, and files that nobody made."""
    found = {**contents_of(made.source), **contents_of(made.output)}
    for old, content in made.original.items():
        places = [old, made.moves.get(old, old)]
        tally.lost += all(found.get(place) != content for place in places)
        tally.strange += [repr(place) for place in set(places) if found.pop(place, content) != content]
    tally.strange += map(repr, found)


def check_at_end(made: PictureSet, tally: Tally, separated: bool) -> None:
    """Compares with the one state that is right, left-over temporary files included."""
    due = dict(made.original)
    for old, new in made.moves.items() if separated else ():
        due[new] = made.original[old]
        if made.mode == "move":
            del due[old]
    found = {**contents_of(made.source), **contents_of(made.output)}
    values, wanted = Counter(found.values()), Counter(due.values())
    tally.lost += (wanted - values).total()
    tally.doubled += (values - wanted).total()
    tally.strange += [repr(path) for path, content in found.items() if due.get(path) != content]
    tally.strange += [repr(path) for folder in (made.source, made.output) for path in folder.rglob("*.part")]


def separating(made: PictureSet) -> list[str]:
    """Returns the command that separates."""
    return [str(made.source), "--output", str(made.output), "--mode", made.mode]


def undoing(made: PictureSet) -> list[str]:
    """Returns the command that undoes."""
    return ["--undo", str(made.output / "separation_001.journal.jsonl")]


def start(arguments: list[str]) -> subprocess.Popen:
    """Starts the script."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def finish(arguments: list[str]) -> None:
    """Runs the script to its end, which must be a good one."""
    code = start(arguments).wait(LIMIT_S)
    if code not in (0, 1):
        raise RuntimeError(f"exit code {code} of {' '.join(arguments)}")


def kill_once(made: PictureSet, arguments: list[str], rng: random.Random, span_s: float) -> bool:
    """Starts the script and kills it at a random moment; returns whether it was still alive."""
    size = len(made.moves)
    here = _arrived(made)
    if rng.random() < 0.5:
        goal = rng.randint(0, size)
        is_time: Callable[[], bool] = lambda: here != _arrived(made) and abs(_arrived(made) - here) >= goal  # noqa: E731
    else:
        moment = time.monotonic() + rng.uniform(0, span_s)
        is_time = lambda: time.monotonic() >= moment  # noqa: E731
    process = start(arguments)
    while process.poll() is None and not is_time():
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.002))
    process.kill()
    return process.wait() == -9


def _arrived(made: PictureSet) -> int:
    arrived = 0
    for name in CLASS_FOLDERS:
        with contextlib.suppress(FileNotFoundError):  # an undo may take the folder away at any moment
            arrived += len(os.listdir(made.output / name))  # noqa: PTH208 - fast
    return arrived


def play_round(made: PictureSet, rng: random.Random, tally: Tally, wanted: int) -> None:
    """Separates and undoes one set, killing on the way."""
    span_s = 0.6 + len(made.moves) / 1500  # roughly what a run takes
    setup = (
        f"{made.mode}{'' if made.source.stat().st_dev == made.output.parent.stat().st_dev else ' to another device'}"
    )
    for command, verb in ((separating(made), "separating"), (undoing(made), "undoing")):
        if verb == "undoing" and not (made.output / "separation_001.journal.jsonl").exists():
            break
        for _ in range(rng.randint(1, 3)):
            if tally.kills.total() < wanted and kill_once(made, command, rng, span_s):
                planning = not (made.output / "separation_001.journal.jsonl").exists()
                tally.kills["planning" if planning else verb] += 1
                tally.setups[setup] += 1
            check_after_kill(made, tally)
        if verb == "undoing" or rng.random() < 0.6:
            finish(command)
            check_at_end(made, tally, separated=verb == "separating")
    tally.rounds += 1


def run(kills: int, sizes: list[int], seed: int, scratch: Path, other_device: Path | None) -> Tally:
    """Runs rounds until that many kills have struck a living process.

    Args:
        kills: how many.
        sizes: pictures in a set, taken in turn.
        seed: of all that is random here; the moments themselves also depend on the machine.
        scratch: where the sets are made.
        other_device: a folder on another device, for every third round.
    """
    rng, tally = random.Random(seed), Tally()
    while tally.kills.total() < kills and not tally.faults:
        far = other_device is not None and tally.rounds % 3 == 2
        size = sizes[tally.rounds % len(sizes)] if not far else sizes[tally.rounds // 3 % len(sizes)]
        mode = rng.choice(("move", "copy") if far else ("move", "move", "copy", "link"))
        with (
            tempfile.TemporaryDirectory(dir=scratch) as near,
            tempfile.TemporaryDirectory(dir=other_device if far else scratch) as away,
        ):
            folders = Path(near).resolve() / "raw", Path(away).resolve() / "clean"
            made = make_set(*folders, mode, size, 200_000 if far else rng.choice((0, 5_000)), rng)
            play_round(made, rng, tally, kills)
    return tally


def find_other_device(scratch: Path) -> Path | None:
    """Returns a folder in memory where that is another device than `scratch`, as on Linux."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK) and memory.stat().st_dev != scratch.stat().st_dev
    return memory if usable else None


def result_line(tally: Tally, sizes: list[int], seconds: float) -> str:
    """Returns the result in one row of a table."""
    moments = ", ".join(f"{count} {name}" for name, count in tally.kills.most_common())
    setups = ", ".join(f"{count} {name}" for name, count in tally.setups.most_common())
    return (
        f"| {tally.kills.total()} kills ({moments}) | {setups} | sets of {', '.join(map(str, sizes))}"
        f" | lost {tally.lost} | doubled {tally.doubled} | strange {len(tally.strange)} | {seconds:.0f} s |"
    )


def main() -> int:
    """Runs the experiment; 1 where anything was lost, doubled or strange."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    began = time.monotonic()
    tally = run(args.kills, args.sizes, args.seed, args.scratch, find_other_device(args.scratch))
    print(result_line(tally, args.sizes, time.monotonic() - began))
    for fault in tally.strange:
        print(fault, file=sys.stderr)
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
