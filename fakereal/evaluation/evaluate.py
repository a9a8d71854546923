"""Evaluate a model on labeled images: predict them as prediction does, also re-saved, and measure the results.

`evaluation.selection` picks the images, `predict.pipeline` gives p_real for each, `model.metrics` the figures. The
result is one tree of plain values, `metrics.json`, from which `evaluation.report` makes everything people read. The
network alone is measured: what a file claims about its origin never counts, and an image unlike the training images
keeps the verdict of its p_fake.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fakereal.dataset.layout import LabelRules
from fakereal.dataset.scan import NO_RULES, Record, labels_of, scan, scanned_bytes, skipped_lines
from fakereal.dataset.split import Split
from fakereal.engines import engine as engines_engine
from fakereal.engines.formats import Network
from fakereal.errors import DataError, ModelFileError
from fakereal.evaluation.selection import select
from fakereal.files import relative_name, sha256_of
from fakereal.labels import FAKE, NAMES, REAL
from fakereal.model import metrics
from fakereal.model.calibration import DECIMALS, DecisionRule, calibrate, calibrated_p_fake, confidence, verdicts
from fakereal.model.calibration import labels as labels_from
from fakereal.model.foreign import ForeignModel, OutputSpread
from fakereal.model.metadata import Metadata, beside
from fakereal.model.metrics import measure_any, measure_by_source, swapped_labels
from fakereal.model.model_file import Detector
from fakereal.model.resaves import REPORT_RESAVES
from fakereal.predict.pipeline import RawPrediction, predict_batches
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import check_interrupt, interrupts_at_checks_only, log, progress_bar

MISTAKES = 24
"""Wrong labels listed in the report, most confident first."""


@dataclass(frozen=True)
class EvaluateConfig:
    """The options of `fakereal evaluate`."""

    model: Path
    data: Path  # a labeled folder
    output: Path | None = None  # None: a folder beside the model, named after model and data
    split: str = "test"  # of a folder with train/, val/ and test/: "test" or "all"
    seen: bool = False  # include images that the model was trained or tuned on
    resave_images: int | None = None  # random sample that is re-saved too; None: all; 0: none
    batch_size: int = 32
    engine: str = "auto"  # one of `cli.ENGINES`
    foreign: ForeignModel | None = None  # accept a Keras file of another program, used as this says
    rules: LabelRules = NO_RULES  # what the user says about the folders
    command: str = ""  # the command line, for the report
    force: bool = False  # replace an earlier report without a backup


@dataclass(frozen=True)
class Subject:
    """Which model was evaluated on which images, as text for the report."""

    model: str  # file name
    model_sha256: str
    data: str  # the folder
    pictures: str  # which of its images; the name is a key of metrics.json
    command: str  # reproduces the report
    notes: tuple[str, ...] = ()  # warnings for the reader: what was left out, what is unknown


@dataclass(frozen=True)
class EvaluatedImages:
    """Labeled images and the network's outputs for them."""

    root: Path  # the folder that reported paths are relative to
    records: tuple[Record, ...]
    p_real: np.ndarray  # float64 (n,), uncalibrated, rounded to `DECIMALS`
    engine: str  # name and version of what ran the network
    resaved_of: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # (m,): indices of re-saved images
    resaved: dict[str, np.ndarray] = field(default_factory=dict)  # re-save name -> p_real (m,)

    @property
    def labels(self) -> np.ndarray:
        """The labels, int64 (n,)."""
        return labels_of(self.records)


@dataclass(frozen=True)
class EvaluationResult:
    """Everything that a report needs."""

    tree: dict[str, Any]  # metrics.json
    images: EvaluatedImages
    detector: Detector
    folder: Path  # where the report goes
    skipped: int = 0  # files left out because they are unreadable or in both classes


def evaluate(config: EvaluateConfig) -> EvaluationResult:
    """Evaluate a model file on a labeled folder; nothing is written yet.

    Raises:
        FakeRealError: in one line, with what to do.
    """
    folder = config.output or _default_folder(config.model, config.data)
    opened = engines_engine.open_network(config.model, config.engine, config.foreign)
    detector = Detector(None, opened.metadata) if opened.is_exported else opened.load_detector()
    log(opened.description)
    dataset = scan(config.data, Preprocessing(), config.rules, one_class=True)
    for line in skipped_lines(dataset):
        log(line)
    metadata = detector.metadata
    selected = select(dataset, config.split, config.model, metadata.data.get("fingerprint"), config.seen)
    images = predict_records(
        opened.network, metadata.preprocessing, dataset.root, selected.records, opened.engine, config.batch_size,
        config.resave_images, metadata.config.seed,
    )  # fmt: skip
    subject = Subject(config.model.name, opened.model_sha256, str(config.data), selected.description, config.command,
                      selected.notes)  # fmt: skip
    tree = metrics_tree(images, detector, subject)
    for doubt in _doubts(tree["metrics"], images, metadata):
        log(f"warning: {doubt}")
        tree["subject"]["notes"] = (*tree["subject"]["notes"], f"Suspicious: {doubt}.")
    return EvaluationResult(tree, images, detector, folder, selected.skipped)


