"""Make a small demo set, and run the three scripts on it.

Real images are crops of the two photographs that scikit-learn ships. Fake images are other crops, rebuilt by an
up-sampling decoder such as generators end with, which leaves regular traces. Both are sampled, sized and saved alike,
so that only those traces tell them apart, and train, val, test and the unlabeled images come from separate regions of
the photographs. The result shows that everything works; it is no benchmark.
"""

from __future__ import annotations

import csv
import hashlib
import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fakereal import prediction_files, predictions_json
from fakereal.cli import EXIT_OK, SCRIPTS, command_line
from fakereal.dataset.split import COLUMNS
from fakereal.errors import ConfigError, DataError, FakeRealError
from fakereal.files import write_atomic
from fakereal.labels import FAKE, NAMES, REAL

IMAGE_SIZE_PX = 64
FOLDERS = {FAKE: "fake_demo_images", REAL: "real_demo_images"}
"""The raw folders; the `_preds.json` beside each has the true labels."""

_CELL_PX = 106  # the photographs, 640x427, hold 6x4 such squares; every image lies within one of them
_MIN_WINDOW_PX = 68  # windows are always reduced: enlarging leaves traces like those of a generator
_SWAPPED_SHARE = 0.12  # images in the wrong folder
_TRACE = 0.12  # how unevenly the decoder's kernel covers neighboring pixels
_HOME = Path(__file__).resolve().parents[2]  # where the scripts are
_TRAINING = f"--image-size {IMAGE_SIZE_PX} --network cnn --weights none --fine-tune all --epochs 40 --batch-size 16"
"""A small network: without pre-trained weights, EfficientNet would need many more images and minutes."""


@dataclass(frozen=True)
class _Region:
    """Squares of the photographs that images of one purpose are cut from."""

    name: str  # train, val, test: the splits of the labeled images; unlabeled: the images to predict
    squares: int  # of each photograph, 24 in total
    images: int  # of each class


_REGIONS = (
    _Region("train", 13, 400),
    _Region("val", 4, 80),
    _Region("test", 4, 80),
    _Region("unlabeled", 3, 50),
)


@dataclass(frozen=True)
class _Image:
    """An image before it has a file name."""

    region: str
    label: int  # the true one
    png: bytes


@dataclass(frozen=True)
class DemoSet:
    """A demo set on disk."""

    raw: Path  # the labeled images in two folders, some in the wrong one, and JSON files with the true labels
    split: Path  # manifest for --split: which of them are for train, val and test
    test: Path  # the unlabeled images
    truth: Path  # their labels, in a file apart
    labeled: int  # images in `raw`
    swapped: int  # of these, in the wrong folder
    unlabeled: int  # images in `test`


def make(folder: Path, seed: int = 0) -> DemoSet:
    """Write the demo set; the same seed gives the same bytes.

    Raises:
        ConfigError: a negative seed.
        DataError: the folder is not empty, or can't be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: expected a new or empty folder, got one with content: delete it or name another")
    if seed < 0:
        raise ConfigError(f"--seed: expected a whole number of at least 0, got {seed}")
    rng = np.random.default_rng(seed)
    images = list(_make_images(rng))
    images = [images[number] for number in rng.permutation(len(images))]
    labeled = [image for image in images if image.region != "unlabeled"]
    unlabeled = [image for image in images if image.region == "unlabeled"]
    demo = DemoSet(
        raw=folder / "raw",
        split=folder / "split.csv",
        test=folder / "test",
        truth=folder / "test_truth.json",
        labeled=len(labeled),
        swapped=round(len(labeled) * _SWAPPED_SHARE),
        unlabeled=len(unlabeled),
    )
    _write_labeled(demo, labeled)
    _write_numbered(demo.test, unlabeled, demo.truth)
    return demo


def _write_labeled(demo: DemoSet, images: list[_Image]) -> None:
    # The order is random already, so the first ones are as good as any for the wrong folder.
    folder_labels = [1 - image.label if number < demo.swapped else image.label for number, image in enumerate(images)]
    rows = []
    for label, name in FOLDERS.items():
        inside = [image for image, folder_label in zip(images, folder_labels, strict=True) if folder_label == label]
        inside.sort(key=lambda image: hashlib.sha256(image.png).digest())  # the swapped ones no longer first
        names = _write_numbered(demo.raw / name, inside, demo.raw / f"{name.removesuffix('_images')}_preds.json")
        rows += [_manifest_row(f"{name}__{file}", image) for file, image in zip(names, inside, strict=True)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    write_atomic(demo.split, text.getvalue().encode())


def _manifest_row(file: str, image: _Image) -> tuple[str, ...]:
    """Return the manifest's row for the place where image_separate.py will put the image."""
    truth = NAMES[image.label]
    return f"{truth}_images/{file}", hashlib.sha256(image.png).hexdigest(), truth, "", image.region, ""


