"""Judges a detector on labelled pictures and writes it down: report.html, metrics.json, predictions.csv."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakereal.dataset.neutralize import NOTE
from fakereal.dataset.scan import Record, scan, skipped_lines
from fakereal.dataset.split import SPLITS, Split, fingerprint
from fakereal.engines import engine as engines_engine
from fakereal.engines.formats import Network
from fakereal.errors import DataError
from fakereal.evaluation import labelled, plots, report
from fakereal.evaluation.labelled import EvaluatedImages, predict_records
from fakereal.evaluation.report import Subject
from fakereal.files import sha256_of, write_atomic
from fakereal.html import percent
from fakereal.labels import FAKE, NAMES, REAL
from fakereal.model.model_file import Detector
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import log
from fakereal.training import cache as training_cache

CHOICES = ("test", "all")
"""Which pictures of a folder that holds train/, val/ and test/ are judged."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What the user asked for."""

    model: Path
    data: Path  # a labelled folder
    output: Path | None = None  # None: a folder beside the model, named after both
    split: str = "test"  # of folders that name splits: test | all
    seen: bool = False  # also the pictures that the model learnt from or was chosen on
    resave_images: int | None = None  # at most so many are saved again; None: all; 0: none
    batch_size: int = 32
    engine: str = "auto"  # one of `cli.ENGINES`
    foreign_model: bool = False  # the model may be a plain Keras file of another program
    command: str = ""  # as the user gave it


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation leaves behind."""

    tree: dict[str, Any]  # metrics.json
    folder: Path  # of the three files
    skipped: int  # pictures that could not be read, or whose label is in doubt


def evaluate(config: EvaluateConfig) -> EvaluationResult:
    """Judges a model file on a labelled folder.

    Raises:
        FakeRealError: with one line that says what to do; nothing is written then.
    """
    folder = config.output or _folder_beside(config.model, config.data)
    opened = engines_engine.open_network(config.model, config.engine, config.foreign_model)
    detector = opened.load_detector()
    log(opened.description)
    dataset = scan(config.data, Preprocessing())
    for line in skipped_lines(dataset):
        log(line)
    records, words = _of_split(dataset.records, config.split)
    records, doubtful = _without_doubtful(records)
    records, notes = _without_seen(records, dataset.records, config, detector.metadata.data.get("fingerprint"))
    _check(records, config)
    skipped = sum(item.failed for item in dataset.skipped) + len(doubtful)
    if skipped:
        notes.append(f"Left out: {skipped:,} files that can't be read, or that stand in both classes.")
    subject = Subject(config.model.name, opened.model_sha256, str(config.data), words, config.command, tuple(notes))
    metadata, limit = detector.metadata, config.resave_images
    judged = predict_records(
        opened.network, metadata.preprocessing, dataset.root, records, opened.engine, config.batch_size, limit,
        metadata.config.seed,
    )  # fmt: skip
    tree = _write(folder, detector, judged, subject)
    return EvaluationResult(tree, folder, skipped)


def _folder_beside(model: Path, data: Path) -> Path:
    """Returns the folder for a report where the user names none; one on other pictures is never replaced."""
    folder = model.with_name(f"{model.stem}_on_{data.resolve().name}")
    try:
        before = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["subject"]["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return folder  # no report is there, or none that is whole
    if Path(before).resolve() != data.resolve():
        raise DataError(f"{folder}: expected no report there, found one on {before}: name another folder with --output")
    return folder


def after_training(detector: Detector, output: Path, folder: Path, root: Path, split: Split) -> dict[str, Any]:
    """Writes the same report about a run's own test pictures into its folder, and the picture of its history.

    Args:
        detector: what was trained.
        output: its file, which is written already.
        folder: of the run's records.
        root: the folder of the pictures.
        split: how they were divided.
    """
    config = detector.metadata.config
    command = ["python", "train_model.py", "--config", str(folder / "config.yaml"), "--output", str(output)]
    subject = Subject(output.name, sha256_of(output), str(root), "the test split", shlex.join(command))
    write_atomic(folder / "learning_curve.png", plots.png(lambda axes: plots.history(axes, detector.metadata.history)))
    preprocessing, limit = detector.metadata.preprocessing, config.report.resave_images
    network, engine = _worth_its_start(detector, output, labelled.count(len(split.test), limit))
    # A head on features may learn in batches that are too large for the whole network
    batch_size = min(config.training.batch_size, EvaluateConfig.batch_size)
    judged = predict_records(network, preprocessing, root, split.test, engine, batch_size, limit, config.seed)
    return _write(folder, detector, judged, subject)


def _worth_its_start(detector: Detector, output: Path, pictures: int) -> tuple[Network, str]:
    """Returns what judges so many pictures soonest, and its name: for many, the engine that prediction will take."""
    cache = training_cache.folder_of(detector.metadata.config.data)
    if pictures < engines_engine.MIN_IMAGES_TO_CONVERT or cache is None:
        return detector, engines_engine.keras_version()
    opened = engines_engine.open_network(output, detector=detector, cache=cache)
    return opened.network, opened.engine


def _write(folder: Path, detector: Detector, judged: EvaluatedImages, subject: Subject) -> dict[str, Any]:
    tree = report.report_figures(judged, detector, subject)
    write_atomic(folder / "metrics.json", (json.dumps(tree, indent=1, allow_nan=False) + "\n").encode())
    write_atomic(folder / "predictions.csv", _csv(report.figure_rows(judged, detector.metadata.decision)))
    report.write_html(folder / "report.html", tree, judged, detector)
    return tree


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")


def _of_split(records: Sequence[Record], choice: str) -> tuple[list[Record], str]:
    """Returns the pictures of the test folders where there are such, else all."""
    test = [record for record in records if record.split == "test"]
    if choice == "test" and test:
        return test, "those of its test folders"
    return list(records), "all"


def _without_doubtful(records: list[Record]) -> tuple[list[Record], list[Record]]:
    labels = defaultdict(set)
    for record in records:
        labels[record.content].add(record.label)
    doubtful = [record for record in records if len(labels[record.content]) > 1]
    for record in doubtful:
        log(f"left out: the same picture is labelled fake and real ({record.path})")
    return [record for record in records if len(labels[record.content]) == 1], doubtful


def _without_seen(
    records: list[Record], scanned: Sequence[Record], config: EvaluateConfig, trained_on: str | None
) -> tuple[list[Record], list[str]]:
    """Leaves out what the model learnt from or was chosen on, where its run's records tell.

    That is a matter of what a picture shows: another file of the same pixels has been seen too.
    """
    manifest = config.model.with_name(f"{config.model.stem}_run") / "split.csv"
    if not manifest.is_file():
        return records, ["Not known: which of these pictures the model has learnt from; the record of its training"
                         f" ({manifest.name}) is not beside it."]  # fmt: skip
    with open(manifest, encoding="utf-8", errors="surrogateescape", newline="") as file:
        known = [row for row in csv.DictReader(file) if row.get("split") in SPLITS and row.get("label") in NAMES]
    seen = {row.get("sha256") for row in known if row["split"] != "test"}
    doubt = []
    if fingerprint((row.get("sha256"), row.get("label"), row["split"]) for row in known) != trained_on:
        doubt = [f"Not known for sure which of these pictures the model has learnt from: {manifest.name} beside it is"
                 " the record of another training, or was changed."]  # fmt: skip
        log(f"warning: {doubt[0]}")
    shown = {record.content for record in scanned if record.sha256 in seen}
    unseen = [record for record in records if record.content not in shown]
    count = len(records) - len(unseen)
    if not count:
        if (config.data / NOTE).is_file():
            doubt.append("Not known: which of these pictures the model has learnt from, as a neutral copy has files of"
                         " its own.")  # fmt: skip
            log(f"warning: {doubt[-1]}")
        return records, doubt
    if config.seen:
        flattering = f"{count:,} of these pictures trained the model or chose its threshold: the figures flatter."
        return records, [flattering, *doubt]
    log(f"left out {count:,} pictures that the model learnt from or was chosen on (--seen judges them too)")
    return unseen, [f"Left out: {count:,} pictures that the model learnt from or was chosen on.", *doubt]


def _check(records: Sequence[Record], config: EvaluateConfig) -> None:
    counts = [sum(record.label == label for record in records) for label in (FAKE, REAL)]
    if not all(counts):
        raise DataError(
            f"{config.data}: expected fake and real pictures that the model has not seen, found {counts[FAKE]} fake and"
            f" {counts[REAL]} real: add some, or --seen to judge the others too"
        )


def lines(tree: dict[str, Any]) -> list[str]:
    """Returns the main figures for people, F1 last."""
    metrics, band, data = tree["metrics"], tree["band"], tree["data"]
    found = [f"{data['images']:,} pictures: {data['fake']:,} fake, {data['real']:,} real"]
    for key in ("accuracy", "roc_auc", "average_precision", "f1_fake", "f1_real"):
        found.append(_line(report.FIGURES[key], metrics[key], metrics["intervals"][key]))
    error = {name: part["expected_calibration_error"] for name, part in tree["calibration"].items()}
    found.append(f"calibration error          {error['after']:.4f}  ({error['before']:.4f} before temperature scaling)")
    outside = percent(band["accuracy_outside"])
    found.append(f"verdicts                   {band['coverage']:.1%} not “uncertain”, {outside} of those right")
    for name, row in ((tree["resaves"] or {}).get("saved_again") or {}).items():
        share = row["flipped"] / tree["resaves"]["images"]
        words = report.RESAVE_NAMES[name]
        found.append(f"  {words:24} {row['accuracy']:.4f}  accuracy, {share:.1%} of the labels flipped")
    return [*found, _line(report.FIGURES["f1_macro"], metrics["f1_macro"], metrics["intervals"]["f1_macro"])]


def _line(words: str, value: float, interval: Sequence[float]) -> str:
    return f"{words:26} {value:.4f}  (95 % interval {interval[0]:.4f} to {interval[1]:.4f})"