def _doubts(figures: dict[str, Any], images: EvaluatedImages, metadata: Metadata) -> list[str]:
    """Return what makes the figures suspicious: swapped labels, or pixels in a range that the model doesn't know."""
    doubts = []
    if metadata.foreign and (doubt := OutputSpread.of(images.p_real).doubt):
        doubts.append(doubt)
    if "only" not in figures and (swapped := swapped_labels(figures["roc_auc"], figures["intervals"]["roc_auc"])):
        other = "; a model that means the other class needs another --foreign-output"
        doubts.append(f"the labels seem to be swapped against this model: {swapped}{other if metadata.foreign else ''}")
    return doubts


def _default_folder(model: Path, data: Path) -> Path:
    """Return the report folder beside the model.

    Raises:
        DataError: it holds a report on another data folder, which must not be replaced.
    """
    folder = beside(model, f"{model.stem}_on_{data.resolve().name}")
    try:
        before = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["subject"]["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return folder  # no report, or no complete one
    if Path(before).resolve() != data.resolve():
        raise DataError(f"{folder}: already holds a report on {before}: choose another folder with --output")
    return folder


@dataclass(frozen=True)
class KnownOutputs:
    """What a training already knows about its test images: the report computes none of it again."""

    p_real: np.ndarray  # of the test images in their order, float (n,), uncalibrated
    network: Network | None = None  # for further images; None: the fastest engine for the model file
    engine: str = ""  # name and version of what runs that network


def evaluate_test_split(
    detector: Detector, output: Path, folder: Path, root: Path, split: Split, cache: Path | None, known: KnownOutputs
) -> EvaluationResult:
    """Evaluate a freshly trained model on its own test split.

    Args:
        detector: the trained model.
        output: its file, already written.
        folder: of the training run.
        root: the folder of the images.
        split: the split of the training run.
        cache: the folder that converted models are kept in; None: never convert.
        known: the outputs for the test images; only the re-saved images are predicted.
    """
    config = detector.metadata.config
    command = ["python", "train_model.py", "--config", str(folder / "config.yaml"), "--output", str(output)]
    caveat = detector.metadata.data.get("base_caveat")
    notes = (f"Optimistic: {caveat}",) if caveat else ()
    subject = Subject(output.name, sha256_of(output), str(root), "the test split", shlex.join(command), notes)
    preprocessing, limit = detector.metadata.preprocessing, config.report.resave_images
    network, engine = known.network, known.engine
    if network is None:
        network, engine = _fastest_network(detector, output, passes(len(split.test), limit, preprocessing), cache)
    # A head on cached features may train in batches that are too large for the whole network
    batch_size = min(config.training.batch_size, EvaluateConfig.batch_size)
    images = predict_records(
        network, preprocessing, root, split.test, engine, batch_size, limit, config.seed, known.p_real
    )
    tree = metrics_tree(images, detector, subject)
    tree["unseen_sources"] = detector.metadata.metrics.get("unseen_sources")
    return EvaluationResult(tree, images, detector, folder)


def _fastest_network(detector: Detector, output: Path, count: int, cache: Path | None) -> tuple[Network, str]:
    """Return the fastest network for this many images, and its engine's name: converting pays off only for many."""
    if count < engines_engine.MIN_IMAGES_TO_CONVERT or cache is None:
        return detector, engines_engine.keras_version()
    opened = engines_engine.open_network(output, detector=detector, cache=cache)
    return opened.network, opened.engine


def passes(images: int, resave_images: int | None, preprocessing: Preprocessing) -> int:
    """Return how many arrays the network sees for the table of re-saves, with crops, at most."""
    resaved = images if resave_images is None else min(images, resave_images)
    return resaved * (1 + len(REPORT_RESAVES)) * (1 + preprocessing.crops)


@dataclass(frozen=True, slots=True)
class _LabeledImage:
    """A record as a `pipeline.ImageSource`, which is refused where its file has changed since the scan."""

    record: Record
    problem: ClassVar[None] = None
    sequential: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return str(self.record.path)

    def open(self) -> bytes:
        return scanned_bytes(self.record)

    def stamp(self) -> None:
        return None


def predict_records(
    network: Network,
    preprocessing: Preprocessing,
    root: Path,
    records: Sequence[Record],
    engine: str,
    batch_size: int = 32,
    resave_images: int | None = None,
    seed: int = 0,
    known: np.ndarray | None = None,
) -> EvaluatedImages:
    """Predict labeled images with the pipeline of prediction, and a sample of them also after each re-save.

    Args:
        network: returns p_real.
        preprocessing: the network's own.
        root: the folder that the records come from.
        records: the images.
        engine: name and version of what runs the network, for the report.
        batch_size: images per network call.
        resave_images: size of the random sample that is re-saved; None: all; 0: none.
        seed: of that sample.
        known: p_real of all images, float (n,), where it was computed before; then only the sample is predicted.

    Raises:
        DataError: an image vanished or changed since the scan.
        ModelFileError: the network returned something else than a probability.
    """
    items = [_LabeledImage(record) for record in records]
    chosen = _sample(len(items), resave_images, seed)
    again = _predict([items[n] for n in chosen], network, preprocessing, batch_size, REPORT_RESAVES)
    if known is None:
        others = np.setdiff1d(np.arange(len(items)), chosen)
        plain = _predict([items[n] for n in others], network, preprocessing, batch_size)
        p_real = np.empty(len(items))
        for number, prediction in zip([*others, *chosen], [*plain, *again], strict=True):
            p_real[number] = prediction.p_real
    else:
        p_real = np.round(np.asarray(known, np.float64), DECIMALS)
    columns = np.array([prediction.variants_p_real for prediction in again]).T  # one for each of REPORT_RESAVES
    resaved = dict(zip(REPORT_RESAVES, columns, strict=True)) if again else {}
    return EvaluatedImages(root, tuple(records), p_real, engine, chosen, resaved)


def _sample(count: int, limit: int | None, seed: int) -> np.ndarray:
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit])


