"""Measure how many swapped labels are found, and what correcting them does to the F1 of a model trained on them.

    python -m benchmarks.label_errors SETS [--base MODEL] [--scratch DIR] [--parts suspects f1]

SETS holds cifake/test/ (and cifake/train/, whose copies in test/ are left out) and dualcue/ (of which only the 30 % are
used that the shipped base was not trained on). Folders of hard links with some images under the wrong class are made in
the scratch folder and removed again; SETS stays as it is. Two tables: the suspects for several shares of swapped
labels, each over five random choices; and, for a tenth, the F1 on other images of models trained before and after
image_separate.py applied the suspects, and with true labels.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from benchmarks._shared import ROOT, Table, new_parser, run_python, training_report
from fakereal import cli, runtime
from fakereal.dataset.near_duplicates import duplicate_groups, find_duplicates
from fakereal.dataset.scan import Dataset, Record, labels_of, scan
from fakereal.labels import NAMES, label_of_folder
from fakereal.preprocessing import Preprocessing

SHARES = (0.0, 0.05, 0.1, 0.2)
DRAWS = 5
IMAGES = 2_000  # of CIFAKE to look for wrong labels in, and as many others to measure F1 on
_TRAINING_SHARE = 0.7  # of a set's images, by `_position`: what bases before the public one were trained on
CNN = "--network cnn --image-size 32 --weights none --fine-tune all --epochs 15 --learning-rate 0.001".split()
TRAININGS = 3  # seeds of the small network


@dataclass(frozen=True)
class Sample:
    """One image and its true label."""

    path: Path
    label: int  # 0 fake, 1 real


@dataclass(frozen=True)
class Set:
    """Images to look for wrong labels in, and others to measure F1 on."""

    name: str
    audited: tuple[Sample, ...]
    test: tuple[Sample, ...]


@dataclass
class Features:
    """Features of images by the base, each image computed once."""

    base: str
    rows: dict[str, np.ndarray] = field(default_factory=dict)  # by the SHA-256 of the file

    def of(self, records: Sequence[Record]) -> np.ndarray:
        """Return the features: float32 (n, d)."""
        from fakereal.audit.label_errors import extract_features

        new = [record for record in records if record.sha256 not in self.rows]
        if new:
            self.rows |= zip((record.sha256 for record in new), extract_features(new, self.base)[0], strict=True)
        return np.stack([self.rows[record.sha256] for record in records])


def main() -> int:
    """Print the tables; return the exit code."""
    parser = new_parser(__doc__)
    parser.add_argument("sets", type=Path, metavar="SETS")
    parser.add_argument(
        "--base", default="pretrained", metavar="MODEL", help="the model file whose base gives the features"
    )
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="on the disk of SETS, so that links can be made")
    parser.add_argument("--parts", nargs="+", choices=("suspects", "f1"), default=("suspects", "f1"), help="tables")
    options = parser.parse_args()
    runtime.start_keras()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch = Path(folder)
        sets = (cifake(options.sets / "cifake"), unseen("dualcue", options.sets / "dualcue"))
        features_cache = Features(options.base)
        if "suspects" in options.parts:
            suspects_table(sets, features_cache, scratch)
        if "f1" in options.parts:
            f1_table(sets[0], features_cache, scratch)
    return 0


def cifake(root: Path) -> Set:
    """Sample images of the official test part; the base was trained on the rest."""
    seen = set(
        runtime.parallel_map(_pixels, _files(root / "train" / "FAKE"), "reading images")
    )  # no real one is in both
    sampled = []
    for folder in ("FAKE", "REAL"):
        files = _files(root / "test" / folder)
        random.Random(0).shuffle(files)
        fresh = (path for path in files if folder == "REAL" or _pixels(path) not in seen)
        sampled.append([Sample(next(fresh), label_of_folder(folder)) for _ in range(IMAGES)])
    half = IMAGES // 2
    audited, test = ([s for samples in sampled for s in samples[part]] for part in (slice(half), slice(half, None)))
    return Set("cifake", tuple(audited), tuple(test))


def _pixels(path: Path) -> bytes:
    return hashlib.sha256(Preprocessing(32).read(path)).digest()


def unseen(name: str, root: Path) -> Set:
    """Return the images of a set that the shipped base was not trained on: of the others it knows the labels."""
    files = [
        path for folder in ("fake", "real") for path in _files(root / folder) if _position(path) >= _TRAINING_SHARE
    ]
    return Set(name, tuple(Sample(path, label_of_folder(path.parent.name)) for path in files), ())


def _position(path: Path) -> float:
    """Return the number in [0, 1) by which the pretraining set was split."""
    return int.from_bytes(hashlib.sha256(path.read_bytes()).digest()[:8]) / 2**64


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def swapped(count: int, share: float, draw: int) -> np.ndarray:
    """Return which images get the wrong label: bool (count,)."""
    wrong = np.zeros(count, dtype=bool)
    rng = np.random.default_rng((draw, 4))  # not the seed of the trial, which would swap the same labels back
    wrong[rng.choice(count, round(share * count), replace=False)] = True
    return wrong


def link_set(samples: Sequence[Sample], wrong: np.ndarray, folder: Path) -> dict[str, bool]:
    """Link the images into class folders; return, by file name, which of them are in the wrong one."""
    names = {}
    for number, (sample, is_wrong) in enumerate(zip(samples, wrong, strict=True)):
        label = 1 - sample.label if is_wrong else sample.label
        name = f"{number:05}{sample.path.suffix}"
        (folder / NAMES[label]).mkdir(parents=True, exist_ok=True)
        _link(sample.path, folder / NAMES[label] / name)
        names[name] = bool(is_wrong)
    return names


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another disk
        shutil.copy(source, target)


def suspects_table(sets: Sequence[Set], features_cache: Features, scratch: Path) -> None:
    """Print a row for each set and share: mean and range over the random choices."""
    from fakereal.audit import label_errors

    titles = ("set", "swapped", "suspects", "recall", "precision", "expected wrong *", "AUC *", "with clean labels *")
    table = Table(*titles, "trial *: found / suspected")
    for each in sets:
        link_set(each.audited, swapped(len(each.audited), 0.0, 0), scratch / each.name)
        dataset = scan(scratch / each.name, Preprocessing())
        groups = duplicate_groups(dataset.records, find_duplicates(dataset.records))
        features = features_cache.of(dataset.records)
        labels = labels_of(dataset.records)
        for share in SHARES:
            rows = []
            for draw in range(DRAWS if share else 1):
                wrong = swapped(len(labels), share, draw)
                result = label_errors.score_labels(features, np.where(wrong, 1 - labels, labels), groups, 5, 0)
                rows.append((wrong, result))
            table.row(f"{each.name} ({len(labels):,})", *_cells(rows))
    print("* for the first random choice")


def _cells(rows: Sequence[tuple]) -> list[str]:
    wrong, first = rows[0]
    estimate = first.estimate
    low, high = estimate.interval
    trial = f"{estimate.trial.recall:.0%} / {estimate.trial.suspected / estimate.trial.untouched:.0%}"
    recalls = [np.mean(result.suspected[bad]) for bad, result in rows if bad.any()]
    precisions = [np.mean(bad[result.suspected]) for bad, result in rows if bad.any()]
    counts = [result.suspected.sum() for _, result in rows]
    found = [f"{wrong.sum():,}", f"{np.mean(counts):,.0f}", _with_range(recalls), _with_range(precisions)]
    expected = f"{estimate.expected:,} ({low:,} to {high:,})"
    return [*found, expected, f"{estimate.auc:.3f}", f"{estimate.clean_auc:.3f}", trial]


def _with_range(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1%} ({min(values):.1%} to {max(values):.1%})" if values else "-"


def f1_table(each: Set, features_cache: Features, scratch: Path) -> None:
    """Print the F1 before and after; the commands in between are those that a user would run."""
    before, after, true = scratch / "before", scratch / "after", scratch / "true"
    names = link_set(each.audited, swapped(len(each.audited), 0.1, 0), before / "train")
    link_set(each.audited, swapped(len(each.audited), 0.0, 0), true / "train")
    apply_suspects(before, after, features_cache.base, scratch / "label_errors", names)
    print()
    table = Table("labels", "F1, logistic head on the base", "F1, small network from scratch")
    for title, folder in (("a tenth swapped", before), ("after image_separate.py", after), ("true", true)):
        link_set(each.test, swapped(len(each.test), 0.0, 0), folder / "test")
        dataset = scan(folder, Preprocessing())
        scores = [f1_of_network(folder, scratch / "model.h5", seed) for seed in range(TRAININGS)]
        table.row(title, f"{f1_of_head(dataset, features_cache):.4f}", _with_range(scores))


def apply_suspects(before: Path, after: Path, base: str, folder: Path, names: dict[str, bool]) -> None:
    """Find the suspects in `before` and separate its training images by them into `after`."""
    from fakereal.audit import label_errors

    dataset = scan(before, Preprocessing())
    found = label_errors.find_label_errors(dataset, find_duplicates(dataset.records), base)
    right = sum(names[suspect.record.path.name] for suspect in found.suspects)
    print(f"\n{len(found.suspects)} suspects, {right} of them swapped; {sum(names.values())} were swapped")
    print(*label_errors.summary(found), sep="\n")
    label_errors.write_predictions(found, dataset, folder)
    places = [before / "train", "--predictions", folder / "train", "--output", after / "train", "--mode", "link"]
    run_python([ROOT / "image_separate.py", *places])
    for left in (after / "train").glob("separation_*"):
        left.unlink()


def f1_of_head(dataset: Dataset, features_cache: Features) -> float:
    """Return the macro F1 on the test split of a logistic regression on the base's features."""
    features = features_cache.of(dataset.records)
    labels = np.array([record.label for record in dataset.records])
    test = np.array([record.split == "test" for record in dataset.records])
    with threadpool_limits(1):
        head = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2_000))
        head.fit(features[~test], labels[~test])
    return float(f1_score(labels[test], head.predict(features[test]), average="macro"))


def f1_of_network(folder: Path, output: Path, seed: int) -> float:
    """Return the macro F1 on the test split of a small network that train_model.py trains."""
    more = ["--data", folder, "--output", output, "--seed", str(seed), *CNN]
    run_python([ROOT / "train_model.py", *more])
    return training_report(output)["metrics"]["test"]["f1_macro"]


if __name__ == "__main__":
    sys.exit(cli.run_cli(lambda argv: main()))