def _write_numbered(folder: Path, images: list[_Image], truth: Path) -> list[str]:
    """Write 1.png, 2.png, ... and the JSON with their labels; return the names."""
    names = [f"{number}.png" for number in range(1, len(images) + 1)]
    try:
        folder.mkdir(parents=True)
        for name, image in zip(names, images, strict=True):
            (folder / name).write_bytes(image.png)
    except OSError as error:
        raise DataError(f"{folder}: the demo set can't be written: {error.strerror or error}") from error
    entries = [predictions_json.prediction_for(number, image.label) for number, image in enumerate(images, start=1)]
    predictions_json.write(truth, entries)
    return names


def _make_images(rng: np.random.Generator) -> Iterator[_Image]:
    from sklearn.datasets import load_sample_images  # takes a second to import

    kernel = _decoder_kernel(rng)
    squares = {region.name: [] for region in _REGIONS}
    for photograph in load_sample_images().images:
        shuffled = iter(rng.permutation(_squares(photograph)))
        for region in _REGIONS:
            squares[region.name] += [next(shuffled) for _ in range(region.squares)]
    for region in _REGIONS:
        for number in range(region.images):
            square = squares[region.name][number % len(squares[region.name])]
            yield _Image(region.name, REAL, _png(_crop(square, rng)))
            yield _Image(region.name, FAKE, _png(_rebuilt(_crop(square, rng), kernel, rng)))