def _predict(
    items: Sequence[_LabeledImage],
    network: Network,
    preprocessing: Preprocessing,
    batch_size: int,
    variants: Sequence[str] = (),
) -> list[RawPrediction]:
    if not items:
        return []
    predictions = []
    stream = predict_batches(items, network, preprocessing, batch_size, variants)
    description = "predict, as is and re-saved" if variants else "predict"
    with closing(stream), interrupts_at_checks_only(), progress_bar(description, len(items)) as advance:
        for prediction in stream:
            _raise_error(prediction)
            predictions.append(prediction)
            advance(1)
            check_interrupt()
    return predictions


def _raise_error(prediction: RawPrediction) -> None:
    name, error = prediction.item.name, prediction.error
    if error and prediction.info is None:
        raise DataError(f"{name}: {error}; it was readable when the evaluation began: restore it")
    if error:
        raise ModelFileError(f"{name}: {error}")


def metrics_tree(images: EvaluatedImages, detector: Detector, subject: Subject) -> dict[str, Any]:
    """Return the content of `metrics.json`: probabilities and shares are 0..1, intervals are 95 % pairs (low, high)."""
    metadata, labels, p_real = detector.metadata, images.labels, images.p_real
    decision = metadata.decision
    p_fake, both = calibrated_p_fake(p_real, decision), len(set(labels)) == 2
    return {
        "subject": dataclasses.asdict(subject),
        "model": {**_model(detector), "engine": images.engine},
        "data": _data(images),
        "decision": dataclasses.asdict(decision),
        "metrics": measure_any(labels, p_real, decision),
        "metrics_at_0.5": measure_any(labels, p_real, DecisionRule(temperature=decision.temperature)),
        "calibration": _calibration(labels, p_real, decision) if both else None,
        "band": _band(labels, p_real, decision),
        "by_source": measure_by_source(labels, p_real, [record.source for record in images.records], decision),
        "unseen_sources": None,  # what the verdicts are worth there, of a training's own test images
        "resaves": _resaves(images, decision),
        "curves": {
            "roc": metrics.roc(labels, p_fake),
            "precision_recall": metrics.precision_recall(labels, p_fake),
        }
        if both
        else None,
        "mistakes": _mistakes(images, decision),
        "next_step": "",  # a command
        "audit": metadata.data.get("audit"),  # of the training images
        "training": {
            "data": {key: value for key, value in metadata.data.items() if key != "audit"},
            "history": list(metadata.history),
            "versions": metadata.versions,
        },
    }


