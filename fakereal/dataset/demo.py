"""Makes a small labelled set to try everything on, from the two photographs that scikit-learn ships. No benchmark.

Real pictures are crops of the photographs; fake ones are other crops, rebuilt by an up-sampling decoder such as
generators end with, which leaves its regular traces. Both are drawn, sized and saved alike, so that nothing but those
traces tells them apart, and train, val, test and the unlabelled pictures come from separate regions of the photographs.
"""

from __future__ import annotations

import csv
import hashlib
import io
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fakereal import predictions_json
from fakereal.cli import EXIT_OK, EXIT_PARTIAL
from fakereal.dataset.split import COLUMNS
from fakereal.errors import ConfigError, DataError, FakeRealError
from fakereal.files import write_atomic
from fakereal.labels import FAKE, NAMES, REAL

IMAGE_SIZE_PX = 64
FOLDERS = {FAKE: "fake_demo_images", REAL: "real_demo_images"}
"""The raw folders; the `_preds.json` beside each has the truth."""

_CELL_PX = 106  # the photographs, 640x427, hold 6x4 such squares; no picture reaches over the edge of its square
_MIN_WINDOW_PX = 68  # windows are always made smaller: enlarging leaves traces like those of a generator
_SWAPPED_SHARE = 0.12  # pictures that lie in the wrong folder
_TRACE = 0.12  # how unevenly the decoder's kernel covers neighbouring pixels


@dataclass(frozen=True)
class _Region:
    """Where the pictures of one purpose come from, and how many there are."""

    name: str  # train, val, test: the labelled set's splits; unlabelled: what is to be predicted
    squares: int  # of each photograph; all 24 are given out
    pictures: int  # of each class


_REGIONS = (
    _Region("train", 13, 400),
    _Region("val", 4, 80),
    _Region("test", 4, 80),
    _Region("unlabelled", 3, 50),
)


@dataclass(frozen=True)
class _Picture:
    """A picture before it has a name."""

    region: str
    label: int  # the truth
    png: bytes


@dataclass(frozen=True)
class DemoSet:
    """What was made, and where."""

    raw: Path  # the labelled pictures in two folders, some in the wrong one, and the JSONs that mend them
    split: Path  # manifest for --split: which of them train, choose and judge
    test: Path  # the unlabelled pictures
    truth: Path  # their labels, kept apart
    labelled: int  # pictures in raw
    swapped: int  # of these, in the wrong folder
    unlabelled: int  # pictures in test


def make(folder: Path, seed: int = 0) -> DemoSet:
    """Writes the demo set; the same seed gives the same bytes.

    Raises:
        DataError: the folder is there and not empty, or can't be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: expected a new or empty folder, found one with content: remove it or name another")
    if seed < 0:
        raise ConfigError(f"--seed: expected a whole number of at least 0, found {seed}")
    rng = np.random.default_rng(seed)
    pictures = list(_pictures(rng))
    pictures = [pictures[number] for number in rng.permutation(len(pictures))]
    labelled = [picture for picture in pictures if picture.region != "unlabelled"]
    unlabelled = [picture for picture in pictures if picture.region == "unlabelled"]
    demo = DemoSet(
        raw=folder / "raw",
        split=folder / "split.csv",
        test=folder / "test",
        truth=folder / "test_truth.json",
        labelled=len(labelled),
        swapped=round(len(labelled) * _SWAPPED_SHARE),
        unlabelled=len(unlabelled),
    )
    _write_labelled(demo, labelled)
    _write_numbered(demo.test, unlabelled, demo.truth)
    return demo


def _write_labelled(demo: DemoSet, pictures: list[_Picture]) -> None:
    # The order is random already, so the first few are as good as any to lie in the wrong folder.
    lies_in = [1 - picture.label if number < demo.swapped else picture.label for number, picture in enumerate(pictures)]
    rows = []
    for label, name in FOLDERS.items():
        inside = [picture for picture, place in zip(pictures, lies_in, strict=True) if place == label]
        inside.sort(key=lambda picture: hashlib.sha256(picture.png).digest())  # the swapped ones no longer first
        names = _write_numbered(demo.raw / name, inside, demo.raw / f"{name.removesuffix('_images')}_preds.json")
        rows += [_row(f"{name}__{file}", picture) for file, picture in zip(names, inside, strict=True)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    write_atomic(demo.split, text.getvalue().encode())


def _row(file: str, picture: _Picture) -> tuple[str, ...]:
    """Returns the manifest's row for where image_separate.py will put the picture."""
    truth = NAMES[picture.label]
    return f"{truth}_images/{file}", hashlib.sha256(picture.png).hexdigest(), truth, "", picture.region, ""