def _squares(photograph: np.ndarray) -> np.ndarray:
    """Cut a photograph (height, width, 3) into squares that share no pixel: uint8 (n, _CELL_PX, _CELL_PX, 3)."""
    rows, columns = (length // _CELL_PX for length in photograph.shape[:2])
    cut = photograph[: rows * _CELL_PX, : columns * _CELL_PX].reshape(rows, _CELL_PX, columns, _CELL_PX, 3)
    return cut.swapaxes(1, 2).reshape(-1, _CELL_PX, _CELL_PX, 3)


def _crop(square: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a window of random size, place, orientation and brightness, reduced: float32 (64, 64, 3), 0..280."""
    side = int(rng.integers(_MIN_WINDOW_PX, _CELL_PX + 1))
    top, left = rng.integers(0, _CELL_PX - side + 1, size=2)
    window = square[top : top + side, left : left + side]
    if rng.random() < 0.5:
        window = window[:, ::-1]
    image = Image.fromarray(np.ascontiguousarray(window))
    image = image.resize((IMAGE_SIZE_PX, IMAGE_SIZE_PX), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32) * np.float32(rng.uniform(0.7, 1.1))


def _decoder_kernel(rng: np.random.Generator) -> np.ndarray:
    """Return the 3x3 kernel of a transposed convolution of stride 2, shape (3, 3, 3): row, column, color.

    It is the bilinear one, slightly off as trained kernels are, so that neighboring pixels get unequal sums: the
    checkerboard of Odena et al. (2016), https://distill.pub/2016/deconv-checkerboard/.
    """
    bilinear = np.outer((0.5, 1.0, 0.5), (0.5, 1.0, 0.5))[:, :, None]
    return bilinear * (1 + _TRACE * rng.choice((-1.0, 1.0), size=(3, 3, 3)))


def _rebuilt(image: np.ndarray, kernel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Reduce an image (64, 64, 3) to features of half its size and decode them: the same shape, with the traces."""
    half = IMAGE_SIZE_PX // 2
    features = image.reshape(half, 2, half, 2, 3).mean(axis=(1, 3))
    features += rng.normal(0, 2, size=features.shape)  # no decoder gets the exact features
    dilated = np.zeros((IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3))
    dilated[::2, ::2] = features
    padded = np.pad(dilated, ((1, 1), (1, 1), (0, 0)), mode="reflect")
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


def run_tour(folder: Path, seed: int) -> int:
    """Make the set in `folder`, clean it, train, predict, and print the results: the commands a user would type.

    Returns:
        The exit code 0; what else a script ends with is raised.

    Raises:
        FakeRealError: the folder is not empty, or a script failed.
    """
    made = make(folder, seed)
    print(f"{made.labeled} labeled images, {made.swapped} of them in the wrong folder, are in {made.raw}")
    clean, model, predictions = folder / "clean", folder / "model.h5", folder / "predictions.json"
    _script("separate", made.raw, "--output", clean, "--mode", "copy")
    data = ("--data", clean, "--output", model, "--split", made.split, "--seed", seed)
    score = _script("train", *data, *_TRAINING.split())
    _script("predict", "--input", made.test, "--model", model, "--output", predictions)
    print("\n".join(_results(made, clean, score, predictions)))
    return EXIT_OK


def _script(command: str, *arguments: object) -> str:
    """Print and run one of `cli.SCRIPTS`, print its output, and return the last line of it."""
    name, words = f"{SCRIPTS[command]}.py", [str(argument) for argument in arguments]
    print(f"\n$ {command_line(command, *words)}", flush=True)
    last = ""
    with subprocess.Popen([sys.executable, _HOME / name, *words], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    if process.returncode != EXIT_OK:
        raise FakeRealError(f"{name} ended with exit code {process.returncode}: its own message is above")
    return last


def _results(made: DemoSet, clean: Path, score: str, predictions: Path) -> list[str]:
    correct, total = _count_correct(made.truth, predictions)
    return [
        "",
        "Results",
        f"  labels      {_count_moved(clean)} of {made.swapped} images in the wrong folder are now in the right one",
        f"  training    {score}",
        f"  prediction  {correct} of {total} unlabeled images correct ({correct / total:.0%})",
        "The test and the unlabeled images come from parts of the photographs that were not used for training. Still,",
        "this is a demo, no benchmark: it uses two photographs and one simple decoder, and says nothing of generators.",
        "",
        "With your own images",
        *(["  . .venv/bin/activate"] if Path(".venv/bin/activate").is_file() else []),
        f"  {command_line('separate', 'FOLDER', '--output', 'data/clean')}",
        "    FOLDER: image folders and their prediction JSONs; or sort into data/clean/fake and data/clean/real",
        f"  {command_line('train')}",
        "    data/clean -> models/my_trained_model.h5",
        f"  {command_line('predict', 'FOLDER', '--output', 'predictions.json')}",
    ]


def _count_moved(clean: Path) -> int:
    """Count the images that came from the folder of one class and are now in that of the other."""
    moved = [(clean / f"{NAMES[1 - label]}_images").glob(f"{raw}__*") for label, raw in FOLDERS.items()]
    return sum(1 for paths in moved for _ in paths)


def _count_correct(truth: Path, predictions: Path) -> tuple[int, int]:
    """Return the number of correct predictions, and of predictions asked for."""
    expected = {entry.key: entry.label for entry in prediction_files.read(truth).predictions}
    found = {entry.key: entry.label for entry in prediction_files.read(predictions).predictions}
    return sum(found.get(key) == label for key, label in expected.items()), len(expected)
