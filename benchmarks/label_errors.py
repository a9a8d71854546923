"""How many swapped labels are found, and what separating the pictures accordingly does to a model's F1.

    python -m benchmarks.label_errors SETS [--base MODEL] [--scratch DIR] [--parts suspects f1]

SETS holds cifake/test/ (and cifake/train/, whose copies in test/ are left out) and dualcue/ (of which 30 % were kept
from the shipped base; only these are judged). Folders of hard links with
some pictures under the wrong class are made in the scratch folder, and are taken away again; SETS stays as it is.
Prints two tables: the suspects for several shares of swapped labels, over five draws of them; and, for a tenth, the F1
on other pictures of models trained before and after image_separate.py applied the suspects, and with true labels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from fakereal import cli, runtime
from fakereal.dataset.near_duplicates import duplicate_groups, find_duplicates
from fakereal.dataset.scan import Dataset, Record, labels_of, scan
from fakereal.errors import FakeRealError
from fakereal.labels import NAMES, label_of_folder
from fakereal.preprocessing import Preprocessing
from tools.assemble_pretraining_set import SHARES as SHARES_LEARNT

ROOT = Path(__file__).resolve().parents[1]
SHARES = (0.0, 0.05, 0.1, 0.2)
DRAWS = 5
PICTURES = 2_000  # of CIFAKE to be judged, and as many others to measure F1 on
CNN = "--network cnn --image-size 32 --weights none --fine-tune all --epochs 15 --learning-rate 0.001".split()
TRAININGS = 3  # seeds of the small network


@dataclass(frozen=True)
class Picture:
    """One picture and what it truly is."""

    path: Path
    label: int  # 0 fake, 1 real


@dataclass(frozen=True)
class Set:
    """Pictures to be judged, and others to measure on."""

    name: str
    judged: tuple[Picture, ...]
    test: tuple[Picture, ...]


@dataclass
class Looks:
    """What the base makes of pictures, each looked at once."""

    base: str
    rows: dict[str, np.ndarray] = field(default_factory=dict)  # by the SHA-256 of the file

    def of(self, records: Sequence[Record]) -> np.ndarray:
        """Returns the features: float32 (n, d)."""
        from fakereal.audit.label_errors import extract_features

        new = [record for record in records if record.sha256 not in self.rows]
        if new:
            self.rows |= zip((record.sha256 for record in new), extract_features(new, self.base), strict=True)
        return np.stack([self.rows[record.sha256] for record in records])


def main() -> int:
    """Prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path, metavar="SETS")
    parser.add_argument("--base", default="pretrained", metavar="MODEL", help="the model file whose base looks")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="on the disk of SETS, so that links can be made")
    parser.add_argument("--parts", nargs="+", choices=("suspects", "f1"), default=("suspects", "f1"), help="tables")
    options = parser.parse_args()
    runtime.start_keras()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch = Path(folder)
        sets = (cifake(options.sets / "cifake"), unseen("dualcue", options.sets / "dualcue"))
        looks = Looks(options.base)
        if "suspects" in options.parts:
            suspects_table(sets, looks, scratch)
        if "f1" in options.parts:
            f1_table(sets[0], looks, scratch)
    return 0


