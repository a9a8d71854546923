"""Goes the whole way with the demo set: the three scripts one after the other, as a user would type them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from fakereal import predictions_json
from fakereal.cli import EXIT_OK, EXIT_PARTIAL
from fakereal.data import demo
from fakereal.errors import FakeRealError
from fakereal.labels import NAMES

_HOME = Path(__file__).resolve().parents[2]  # where the scripts stand
_TRAINING = (
    f"--image-size {demo.IMAGE_SIZE_PX} --network cnn --weights none --fine-tune all --epochs 40 --batch-size 16"
)
"""The small network: without a pre-trained base, EfficientNet would need many more pictures and minutes."""


def run(folder: Path, seed: int) -> int:
    """Makes the set in `folder`, cleans it, trains, predicts, and says what came out.

    Returns:
        The exit code: 0, since whatever else a script ends with is raised.

    Raises:
        FakeRealError: the folder is not empty, or a script failed.
    """
    made = demo.make(folder, seed)
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


def _findings(made: demo.DemoSet, clean: Path, score: str, answers: Path) -> list[str]:
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
    moved = [(clean / f"{NAMES[1 - label]}_images").glob(f"{raw}__*") for label, raw in demo.FOLDERS.items()]
    return sum(1 for paths in moved for _ in paths)


def _right(truth: Path, answers: Path) -> tuple[int, int]:
    """Returns how many answers are right, and how many were asked for."""
    expected = {entry.key: entry.label for entry in predictions_json.read(truth).predictions}
    found = {entry.key: entry.label for entry in predictions_json.read(answers).predictions}
    return sum(found.get(key) == label for key, label in expected.items()), len(expected)