def _model(detector: Detector) -> dict[str, Any]:
    metadata = detector.metadata
    return {
        "network": metadata.network,
        "weights": metadata.base_weights,
        "parameters": None if detector.model is None else int(detector.model.count_params()),
        "image_size_px": metadata.preprocessing.image_size_px,
        "preprocessing": metadata.preprocessing.fingerprint,
    }


def _data(images: EvaluatedImages) -> dict[str, Any]:
    lines = sorted(f"{record.sha256} {record.label}" for record in images.records)
    return {
        "images": len(images.records),
        "fake": int(np.sum(images.labels == FAKE)),
        "real": int(np.sum(images.labels == REAL)),
        "fingerprint": hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
    }


def _calibration(labels: np.ndarray, p_real: np.ndarray, decision: DecisionRule) -> dict[str, Any]:
    tree = {}
    for name, temperature in (("before", 1.0), ("after", decision.temperature)):
        bins = metrics.reliability(labels, 1.0 - calibrate(p_real, temperature))
        tree[name] = {
            "temperature": temperature,
            "expected_calibration_error": round(metrics.calibration_error(bins), 6),
            "bins": [dataclasses.asdict(each) for each in bins],
        }
    return tree


def _band(labels: np.ndarray, p_real: np.ndarray, decision: DecisionRule) -> dict[str, Any]:
    decided = np.array([verdict in NAMES for verdict in verdicts(p_real, decision)])
    correct = labels_from(p_real, decision) == labels
    return {
        "low": decision.band[0],
        "high": decision.band[1],
        "coverage": round(float(np.mean(decided)), 6),
        "accuracy_outside": _mean(correct[decided]),
        "accuracy_inside": _mean(correct[~decided]),
    }


def _mean(values: np.ndarray) -> float | None:
    return round(float(np.mean(values)), 6) if len(values) else None


def _resaves(images: EvaluatedImages, decision: DecisionRule) -> dict[str, Any] | None:
    labels, p_real = images.labels[images.resaved_of], images.p_real[images.resaved_of]
    if not len(labels) or len(set(labels)) < len(set(images.labels)):
        return None
    table = {name: _resave(labels, p_real, outputs, decision) for name, outputs in images.resaved.items()}
    return {"images": len(labels), "as_is": measure_any(labels, p_real, decision), "saved_again": table}


def _resave(labels: np.ndarray, before: np.ndarray, p_real: np.ndarray, decision: DecisionRule) -> dict[str, Any]:
    """Return the metrics after a re-save, and how many labels and verdicts it changed from those for `before`."""
    as_is, now = labels_from(before, decision), labels_from(p_real, decision)
    changes = {
        "flipped": now != as_is,
        "flipped_to_fake": (now == FAKE) & (as_is == REAL),
        "flipped_to_real": (now == REAL) & (as_is == FAKE),
        "flipped_to_wrong": (now != as_is) & (now != labels),
        "verdict_changed": np.array(verdicts(before, decision)) != np.array(verdicts(p_real, decision)),
    }
    return {**measure_any(labels, p_real, decision), **{name: int(mask.sum()) for name, mask in changes.items()}}


def _mistakes(images: EvaluatedImages, decision: DecisionRule) -> list[dict[str, Any]]:
    wrong = [row for row in prediction_rows(images, decision) if row["label"] != row["prediction"]]
    return sorted(wrong, key=lambda row: -row["confidence"])[:MISTAKES]


def prediction_rows(images: EvaluatedImages, decision: DecisionRule) -> list[dict[str, Any]]:
    """Return one row per image for `predictions.csv`.

    Columns shared with prediction's details mean the same there, but for what overrules the network in `verdict`:
    signed claims, and images unlike the training images.
    """
    p_real = images.p_real
    answers = labels_from(p_real, decision), verdicts(p_real, decision), confidence(p_real, decision), p_real
    return [
        {
            "path": relative_name(record.path, images.root),
            "sha256": record.sha256,
            "source": record.source,
            "label": NAMES[record.label],
            "prediction": NAMES[predicted],
            "verdict": verdict,
            "confidence": round(float(sure), DECIMALS),
            "p_fake": round(1.0 - float(p), DECIMALS),
            "p_real": float(p),
        }
        for record, predicted, verdict, sure, p in zip(images.records, *answers, strict=True)
    ]