def _write_numbered(folder: Path, pictures: list[_Picture], truth: Path) -> list[str]:
    """Writes 1.png, 2.png, ... and the JSON with their labels; returns the names."""
    names = [f"{number}.png" for number in range(1, len(pictures) + 1)]
    try:
        folder.mkdir(parents=True)
        for name, picture in zip(names, pictures, strict=True):
            (folder / name).write_bytes(picture.png)
    except OSError as error:
        raise DataError(f"{folder}: expected to write the demo set, found {error.strerror or error}") from error
    entries = [predictions_json.prediction_for(n, picture.label) for n, picture in enumerate(pictures, start=1)]
    predictions_json.write(truth, entries)
    return names


def _pictures(rng: np.random.Generator) -> Iterator[_Picture]:
    from sklearn.datasets import load_sample_images  # takes a second, which only this function needs

    kernel = _decoder_kernel(rng)
    squares = {region.name: [] for region in _REGIONS}
    for photograph in load_sample_images().images:
        shuffled = iter(rng.permutation(_squares(photograph)))
        for region in _REGIONS:
            squares[region.name] += [next(shuffled) for _ in range(region.squares)]
    for region in _REGIONS:
        for number in range(region.pictures):
            square = squares[region.name][number % len(squares[region.name])]
            yield _Picture(region.name, REAL, _png(_crop(square, rng)))
            yield _Picture(region.name, FAKE, _png(_rebuilt(_crop(square, rng), kernel, rng)))


