"""Count the files that are lost or duplicated when image_separate.py is killed at random moments.

    python -m benchmarks.separation_kills --kills 200

Each round makes a set of images, separates it (move, copy or link, to the same or another device), kills that one to
three times, completes it or not, undoes it, kills that as well, and completes the undo. After every kill each original
content must be at its old name or its new one; at every end, each at exactly the one name where it belongs. Half of the
kills strike after a random number of files, the others after a random time.
"""

from __future__ import annotations

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

from benchmarks._shared import ROOT, Table, new_parser

SCRIPT = ROOT / "image_separate.py"
CLASS_FOLDERS = ("fake_images", "real_images")
LIMIT_S = 300  # of one run of the script

Contents = dict[bytes, str]  # path -> SHA-256


@dataclass
class ImageSet:
    """Images, their predictions, and where each has to go."""

    source: Path
    output: Path
    mode: str
    original: Contents = field(default_factory=dict)  # everything in source
    moves: dict[bytes, bytes] = field(default_factory=dict)  # old path -> new path; what is not in it stays


@dataclass
class Tally:
    """Counts of the whole benchmark."""

    kills: Counter = field(default_factory=Counter)  # by what the script was doing
    setups: Counter = field(default_factory=Counter)  # kills by mode and device
    lost: int = 0  # contents found nowhere
    duplicated: int = 0  # contents at two names that belong at one
    unexpected: list[str] = field(default_factory=list)  # files that should not exist, or have another content
    rounds: int = 0

    @property
    def faults(self) -> int:
        """Return the number of everything that went wrong."""
        return self.lost + self.duplicated + len(self.unexpected)


def make_set(source: Path, output: Path, mode: str, size: int, file_bytes: int, rng: random.Random) -> ImageSet:
    """Write `size` images in two folders; one in ten has no prediction."""
    made = ImageSet(source, output, mode)
    for folder in ("a_images", "b"):
        (source / folder).mkdir(parents=True)
        entries = []
        for number in range(1, size // 2 + 1):
            path = source / folder / f"{number}.png"
            path.write_bytes(_png(rng, file_bytes))
            label = rng.choice((0, 1, 0, 1, None) if number % 2 else (0, 1))
            if label is not None:
                entries.append({"index": number, "prediction": ("fake", "real")[label]})
                target = output / CLASS_FOLDERS[label] / f"{folder}__{path.name}"
                made.moves[os.fsencode(path)] = os.fsencode(target)
        (source / f"{folder.removesuffix('_images')}_preds.json").write_text(json.dumps(entries))
    made.original = contents_of(source)
    return made


def _png(rng: random.Random, file_bytes: int) -> bytes:
    """Return a unique PNG; bytes after its end, which every decoder ignores, make it large."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", (8, 8), rng.randbytes(192)).save(buffer, "PNG")
    return buffer.getvalue() + rng.randbytes(file_bytes)


def contents_of(folder: Path) -> Contents:
    """Return the contents of a folder without journals, reports and unfinished copies."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        os.fsencode(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if not path.name.startswith("separation_") and path.suffix != ".part"
    }


def check_after_kill(made: ImageSet, tally: Tally) -> None:
    """Count originals that are neither at their old nor at their new name, and unexpected files."""
    found = {**contents_of(made.source), **contents_of(made.output)}
    for old, content in made.original.items():
        places = [old, made.moves.get(old, old)]
        tally.lost += all(found.get(place) != content for place in places)
        tally.unexpected += [repr(place) for place in set(places) if found.pop(place, content) != content]
    tally.unexpected += map(repr, found)


def check_at_end(made: ImageSet, tally: Tally, separated: bool) -> None:
    """Compare with the one correct state; left-over temporary files are faults too."""
    expected = dict(made.original)
    for old, new in made.moves.items() if separated else ():
        expected[new] = made.original[old]
        if made.mode == "move":
            del expected[old]
    found = {**contents_of(made.source), **contents_of(made.output)}
    values, wanted = Counter(found.values()), Counter(expected.values())
    tally.lost += (wanted - values).total()
    tally.duplicated += (values - wanted).total()
    tally.unexpected += [repr(path) for path, content in found.items() if expected.get(path) != content]
    tally.unexpected += [repr(path) for folder in (made.source, made.output) for path in folder.rglob("*.part")]


def separating(made: ImageSet) -> list[str]:
    """Return the arguments that separate."""
    return [str(made.source), "--output", str(made.output), "--mode", made.mode]


def undoing(made: ImageSet) -> list[str]:
    """Return the arguments that undo."""
    return ["--undo", str(made.output / "separation_001.journal.jsonl")]


def start(arguments: list[str]) -> subprocess.Popen:
    """Start the script."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def finish(arguments: list[str]) -> None:
    """Run the script to its end.

    Raises:
        RuntimeError: it failed.
    """
    code = start(arguments).wait(LIMIT_S)
    if code:
        raise RuntimeError(f"exit code {code} of {' '.join(arguments)}")


def kill_once(made: ImageSet, arguments: list[str], rng: random.Random, span_s: float) -> bool:
    """Start the script and kill it at a random moment; return whether it was still running."""
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


def _arrived(made: ImageSet) -> int:
    arrived = 0
    for name in CLASS_FOLDERS:
        with contextlib.suppress(FileNotFoundError):  # an undo may remove the folder at any moment
            arrived += len(os.listdir(made.output / name))  # noqa: PTH208 - fast
    return arrived


def play_round(made: ImageSet, rng: random.Random, tally: Tally, wanted: int) -> None:
    """Separate and undo one set, with kills."""
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
    """Run rounds until that many kills have struck a running process.

    Args:
        kills: number of kills.
        sizes: images per set, taken in turn.
        seed: of everything random here; the exact moments also depend on the machine.
        scratch: folder for the sets.
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
    """Return a folder in memory where that is another device than `scratch`, as on Linux."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK) and memory.stat().st_dev != scratch.stat().st_dev
    return memory if usable else None


def print_table(tally: Tally, sizes: list[int], seconds: float) -> None:
    """Print the result as a table of one row."""
    moments = ", ".join(f"{count} {name}" for name, count in tally.kills.most_common())
    setups = ", ".join(f"{count} {name}" for name, count in tally.setups.most_common())
    counts = tally.lost, tally.duplicated, len(tally.unexpected)
    table = Table("kills", "set-ups", "images per set", "lost", "duplicated", "unexpected", "seconds")
    table.row(f"{tally.kills.total()} ({moments})", setups, ", ".join(map(str, sizes)), *counts, f"{seconds:.0f}")


def main() -> int:
    """Run the benchmark; return 1 where anything was lost, duplicated or unexpected."""
    parser = new_parser(__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    began = time.monotonic()
    tally = run(args.kills, args.sizes, args.seed, args.scratch, find_other_device(args.scratch))
    print_table(tally, args.sizes, time.monotonic() - began)
    for fault in tally.unexpected:
        print(fault, file=sys.stderr)
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
