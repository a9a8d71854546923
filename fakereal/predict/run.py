"""From pictures and a model to `predictions.json`: everything a user can get wrong is checked before the long work."""

from __future__ import annotations

import os
import tempfile
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from fakereal.cli import EXIT_OK, EXIT_PARTIAL
from fakereal.engines.engine import open_explainer, open_network
from fakereal.engines.formats import Network
from fakereal.errors import ConfigError, DataError, ModelFileError
from fakereal.files import remove_partial_files
from fakereal.labels import FAKE, REAL
from fakereal.model.augmentation import STABILITY_VARIANTS
from fakereal.model.calibration import DecisionRule
from fakereal.model.heatmap import Explains
from fakereal.predict import journal, pipeline, results
from fakereal.predict.containers import is_archive_name
from fakereal.predict.inputs import Item, Items, Listing, list_images
from fakereal.predict.journal import Header, Journal
from fakereal.predict.pipeline import RawPrediction
from fakereal.predict.results import PredictionResult, Tally, decided, save
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import check_interrupt, interrupts_at_checks_only, log, one_line, progress_bar

if TYPE_CHECKING:
    from fakereal.predict.pipeline import Overlays

DEFAULT_MODELS = (Path("models/my_trained_model.h5"), Path("models/pretrained.h5"))
DEFAULT_INPUTS = ("data/test",)


