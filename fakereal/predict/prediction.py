"""From a folder and a model to `predictions.json`: everything a user can get wrong is checked before the long work."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fakereal.cli import EXIT_OK, EXIT_PARTIAL, one_line, progress_bar, say, start_keras
from fakereal.errors import ConfigError, DataError, ModelFileError
from fakereal.labels import FAKE, NAMES, REAL
from fakereal.model import scoring
from fakereal.model.scoring import Decision
from fakereal.predict import details, pipeline
from fakereal.predict.inputs import Listing, list_images
from fakereal.predict.pipeline import DECIMALS, Network, Outcome
from fakereal.predictions_json import Prediction, prediction_for, write
from fakereal.preprocessing import Preprocessing

if TYPE_CHECKING:  # both import Keras, which waits until every mistake is told
    from fakereal.model.model_file import Detector
    from fakereal.predict.explaining import Overlays

DEFAULT_MODELS = (Path("models/my_trained_model.h5"), Path("models/pretrained.h5"))
MAX_BATCH_SIZE = 1024  # 150 MB of pictures at 224x224, and several times that inside the network
_SHOWN = 20  # of a long list of failures, on the screen; predictions.json holds all of them


@dataclass(frozen=True)
class PredictConfig:
    """What the user asked for."""

    input: Path = Path("data/test")  # a folder of images, or one image
    model: Path | None = None  # None: the first of DEFAULT_MODELS that is there
    output: Path = Path("predictions.json")
    details: Path | None = None  # .json, .jsonl or .csv
    batch_size: int = 32  # images the network sees at once
    threshold: float | None = None  # fake where the calibrated p_fake is at least this; None: the model's own
    recursive: bool = False  # sub-folders too
    explain: Path | None = None  # a folder for overlays that show what speaks for each label
    foreign_model: bool = False  # the model may be a plain Keras file of another program


@dataclass(frozen=True, slots=True)
class Result:
    """One place in the result, decided."""

    outcome: Outcome
    label: int | None = None  # 0 fake, 1 real, None where there is no output
    verdict: str | None = None  # fake, real or uncertain
    confidence: float | None = None  # calibrated probability of the label, rounded to DECIMALS

    @property
    def prediction(self) -> Prediction:
        """The entry of predictions.json."""
        return prediction_for(self.outcome.item.key, self.label, self.outcome.error)


def run(config: PredictConfig) -> int:
    """Predicts a folder with a model file, writes the results and prints a summary.

    Returns:
        EXIT_OK, or EXIT_PARTIAL where some images could not be read.

    Raises:
        FakeRealError: something the user can put right; nothing is written then.
    """
    check_outputs(config)
    model = choose_model(config.model)
    listing = list_images(config.input, config.recursive)
    report_listing(listing)
    say(f"model: {model}")
    start_keras()  # takes seconds, so every mistake above is told before
    from fakereal.model import model_file

    detector = model_file.load(model, foreign=config.foreign_model)
    decision = with_threshold(detector.metadata.decision, config.threshold)
    preprocessing, overlays = detector.metadata.preprocessing, None
    if config.explain is not None:
        overlays = _overlays(config.explain, detector, decision)
    results = predict(listing, detector, preprocessing, decision, config.batch_size, overlays)
    save(results, config)
    print(summary(results, config))
    return EXIT_PARTIAL if any(result.label is None for result in results) else EXIT_OK


def check_outputs(config: PredictConfig) -> None:
    """Makes sure that the results can be written later.

    Raises:
        ConfigError: a suffix or a batch size that can't be used, or one file for both results.
        DataError: a path where no file can be written.
    """
    if config.batch_size > MAX_BATCH_SIZE:
        raise ConfigError(f"--batch-size: expected at most {MAX_BATCH_SIZE}, found {config.batch_size}")
    _check_output("--output", config.output, (".json",))
    if config.explain is not None:
        _check_explain(config)
    if config.details is None:
        return
    _check_output("--details", config.details, details.SUFFIXES)
    if config.details.resolve() == config.output.resolve():
        raise ConfigError(f"--details: expected another file than --output, found {config.details} for both")


def _check_output(option: str, path: Path, suffixes: Sequence[str]) -> None:
    if path.is_dir():
        raise DataError(f"{option}: expected a file name, found the folder {path}: try {path / 'predictions.json'}")
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{option}: expected a name ending in {', '.join(suffixes)}, found {path}")
    if os.path.lexists(path) and not path.is_file():
        raise DataError(f"{option}: expected a file name, found {path}, which is no regular file")
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    try:
        tempfile.TemporaryFile(dir=folder).close()  # permissions alone don't tell: read-only disks, network folders
    except OSError as error:
        raise DataError(f"{option}: expected a place for {path}, found {folder}: {error.strerror or error}") from error


def _check_explain(config: PredictConfig) -> None:
    folder, source = config.explain.resolve(), config.input
    pictures = (source if source.is_dir() else source.parent).resolve()
    if config.explain.exists() and not folder.is_dir():
        raise DataError(f"--explain: expected a folder, found the file {config.explain}")
    if folder == pictures or (config.recursive and folder.is_relative_to(pictures)):
        # They would be predicted with the pictures the next time.
        raise ConfigError(f"--explain: expected a folder apart from the images in {source}, found {config.explain}")


def _overlays(folder: Path, detector: Detector, decision: Decision) -> Overlays:
    from fakereal.model.explain import Explainer
    from fakereal.predict.explaining import Overlays

    return Overlays(folder, Explainer(detector.model), detector.metadata.preprocessing, decision)


def choose_model(model: Path | None) -> Path:
    """Returns the model file asked for, else the first default one that is there.

    Raises:
        ModelFileError: there is none.
    """
    for candidate in DEFAULT_MODELS if model is None else (model,):
        if candidate.is_file():
            return candidate
    if model is None:
        tried = " or ".join(map(str, DEFAULT_MODELS))
        raise ModelFileError(
            f"expected a model at {tried} (in {Path.cwd()}), found neither: train one with `python train_model.py`,"
            " or name one with --model FILE"
        )
    found = "a folder" if model.is_dir() else "nothing there"
    raise ModelFileError(f"--model: expected a model file (.h5 or .keras), found {found}: {model}")


def report_listing(listing: Listing) -> None:
    """Says on stderr what will not be predicted, and what is called by its name instead of its number."""
    for text, names in (
        ("left out, no pictures by their names", listing.others),
        ("sub-folders not looked into (--recursive does, but follows no links)", listing.folders),
        ('of a number that another file has too, so called by "image", not "index"', listing.shared),
    ):
        if names:
            say(f"{len(names):,} {text}: {', '.join(map(one_line, names))}")  # all: they stand nowhere else


def with_threshold(decision: Decision, threshold: float | None) -> Decision:
    """Returns the model's decision with the user's threshold.

    The band is widened to it: with a growing p_fake, verdicts must go from real over uncertain to fake, only once.
    """
    if threshold is None:
        return decision
    low, high = decision.band
    return replace(decision, threshold=threshold, band=(min(low, threshold), max(high, threshold)))


def predict(
    listing: Listing,
    network: Network,
    preprocessing: Preprocessing,
    decision: Decision,
    batch_size: int,
    overlays: Overlays | None = None,
) -> list[Result]:
    """Predicts every item of a listing, with a bar on stderr; `overlays`, where given, explains each too.

    Returns:
        One result an item, in their order.
    """
    outcomes, start_s = [], time.monotonic()
    if overlays is not None:
        stream = overlays.outcomes(listing.items, batch_size)
    else:
        stream = pipeline.outcomes(listing.items, network, preprocessing, batch_size)
    # Closed at once on Ctrl-C, or the files waiting for the decoding threads would still be decoded.
    with closing(stream), progress_bar("predict", len(listing.items)) as advance:
        for outcome in stream:
            outcomes.append(outcome)
            advance(1)
    seconds = time.monotonic() - start_s
    say(f"{len(outcomes):,} images in {seconds:.1f} s ({len(outcomes) / seconds:.1f} images/s)")
    return decide(outcomes, decision)


def decide(outcomes: Sequence[Outcome], decision: Decision) -> list[Result]:
    """Returns the label, the verdict and the confidence of each outcome that has an output."""
    p_real = np.array([outcome.p_real for outcome in outcomes if outcome.p_real is not None], np.float64)
    answers = zip(
        scoring.labels(p_real, decision).tolist(),
        scoring.verdicts(p_real, decision),
        np.round(scoring.confidence(p_real, decision), DECIMALS).tolist(),
        strict=True,
    )
    return [Result(outcome, *(next(answers) if outcome.p_real is not None else ())) for outcome in outcomes]


def save(results: Sequence[Result], config: PredictConfig) -> None:
    """Writes predictions.json and, where asked for, the details; each whole or not at all."""
    if config.details is not None:
        details.write(config.details, [details_of(result) for result in results])
    write(config.output, [result.prediction for result in results])


def details_of(result: Result) -> details.Row:
    """Returns the row of one result; p_fake and p_real are the network's own, before calibration."""
    item, info, p_real = result.outcome.item, result.outcome.info, result.outcome.p_real
    return {
        "index": item.key if isinstance(item.key, int) else None,
        "image": item.name,
        "prediction": None if result.label is None else NAMES[result.label],
        "verdict": result.verdict,
        "confidence": result.confidence,
        "p_fake": None if p_real is None else round(1.0 - p_real, DECIMALS),
        "p_real": p_real,
        "width": info and info.width_px,
        "height": info and info.height_px,
        "format": info and info.format,
        "error": result.outcome.error,
    }


def summary(results: Sequence[Result], config: PredictConfig) -> str:
    """Returns what stdout shows: counts, what could not be read and why, and where the results are."""
    failed = [result.outcome for result in results if result.label is None]
    predicted = len(results) - len(failed)
    lines = [f"{len(results):,} images in {config.input}"]
    for name, count in (
        ("fake", sum(result.label == FAKE for result in results)),
        ("real", sum(result.label == REAL for result in results)),
        ("of these uncertain", sum(result.verdict == scoring.UNCERTAIN for result in results)),
    ):
        lines.append(f"  {name:<18} {count:>9,}  ({100 * count / max(predicted, 1):.1f} %)")
    if failed:
        lines.append(f"  {'unreadable':<18} {len(failed):>9,}")
        lines += [f"    {one_line(outcome.item.name)}: {outcome.error}" for outcome in failed[:_SHOWN]]
    if len(failed) > _SHOWN:
        lines.append(f"    and {len(failed) - _SHOWN:,} more, all of them in the file below")
    lines.append(f"predictions: {config.output}")
    for name, path in (("details", config.details), ("explanations", config.explain)):
        lines += [f"{name}: {path}"] if path else []
    return "\n".join(lines)
