"""What the benchmarks share: options, tables, timed processes, runs of train_model.py, and sets of images."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fakereal.decoding import is_image_name

ROOT = Path(__file__).resolve().parents[1]
FULL_PX = 65_500  # asks the decoder for full scale: a copy is made of the image itself, not of a reduced one


def new_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser whose help is the benchmark's docstring."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


class Table:
    """A Markdown table, printed row by row as the measurements come in."""

    def __init__(self, *titles: str) -> None:
        self.row(*titles)
        print("|---" * len(titles) + "|", flush=True)

    def row(self, *cells: object) -> None:
        """Print one row."""
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def with_interval(value: float, interval: Sequence[float], form: str) -> str:
    """Return a value with its 95 % interval, such as `0.95 (0.93 to 0.97)`."""
    return f"{value:{form}} ({interval[0]:{form}} to {interval[1]:{form}})"


def median_and_all(values: Sequence[float], form: str) -> str:
    """Return the median of repeated measurements and each of them, such as `71 (71, 88, 67)`."""
    return f"{statistics.median(values):{form}} ({', '.join(f'{value:{form}}' for value in values)})"


def processor_seconds() -> float:
    """Return the processor time of this process and its children: hardly more on a busy machine, unlike the clock."""
    return sum(os.times()[:4])


@dataclass(frozen=True)
class Timed:
    """A finished process."""

    seconds: float  # from start to end
    peak_mb: float  # highest resident memory
    stdout: str
    stderr: str


def run_python(arguments: Sequence[object], cwd: Path = ROOT) -> Timed:
    """Run Python with these arguments to its end, and measure it.

    Raises:
        SystemExit: it ended with another exit code than 0 and 1.
    """
    command = [sys.executable, *map(str, arguments)]
    started = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=cwd)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{texts[1][-2000:]}")
    return Timed(seconds, usage.ru_maxrss / 1024, *texts)


def training_report(model: Path) -> dict[str, Any]:
    """Return report.json of the training that wrote a model file."""
    return json.loads((model.with_name(f"{model.stem}_run") / "report.json").read_text(encoding="utf-8"))


def images_in(folder: Path) -> list[Path]:
    """Return the images below a folder, sorted.

    Raises:
        SystemExit: there are none.
    """
    found = sorted(path for path in folder.rglob("*") if path.is_file() and is_image_name(path.name))
    if not found:
        raise SystemExit(f"{folder}: no images")
    return found


def link_numbered(paths: Sequence[Path], folder: Path, count: int) -> None:
    """Link images into a new folder as 1.png, 2.png, ...; the first ones again where `count` asks for more."""
    folder.mkdir(parents=True)
    for number in range(count):
        path = paths[number % len(paths)]
        (folder / f"{number + 1}{path.suffix.lower()}").symlink_to(path.resolve())


def link_into(files: Iterable[Path], folder: Path) -> None:
    """Hard-link files into a folder under their names; those that are there already stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        if not (folder / file.name).exists():
            (folder / file.name).hardlink_to(file)


def make_labeled_set(folder: Path, count: int) -> None:
    """Write fake/ and real/ with 32x32 images of smooth noise, the fakes with a checkerboard; no two are alike."""
    rng = np.random.default_rng(0)
    board = (np.indices((32, 32)).sum(axis=0) % 2 * 24)[..., None]
    for name in ("fake", "real"):
        (folder / name).mkdir(parents=True)
        for number in range(count // 2):
            smooth = Image.fromarray(rng.integers(40, 180, (6, 6, 3), dtype=np.uint8)).resize((32, 32))
            array = np.asarray(smooth) + (board if name == "fake" else 0)
            Image.fromarray(array.astype(np.uint8)).save(folder / name / f"{number}.png")


def make_jpegs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write smooth images with some grain, like a camera's: a tenth of `count`; the others are hard links to them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    made = max(1, count // 10)
    for number in range(1, count + 1):
        path = folder / f"{number}.jpg"
        if number > made:
            path.hardlink_to(folder / f"{(number - 1) % made + 1}.jpg")
            continue
        noise = Image.fromarray(rng.integers(20, 235, (24, 24, 3), dtype=np.uint8))
        smooth = np.asarray(noise.resize(size, Image.Resampling.BICUBIC))
        grain = rng.normal(0, 6, (size[1], size[0], 1)).astype(np.float32)
        Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(path, quality=90)