def cifake(root: Path) -> Set:
    """Draws pictures of the official test part; the base was trained on the rest."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        seen = set(pool.map(_pixels, _files(root / "train" / "FAKE")))  # no real one stands in both
    drawn = []
    for folder in ("FAKE", "REAL"):
        files = _files(root / "test" / folder)
        random.Random(0).shuffle(files)
        fresh = (path for path in files if folder == "REAL" or _pixels(path) not in seen)
        drawn.append([Picture(next(fresh), label_of_folder(folder)) for _ in range(PICTURES)])
    half = PICTURES // 2
    judged, test = ([p for pictures in drawn for p in pictures[part]] for part in (slice(half), slice(half, None)))
    return Set("cifake", tuple(judged), tuple(test))


def _pixels(path: Path) -> bytes:
    return hashlib.sha256(Preprocessing(32).read(path)).digest()


def unseen(name: str, root: Path) -> Set:
    """Takes those pictures of a set that the shipped base did not learn from: of the others it knows the labels."""
    files = [path for folder in ("fake", "real") for path in _files(root / folder) if _draw(path) >= SHARES_LEARNT[0]]
    return Set(name, tuple(Picture(path, label_of_folder(path.parent.name)) for path in files), ())


def _draw(path: Path) -> float:
    """Returns the number in [0, 1) by which the pretraining set was divided."""
    return int.from_bytes(hashlib.sha256(path.read_bytes()).digest()[:8]) / 2**64


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def swapped(count: int, share: float, draw: int) -> np.ndarray:
    """Returns which pictures get the wrong label: bool (count,)."""
    wrong = np.zeros(count, dtype=bool)
    rng = np.random.default_rng((draw, 4))  # not that of the trial, which would swap the very labels back
    wrong[rng.choice(count, round(share * count), replace=False)] = True
    return wrong


def link_set(pictures: Sequence[Picture], wrong: np.ndarray, folder: Path) -> dict[str, bool]:
    """Links the pictures into class folders; returns, by file name, which of them lie in the wrong one."""
    names = {}
    for number, (picture, is_wrong) in enumerate(zip(pictures, wrong, strict=True)):
        label = 1 - picture.label if is_wrong else picture.label
        name = f"{number:05}{picture.path.suffix}"
        (folder / NAMES[label]).mkdir(parents=True, exist_ok=True)
        _link(picture.path, folder / NAMES[label] / name)
        names[name] = bool(is_wrong)
    return names


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another disk
        shutil.copy(source, target)


def suspects_table(sets: Sequence[Set], looks: Looks, scratch: Path) -> None:
    """Prints a row for each set and share: what is found, as the mean and the range over the draws."""
    from fakereal.audit import label_errors

    titles = ("set", "swapped", "suspects", "recall", "precision", "expected wrong *", "AUC *", "with sound labels *")
    print("|", " | ".join((*titles, "trial *: found / suspected")), "|\n" + "|---" * (len(titles) + 1) + "|")
    for each in sets:
        link_set(each.judged, swapped(len(each.judged), 0.0, 0), scratch / each.name)
        dataset = scan(scratch / each.name, Preprocessing())
        groups = duplicate_groups(dataset.records, find_duplicates(dataset.records))
        features = looks.of(dataset.records)
        labels = labels_of(dataset.records)
        for share in SHARES:
            rows = []
            for draw in range(DRAWS if share else 1):
                wrong = swapped(len(labels), share, draw)
                judged = label_errors.score_labels(features, np.where(wrong, 1 - labels, labels), groups, 5, 0)
                rows.append((wrong, judged))
            print(_row(f"{each.name} ({len(labels):,})", rows), flush=True)
    print("* in the first draw")


def _row(name: str, rows: Sequence[tuple]) -> str:
    wrong, first = rows[0]
    estimate = first.estimate
    low, high = estimate.interval
    trial = f"{estimate.trial.recall:.0%} / {estimate.trial.suspected / estimate.trial.untouched:.0%}"
    recalls = [np.mean(judged.suspected[bad]) for bad, judged in rows if bad.any()]
    precisions = [np.mean(bad[judged.suspected]) for bad, judged in rows if bad.any()]
    counts = [judged.suspected.sum() for _, judged in rows]
    return (
        f"| {name} | {wrong.sum():,} | {np.mean(counts):,.0f} | {_spread(recalls)} | {_spread(precisions)}"
        f" | {estimate.expected:,} ({low:,} to {high:,}) | {estimate.auc:.3f} | {estimate.clean_auc:.3f} | {trial} |"
    )


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1%} ({min(values):.1%} to {max(values):.1%})" if values else "-"


def f1_table(each: Set, looks: Looks, scratch: Path) -> None:
    """Prints the F1 before and after; the very commands that a user would give do the work between."""
    before, after, true = scratch / "before", scratch / "after", scratch / "true"
    names = link_set(each.judged, swapped(len(each.judged), 0.1, 0), before / "train")
    link_set(each.judged, swapped(len(each.judged), 0.0, 0), true / "train")
    apply_suspects(before, after, looks.base, scratch / "label_errors", names)
    print("\n| labels | F1, logistic head on the base | F1, small network from scratch |\n|---|---|---|")
    for title, folder in (("a tenth swapped", before), ("after image_separate.py", after), ("true", true)):
        link_set(each.test, swapped(len(each.test), 0.0, 0), folder / "test")
        dataset = scan(folder, Preprocessing())
        scores = [f1_of_network(folder, scratch / "model.h5", seed) for seed in range(TRAININGS)]
        print(f"| {title} | {f1_of_head(dataset, looks):.4f} | {_spread(scores)} |", flush=True)


def apply_suspects(before: Path, after: Path, base: str, folder: Path, names: dict[str, bool]) -> None:
    """Finds the suspects of `before` and separates its training pictures by them into `after`."""
    from fakereal.audit import label_errors

    dataset = scan(before, Preprocessing())
    found = label_errors.find_label_errors(dataset, find_duplicates(dataset.records), base)
    right = sum(names[suspect.record.path.name] for suspect in found.suspects)
    print(f"\n{len(found.suspects)} suspects, {right} of them swapped ones; {sum(names.values())} were swapped")
    print(*label_errors.summary(found), sep="\n")
    label_errors.write_predictions(found, dataset, folder)
    places = [before / "train", "--predictions", folder / "train", "--output", after / "train", "--mode", "link"]
    subprocess.run([sys.executable, ROOT / "image_separate.py", *places], check=True)
    for left in (after / "train").glob("separation_*"):
        left.unlink()


def f1_of_head(dataset: Dataset, looks: Looks) -> float:
    """Returns the macro F1 on the test split of a logistic regression on the base's features."""
    features = looks.of(dataset.records)
    labels = np.array([record.label for record in dataset.records])
    test = np.array([record.split == "test" for record in dataset.records])
    with threadpool_limits(1):
        head = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2_000))
        head.fit(features[~test], labels[~test])
    return float(f1_score(labels[test], head.predict(features[test]), average="macro"))


def f1_of_network(folder: Path, output: Path, seed: int) -> float:
    """Returns the macro F1 on the test split of a small network that train_model.py trains."""
    more = ["--data", folder, "--output", output, "--seed", str(seed), *CNN]
    done = subprocess.run([sys.executable, ROOT / "train_model.py", *more], capture_output=True, text=True)
    if done.returncode not in (cli.EXIT_OK, cli.EXIT_PARTIAL):  # partial: a picture of CIFAKE stands there twice
        raise FakeRealError(f"train_model.py ended with {done.returncode}: {done.stderr[-500:]}")
    report = json.loads((output.with_name(f"{output.stem}_run") / "report.json").read_text())
    return report["metrics"]["test"]["f1_macro"]


if __name__ == "__main__":
    sys.exit(cli.run_cli(lambda argv: main()))