@dataclass(frozen=True)
class PredictConfig:
    """What the user asked for."""

    input: Sequence[str] = ()  # folders, images, patterns and archives; empty: the list, else DEFAULT_INPUTS
    list_file: Path | None = None  # of paths, "-" for standard input; see `sources.find`
    model: Path | None = None  # None: the first of DEFAULT_MODELS that is there
    output: Path = Path("predictions.json")
    details: Path | None = None  # .json, .jsonl or .csv
    batch_size: int = 32  # images the network sees at once
    threshold: float | None = None  # fake where the calibrated p_fake is at least this; None: the model's own
    recursive: bool = False  # sub-folders too
    resume: bool = False  # go on with what an unfinished run with the same output has done
    stability: int = 0  # ask again for so many of stability.VARIANTS
    explain: Path | None = None  # a folder for overlays that show what speaks for each label
    foreign_model: bool = False  # the model may be a plain Keras file of another program
    engine: str = "auto"  # one of cli.ENGINES: what runs the network
    ray: str | None = None  # the address of a Ray cluster, see `scale.connected`; None: this process predicts

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs, without the list."""
        return tuple(map(str, self.input)) or (DEFAULT_INPUTS if self.list_file is None else ())

    @property
    def variants(self) -> tuple[str, ...]:
        """The re-saves that verdicts are held against."""
        return STABILITY_VARIANTS[: self.stability]


@dataclass(frozen=True)
class Predictor:
    """What turns items into outcomes, and outcomes into decisions."""

    network: Network
    preprocessing: Preprocessing
    decision: DecisionRule
    identity: Header  # what the outputs depend on, for the journal
    overlays: Overlays | None = None  # explains each picture too, where given

    def outcomes(self, items: Iterable[Item], config: PredictConfig) -> Iterator[RawPrediction]:
        """Returns the outcome of each item, in their order, as a generator; close it to end its threads."""
        if self.overlays is not None:
            return self.overlays.outcomes(items, config.batch_size, config.variants)
        return pipeline.predict_batches(items, self.network, self.preprocessing, config.batch_size, config.variants)

    def results(self, outcomes: Iterable[RawPrediction], config: PredictConfig) -> Iterator[PredictionResult]:
        """Returns what is decided on each outcome, in their order."""
        return decided(outcomes, self.decision)


def run(config: PredictConfig) -> int:
    """Predicts with a model file, writes the results and prints a summary.

    Returns:
        EXIT_OK, or EXIT_PARTIAL where some images could not be read.

    Raises:
        FakeRealError: something the user can put right; no results are written then.
    """
    check_outputs(config)
    model = choose_model(config.model)
    if not config.resume:
        journal.refuse_unfinished(journal.path_for(config.output))
    listing = list_images(config.inputs, config.recursive, config.list_file)
    if config.explain is not None:
        check_readable_twice(listing)
    report_listing(listing)
    log(f"model: {model}")
    opened = open_network(model, config.engine, config.foreign_model)  # may take seconds: mistakes are told before
    log(opened.description)
    decision = with_threshold(opened.metadata.decision, config.threshold)
    preprocessing, overlays = opened.metadata.preprocessing, None
    if config.explain is not None:
        overlays = _overlays(config.explain, open_explainer(opened), preprocessing, decision, listing)
    identity = {"model": opened.model_sha256, "preprocessing": preprocessing.fingerprint, "engine": opened.engine}
    predictor = Predictor(opened.network, preprocessing, decision, identity, overlays)
    if config.ray is not None:
        from fakereal.predict import ray as predict_ray

        return predict_ray.complete_on_ray(config, listing, predictor, model, config.ray)
    return complete(config, listing, predictor)


def complete(config: PredictConfig, listing: Listing, predictor: Predictor) -> int:
    """Predicts a listing with a journal, writes the results from it, and prints the summary; see `run`."""
    path = journal.path_for(config.output)
    header = {
        **predictor.identity,
        "batch size": config.batch_size,
        "stability": config.stability,
        **_explained(config, predictor.decision),
        "folder of images": str(listing.root),
    }
    with closing(journal.start(path, header, listing.items, config.resume)) as kept:
        for written in (config.output, config.details):
            if written is not None:
                remove_partial_files(written.parent, written.name)
        try:
            fill_predictions(kept, listing.items, predictor, config)
            results = predictor.results(kept.outcomes(), config)
            tally = save(results, config.output, config.details, config.variants)
        except BaseException:
            if len(kept):
                log(f"{len(kept):,} of {len(listing.items):,} images are done and kept in {path}: --resume goes on")
            raise
        kept.remove()
    print(summary(tally, config))
    return EXIT_PARTIAL if tally.failed else EXIT_OK


def _explained(config: PredictConfig, decision: DecisionRule) -> Header:
    """Returns what overlays depend on: those of a run that goes on must fit those that are there."""
    if config.explain is None:
        return {"explain": False}
    return {"explain": str(config.explain.resolve()), "threshold": decision.threshold}


def fill_predictions(kept: Journal, items: Items, predictor: Predictor, config: PredictConfig) -> None:
    """Predicts what the journal has not got yet, with a bar on stderr."""
    todo = array("q", (number for number in items.reading_order() if number not in kept))
    if not todo:
        return
    start_s = time.monotonic()
    stream = predictor.outcomes((items[number] for number in todo), config)
    # Closed at once on Ctrl-C, or the files waiting for the decoding threads would still be decoded.
    with closing(stream), interrupts_at_checks_only(), progress_bar("predict", len(todo)) as advance:
        pairs = zip(todo, stream, strict=True)
        while some := list(islice(pairs, config.batch_size)):
            kept.add(some)
            advance(len(some))
            check_interrupt()
    seconds = time.monotonic() - start_s
    log(f"{len(todo):,} images in {seconds:.1f} s ({len(todo) / seconds:.1f} images/s)")


def _overlays(
    folder: Path, explainer: Explains, preprocessing: Preprocessing, decision: DecisionRule, listing: Listing
) -> Overlays:
    from fakereal.predict.pipeline import Overlays, overlay_names

    return Overlays(folder, explainer, preprocessing, decision, overlay_names(listing.items.names))


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
    for folder in listing.archive_folders:
        log(f"names are relative to {folder}, which holds all of the archive's images")
    for text, names in (
        ("left out, no pictures by their names", listing.others),
        ("sub-folders not looked into (--recursive does, but follows no links)", listing.folders),
        ("inputs that gave no picture", listing.empty),
        ('of a number that another file has too, so called by "image", not "index"', listing.shared),
    ):
        if names:
            log(f"{len(names):,} {text}: {', '.join(map(one_line, names))}")  # all: they stand nowhere else
    if listing.items.twice:
        log(f"{listing.items.twice:,} named more than once, predicted once")


def with_threshold(decision: DecisionRule, threshold: float | None) -> DecisionRule:
    """Returns the model's decision with the user's threshold.

    The band is widened to it: with a growing p_fake, verdicts must go from real over uncertain to fake, only once.
    """
    if threshold is None:
        return decision
    low, high = decision.band
    return replace(decision, threshold=threshold, band=(min(low, threshold), max(high, threshold)))


def summary(tally: Tally, config: PredictConfig) -> str:
    """Returns what stdout shows: counts, what could not be read and why, and where the results are."""
    predicted = tally.total - tally.failed
    where = ", ".join([*config.inputs, *([_list_name(config.list_file)] if config.list_file else [])])
    lines = [f"{tally.total:,} images in {where}"]
    counts = [("fake", tally.labels[FAKE]), ("real", tally.labels[REAL]), ("of these uncertain", tally.uncertain)]
    counts += [("of these unstable", tally.unstable)] if config.stability else []
    for name, count in counts:
        lines.append(f"  {name:<18} {count:>9,}  ({100 * count / max(predicted, 1):.1f} %)")
    if tally.failed:
        lines.append(f"  {'unreadable':<18} {tally.failed:>9,}")
        lines += [f"    {failure}" for failure in tally.failures]
    if tally.failed > len(tally.failures):
        lines.append(f"    and {tally.failed - len(tally.failures):,} more, all of them in the file below")
    lines.append(f"predictions: {config.output}")
    for name, path in (("details", config.details), ("explanations", config.explain)):
        lines += [f"{name}: {path}"] if path else []
    return "\n".join(lines)


def _list_name(list_file: Path) -> str:
    return "the list on standard input" if str(list_file) == "-" else f"the list {list_file}"


# ---- What a user can get wrong about where results go, found before the long work.

if TYPE_CHECKING:
    from fakereal.predict.inputs import Listing

MAX_BATCH_SIZE = 1024  # 150 MB of pictures at 224x224, and several times that inside the network


def check_outputs(config: PredictConfig) -> None:
    """Makes sure that the results can be written later.

    Raises:
        ConfigError: a suffix or a number that can't be used, or one file for both results.
        DataError: a path where no file can be written.
    """
    if config.batch_size > MAX_BATCH_SIZE:
        raise ConfigError(f"--batch-size: expected at most {MAX_BATCH_SIZE}, found {config.batch_size}")
    if config.stability > len(STABILITY_VARIANTS):
        raise ConfigError(
            f"--stability: expected 1 to {len(STABILITY_VARIANTS)} ways to save again, found {config.stability}"
        )
    _check_output("--output", config.output, (".json",))
    if config.explain is not None:
        _check_explain(config)
    if config.details is None:
        return
    _check_output("--details", config.details, results.DETAILS_SUFFIXES)
    if config.details.resolve() == config.output.resolve():
        raise ConfigError(f"--details: expected another file than --output, found {config.details} for both")


def _check_explain(config: PredictConfig) -> None:
    folder = config.explain.resolve()
    if config.explain.exists() and not folder.is_dir():
        raise DataError(f"--explain: expected a folder, found the file {config.explain}")
    for source in (Path(each) for each in config.inputs if not is_archive_name(each)):
        pictures = (source if source.is_dir() else source.parent).resolve()
        if folder == pictures or (config.recursive and folder.is_relative_to(pictures)):
            # They would be predicted with the pictures the next time.
            raise ConfigError(f"--explain: expected a folder apart from the images in {source}, found {config.explain}")


def check_readable_twice(listing: Listing) -> None:
    """Makes sure that pictures can be explained, for which each is read a second time.

    Raises:
        ConfigError: some lie in a compressed tar.
    """
    if archive := next((item.root.path for item in listing.items if item.in_order), None):
        raise ConfigError(
            f"--explain: expected images that can be read twice, found those in {archive}: unpack it, and name its"
            " folder with --input"
        )


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