def _squares(photograph: np.ndarray) -> np.ndarray:
    """Cuts a photograph (height, width, 3) into squares that share no pixel: uint8 (n, _CELL_PX, _CELL_PX, 3)."""
    rows, columns = (length // _CELL_PX for length in photograph.shape[:2])
    cut = photograph[: rows * _CELL_PX, : columns * _CELL_PX].reshape(rows, _CELL_PX, columns, _CELL_PX, 3)
    return cut.swapaxes(1, 2).reshape(-1, _CELL_PX, _CELL_PX, 3)


def _crop(square: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a window of random size and place, mirrored or not, darker or lighter: float32 (64, 64, 3), 0..255."""
    side = int(rng.integers(_MIN_WINDOW_PX, _CELL_PX + 1))
    top, left = rng.integers(0, _CELL_PX - side + 1, size=2)
    window = square[top : top + side, left : left + side]
    if rng.random() < 0.5:
        window = window[:, ::-1]
    image = Image.fromarray(np.ascontiguousarray(window))
    image = image.resize((IMAGE_SIZE_PX, IMAGE_SIZE_PX), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32) * np.float32(rng.uniform(0.7, 1.1))


def _decoder_kernel(rng: np.random.Generator) -> np.ndarray:
    """Returns the 3x3 kernel of a transposed convolution of stride 2, shape (3, 3, 3): row, column, colour.

    It is the bilinear one, slightly off as learnt kernels are, so that neighbouring pixels get unequal sums: the
    checkerboard of Odena et al. (2016), https://distill.pub/2016/deconv-checkerboard/.
    """
    bilinear = np.outer((0.5, 1.0, 0.5), (0.5, 1.0, 0.5))[:, :, None]
    return bilinear * (1 + _TRACE * rng.choice((-1.0, 1.0), size=(3, 3, 3)))


def _rebuilt(image: np.ndarray, kernel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Takes a picture (64, 64, 3) through features of half its size and back: the same shape, with the traces."""
    half = IMAGE_SIZE_PX // 2
    features = image.reshape(half, 2, half, 2, 3).mean(axis=(1, 3))
    features += rng.normal(0, 2, size=features.shape)  # no decoder knows the features exactly
    spread = np.zeros((IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3))
    spread[::2, ::2] = features
    padded = np.pad(spread, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    shifted = [
        padded[row : row + IMAGE_SIZE_PX, column : column + IMAGE_SIZE_PX] * kernel[row, column]
        for row in range(3)
        for column in range(3)
    ]
    return np.sum(shifted, axis=0)


def _png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


# ---- Goes the whole way with the demo set: the three scripts one after the other, as a user would type them.

_HOME = Path(__file__).resolve().parents[2]  # where the scripts stand
_TRAINING = f"--image-size {IMAGE_SIZE_PX} --network cnn --weights none --fine-tune all --epochs 40 --batch-size 16"
"""The small network: without a pre-trained base, EfficientNet would need many more pictures and minutes."""


def run_tour(folder: Path, seed: int) -> int:
    """Makes the set in `folder`, cleans it, trains, predicts, and says what came out.

    Returns:
        The exit code: 0, since whatever else a script ends with is raised.

    Raises:
        FakeRealError: the folder is not empty, or a script failed.
    """
    made = make(folder, seed)
    print(f"{made.labelled} labelled images, {made.swapped} of them in the wrong folder, are in {made.raw}")
    clean, model, answers = folder / "clean", folder / "model.h5", folder / "predictions.json"
    _script("image_separate.py", made.raw, "--output", clean, "--mode", "copy")
    learning = ("--data", clean, "--output", model, "--split", made.split, "--seed", seed)
    score = _script("train_model.py", *learning, *_TRAINING.split())
    _script("predict_and_save_json.py", "--input", made.test, "--model", model, "--output", answers)
    print("\n".join(_findings(made, clean, score, answers)))
    return EXIT_OK


def _script(name: str, *arguments: object) -> str:
    """Shows and runs a command, shows what it prints, and returns the last line of that."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ python {shlex.join([name, *words])}", flush=True)
    last = ""
    with subprocess.Popen([sys.executable, _HOME / name, *words], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    if process.returncode != EXIT_OK:
        problem = "some images were skipped" if process.returncode == EXIT_PARTIAL else "its own message is above"
        raise FakeRealError(f"expected {name} to end with exit code 0, found {process.returncode}: {problem}")
    return last


def _findings(made: DemoSet, clean: Path, score: str, answers: Path) -> list[str]:
    right, asked = _right(made.truth, answers)
    return [
        "",
        "What came out",
        f"  labels      {_mended(clean)} of {made.swapped} images that lay in the wrong folder are in the right one",
        f"  training    {score}",
        f"  prediction  {right} of {asked} unlabelled images right ({right / asked:.0%})",
        "The test and the unlabelled images come from parts of the photographs that training never saw. Yet this is a",
        "demo, no benchmark: two photographs, and fakes of one simple decoder, which says nothing of other generators.",
        "",
        "With your own images",
        "  . .venv/bin/activate",
        "  python image_separate.py FOLDER --output data/clean   FOLDER: image folders and their prediction JSONs;",
        "                                                        or sort into data/clean/fake and data/clean/real",
        "  python train_model.py                                 data/clean -> models/my_trained_model.h5",
        "  python predict_and_save_json.py --input FOLDER        -> predictions.json",
    ]


def _mended(clean: Path) -> int:
    """Counts the images that came from one class's folder and stand in the other's."""
    moved = [(clean / f"{NAMES[1 - label]}_images").glob(f"{raw}__*") for label, raw in FOLDERS.items()]
    return sum(1 for paths in moved for _ in paths)


def _right(truth: Path, answers: Path) -> tuple[int, int]:
    """Returns how many answers are right, and how many were asked for."""
    expected = {entry.key: entry.label for entry in predictions_json.read(truth).predictions}
    found = {entry.key: entry.label for entry in predictions_json.read(answers).predictions}
    return sum(found.get(key) == label for key, label in expected.items()), len(expected)
