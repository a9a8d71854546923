"""Predict images with a model file and write predictions.json.

`prepare` finds every mistake that a user can make before the long work and opens the model; `complete` predicts, with
a journal, and writes the results. `run` is both on this machine, `ray.run` on a cluster.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from fakereal.cli import exit_code
from fakereal.engines.engine import OpenedNetwork, open_explainer, open_network
from fakereal.engines.formats import Network
from fakereal.errors import ConfigError, DataError, ModelFileError
from fakereal.files import display_path, keep_backups, relative_name, remove_partial_files
from fakereal.labels import FAKE, NAMES, REAL
from fakereal.model import unseen
from fakereal.model.calibration import DecisionRule
from fakereal.model.foreign import ForeignModel
from fakereal.model.metadata import EXPORTED_SUFFIX, PRETRAINED, is_shipped
from fakereal.model.out_of_distribution import REASON as UNFAMILIAR
from fakereal.model.resaves import STABILITY_RESAVES
from fakereal.predict import journal as journals
from fakereal.predict import pipeline, results
from fakereal.predict.containers import is_archive_name
from fakereal.predict.inputs import Item, Items, Listing, list_images
from fakereal.predict.journal import Header, Journal
from fakereal.predict.pipeline import Overlays, RawPrediction, overlay_names
from fakereal.predict.results import PredictionResult, ResultCounts, decide_all, save
from fakereal.preprocessing import Preprocessing
from fakereal.provenance import AI_EDITED, AI_GENERATED
from fakereal.runtime import check_interrupt, interrupts_at_checks_only, log, one_line, progress_bar

TRAINED_MODEL = Path("models/my_trained_model.h5")
"""What train_model.py writes by default."""

DEFAULT_MODELS = (TRAINED_MODEL, PRETRAINED)
"""Where one is missing, the network that was exported beside it is taken."""

DEFAULT_INPUTS = ("data/test",)

STDOUT = Path("-")
"""As --output: write the predictions to standard output."""

_INPUTS_NAMED = 3  # in the summary: a shell makes thousands of `photos/*.jpg`

MAX_BATCH_SIZE = 1024
"""150 MB of images at 224x224, and several times that inside the network."""


@dataclass(frozen=True)
class PredictConfig:
    """Options of a prediction run."""

    input: Sequence[str] = ()  # folders, images, patterns and archives; empty: the list, else DEFAULT_INPUTS
    list_file: Path | None = None  # of paths, "-" for standard input; see `sources.find_images`
    model: Path | None = None  # None: TRAINED_MODEL, else the shipped detector
    output: Path | None = Path("predictions.json")  # STDOUT: standard output; None: not written
    details: Path | None = None  # .json, .jsonl or .csv
    batch_size: int = 32  # images per batch
    threshold: float | None = None  # fake where the calibrated p_fake is at least this; None: the model's own
    recursive: bool = False  # sub-folders too
    resume: bool = False  # continue an unfinished run with the same output
    stability: int = 0  # number of STABILITY_RESAVES that are predicted too
    explain: Path | None = None  # folder for overlays that show the evidence for each label
    foreign: ForeignModel | None = None  # accept a Keras file of another program, used as this says
    engine: str = "auto"  # one of cli.ENGINES
    listed: bool = False  # print one line per image, for at most results.MAX_SHOWN, in place of the summary
    force: bool = False  # replace earlier results without a backup
    strict: bool = False  # exit code 1 where anything was left out
    ray: str | None = None  # address of a Ray cluster, see `ray.connect_ray`; None: predict in this process

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs, without the list."""
        return tuple(map(str, self.input)) or (DEFAULT_INPUTS if self.list_file is None else ())

    @property
    def output_file(self) -> Path | None:
        """The file for the predictions, if there is one."""
        return None if self.output == STDOUT else self.output

    @property
    def variants(self) -> tuple[str, ...]:
        """The re-saved variants that are predicted beside each image."""
        return STABILITY_RESAVES[: self.stability]


@dataclass(frozen=True)
class Predictor:
    """An opened model with its decision rule: items -> raw predictions -> results."""

    network: Network
    preprocessing: Preprocessing
    decision: DecisionRule
    identity: Header  # what the outputs depend on, for the journal
    overlays: Overlays | None = None  # where given, each image is explained too
    model: Path | None = None  # the file that the network was opened from
    worth: str | None = None  # what verdicts on images of unseen origin have been worth, in one sentence
    foreign: bool = False  # the network is one of another program, whose pixels and outputs may mean something else

    def predict(self, items: Iterable[Item], config: PredictConfig) -> Iterator[RawPrediction]:
        """Yield the raw prediction of each item, in order; close the generator to end its threads."""
        if self.overlays is not None:
            return self.overlays.predict_batches(items, config.batch_size, config.variants)
        return pipeline.predict_batches(items, self.network, self.preprocessing, config.batch_size, config.variants)

    def decide(self, predictions: Iterable[RawPrediction], config: PredictConfig) -> Iterator[PredictionResult]:
        """Yield the result of each raw prediction, in order."""
        return decide_all(predictions, self.decision)


def run(config: PredictConfig) -> int:
    """Predict on this machine, write the results and print a summary.

    Returns:
        The exit code.

    Raises:
        FakeRealError: a problem that the user can solve; no results are written then, except where no image at all
            could be read.
    """
    listing, predictor = prepare(config)
    if predictor.overlays is None:
        config = replace(config, explain=None)  # neither journal nor summary may name heatmaps that don't exist
    return complete(config, listing, predictor)


def prepare(config: PredictConfig) -> tuple[Listing, Predictor]:
    """Check the options, list the images and open the model; see `run`."""
    check_outputs(config)
    model = choose_model(config.model)
    if not config.resume and config.output_file:
        journals.refuse_unfinished(journals.path_for(config.output_file))
    listing = list_images(config.inputs, config.recursive, config.list_file)
    if config.explain is not None:
        check_readable_twice(listing)
    report_listing(listing)
    log_model(model, config.model)
    return listing, open_predictor(config, listing, model)


def open_predictor(config: PredictConfig, listing: Listing, model: Path) -> Predictor:
    """Open a model file, with what the options change; may take seconds."""
    opened = open_network(model, config.engine, config.foreign)
    log(opened.description)
    decision = with_threshold(opened.metadata.decision, config.threshold)
    preprocessing = opened.metadata.preprocessing
    overlays = _overlays(config, listing, opened, decision) if config.explain is not None else None
    identity = {"model": opened.identity, "preprocessing": preprocessing.fingerprint, "engine": opened.engine}
    worth, foreign = unseen.sentence(opened.metadata.metrics), bool(opened.metadata.foreign)
    return Predictor(opened.network, preprocessing, decision, identity, overlays, model, worth, foreign)


def _overlays(
    config: PredictConfig, listing: Listing, opened: OpenedNetwork, decision: DecisionRule
) -> Overlays | None:
    """Return what writes the heatmaps; None, with a line, for a network that has none."""
    opened.load_detector()  # an exported network is refused, as its model file has heatmaps
    try:
        with interrupts_at_checks_only():  # TensorFlow builds a graph, which takes seconds
            explainer = open_explainer(opened)
    except ModelFileError as error:
        log(f"warning: no heatmaps: {error}; the predictions are made all the same")
        return None
    names = overlay_names(listing.items.names())
    return Overlays(config.explain, explainer, opened.metadata.preprocessing, decision, names)


def complete(config: PredictConfig, listing: Listing, predictor: Predictor) -> int:
    """Predict a listing with a journal, write the results from it, and print the summary; see `run`."""
    header = {
        **predictor.identity,
        "batch size": config.batch_size,
        "re-saved variants": ", ".join(config.variants) or "none",
        **_overlay_header(config, predictor.decision),
        "folder of images": str(listing.root),
    }
    with (
        _journal_path(config.output_file) as path,
        closing(journals.start(path, header, listing.items, config.resume)) as journal,
    ):
        for written in (config.output_file, config.details):
            if written is not None:
                remove_partial_files(written.parent, written.name)
        try:
            predict_remaining(journal, listing.items, predictor, config)
            decided = predictor.decide(journal.predictions(), config)
            with keep_backups(config.output_file, config.details, force=config.force):
                counts = save(decided, config.output, config.details, config.variants)
        except BaseException:
            if len(journal) and config.output_file:
                done = f"{len(journal):,} of {len(listing.items):,} images"
                log(f"{done} are finished and saved in {path}: pass --resume to continue")
            raise
        journal.remove()
    if predictor.foreign and (doubt := counts.spread.doubt):
        log(f"warning: {doubt}")
    none_read = counts.failed == counts.total
    _report(counts, config, listing, None if none_read else predictor.worth)
    if none_read:
        raise DataError("not a single image could be read: the lines above say why")
    return exit_code(counts.failed or listing.skipped_folders or listing.empty_inputs, config.strict)


@contextmanager
def _journal_path(output: Path | None) -> Iterator[Path]:
    """Yield the path of the journal: beside the file for the predictions, or a temporary one."""
    if output is not None:
        yield journals.path_for(output)
        return
    with tempfile.TemporaryDirectory(prefix="fakereal_") as folder:
        yield Path(folder, "journal")


def _report(counts: ResultCounts, config: PredictConfig, listing: Listing, worth: str | None) -> None:
    """Print one line per image, or the summary; to stderr where the predictions themselves go to stdout."""
    say = log if config.output == STDOUT else print
    if not (config.listed and counts.total <= results.MAX_SHOWN):
        say(summary(counts, config, worth))
        return
    for result in counts.first:
        say(image_line(result, display_path(relative_name(listing.root / result.raw.item.name, Path.cwd()))))
    for line in _closing_lines(config, worth):
        log(line)


def image_line(result: PredictionResult, name: str) -> str:
    """Return the line for one image: verdict, label and confidence, name, and what its file claims or its error."""
    if result.label is None:
        return f"{'unreadable':<25}  {name}: {one_line(result.raw.error or '')}"
    origin = result.raw.origin
    claim = f" ({origin.as_json()['summary']})" if origin.claim in (AI_GENERATED, AI_EDITED) else ""
    return f"{result.verdict:<10}  {NAMES[result.label]} {100 * result.confidence:5.1f} %  {name}{claim}"


def _overlay_header(config: PredictConfig, decision: DecisionRule) -> Header:
    """Return what overlays depend on: those of a resumed run must match those that exist."""
    if config.explain is None:
        return {"explain": False}
    return {"explain": str(config.explain.resolve()), "threshold": decision.threshold}


def predict_remaining(journal: Journal, items: Items, predictor: Predictor, config: PredictConfig) -> None:
    """Predict the items that the journal has no prediction of, with a progress bar on stderr."""
    count = len(items) - len(journal)
    if not count:
        return
    start_s = time.monotonic()
    stream = predictor.predict((items[number] for number in _unfinished(journal, items)), config)
    # Closed at once on Ctrl-C, or the files that wait for the decoding threads would still be decoded.
    with closing(stream), interrupts_at_checks_only(), progress_bar("predict", count) as advance:
        pairs = zip(_unfinished(journal, items), stream, strict=True)
        while batch := list(islice(pairs, config.batch_size)):
            journal.add(batch)
            advance(len(batch))
            check_interrupt()
    seconds = time.monotonic() - start_s
    log(f"{_images(count)} in {seconds:.{1 if seconds >= 1 else 2}f} s ({count / seconds:.1f} images/s)")


def _unfinished(journal: Journal, items: Items) -> Iterator[int]:
    """Yield the numbers of the items to predict, one by one; the journal has each only after it was predicted."""
    return (number for number in items.reading_order() if number not in journal)


def choose_model(model: Path | None) -> Path:
    """Return the model file that was named, else the default one; see `log_model`.

    Raises:
        ModelFileError: there is none.
    """
    defaults = (path for default in DEFAULT_MODELS for path in (default, default.with_suffix(EXPORTED_SUFFIX)))
    for candidate in defaults if model is None else (model,):
        if candidate.is_file():
            return candidate
    missing = model or PRETRAINED
    found = "a folder" if missing.is_dir() else "nothing there"
    raise ModelFileError(f"--model: expected a model file (.h5, .keras or .tflite), got {found}: {missing}")


def log_model(model: Path, named: Path | None) -> None:
    """Log which model `choose_model` returned for the one that was named, if any."""
    why = str(model) if named else f"{TRAINED_MODEL} does not exist here"
    log(f"model: {f'the shipped detector ({why})' if is_shipped(model) else model}")


def with_threshold(decision: DecisionRule, threshold: float | None) -> DecisionRule:
    """Return the model's decision rule with the user's threshold.

    The uncertainty band is widened to include it: with growing p_fake, verdicts must go from real over uncertain to
    fake only once.
    """
    if threshold is None:
        return decision
    low, high = decision.band
    return replace(decision, threshold=threshold, band=(min(low, threshold), max(high, threshold)))


def report_listing(listing: Listing) -> None:
    """Log which inputs are not predicted, and which images are named by path in place of their number."""
    for folder in listing.archive_folders:
        log(f"names are relative to {folder}, the folder that holds all images of the archive")
    archives = list(filter(is_archive_name, listing.other_files))
    for text, names in (
        ("skipped files that are no images", sorted({*listing.other_files} - {*archives})),
        ("skipped archives inside a folder; name them with --input", archives),
        ("skipped sub-folders; --recursive includes them, except links", listing.skipped_folders),
        ("inputs without images", listing.empty_inputs),
        ('images listed as "image", not "index", because others have the same number', listing.shared_numbers),
    ):
        if names:
            log(f"{text} ({len(names):,}): {', '.join(map(one_line, names))}")  # all: they are listed nowhere else
    if listing.hidden:
        log(f"hidden files and folders passed over ({len(listing.hidden):,}), such as {one_line(listing.hidden[0])}")
    if listing.items.duplicates:
        log(f"images named more than once, predicted once ({listing.items.duplicates:,})")


def summary(counts: ResultCounts, config: PredictConfig, worth: str | None = None) -> str:
    """Return the summary for stdout: counts, what could not be read and why, and where the results are."""
    predicted = counts.total - counts.failed
    lines = [f"{_images(counts.total)} in {_inputs_text(config)}"]
    rows = [("fake", counts.labels[FAKE]), ("real", counts.labels[REAL]), ("of these uncertain", counts.uncertain)]
    rows += [("of these unstable", counts.unstable)] if config.stability else []
    for name, count in rows:
        lines.append(f"  {name:<18} {count:>9,}  ({100 * count / max(predicted, 1):.1f} %)")
    if counts.unfamiliar:
        lines.append(f"  {counts.unfamiliar:,} uncertain because they are {UNFAMILIAR}")
    if counts.signed:
        lines.append(f"  {counts.signed:,} called fake because their signed content credentials say so")
    if counts.claim_ai:
        claim = "whose files claim, without proof, that AI made or edited them (see --details)"
        lines.append(f"  {counts.claim_ai:,} {claim}")
    if counts.failed:
        lines.append(f"  {'unreadable':<18} {counts.failed:>9,}")
        lines += [f"    {failure}" for failure in counts.failures]
    if counts.failed > len(counts.failures):
        lines.append(f"    and {counts.failed - len(counts.failures):,} more, all listed in the file below")
    return "\n".join([*lines, *_closing_lines(config, worth)])


def _closing_lines(config: PredictConfig, worth: str | None) -> Iterator[str]:
    if worth:
        yield f"what a verdict is worth: {worth}"
    written = {"predictions": config.output_file, "details": config.details, "explanations": config.explain}
    yield from (f"{name}: {path}" for name, path in written.items() if path)


def _images(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"


def _inputs_text(config: PredictConfig) -> str:
    names = [*config.inputs, *([_list_name(config.list_file)] if config.list_file else [])]
    more = [f"{len(names) - _INPUTS_NAMED:,} more"] if len(names) > _INPUTS_NAMED else []
    return ", ".join([*names[:_INPUTS_NAMED], *more])


def _list_name(list_file: Path) -> str:
    return "the list on standard input" if str(list_file) == "-" else f"the list {list_file}"


def check_outputs(config: PredictConfig) -> None:
    """Make sure that the results can be written later.

    Raises:
        ConfigError: an invalid suffix or number, or one file for both results.
        DataError: a path where no file can be written.
    """
    if config.batch_size > MAX_BATCH_SIZE:
        raise ConfigError(f"--batch-size: expected at most {MAX_BATCH_SIZE}, got {config.batch_size}")
    if config.stability > len(STABILITY_RESAVES):
        raise ConfigError(f"--stability: expected 1 to {len(STABILITY_RESAVES)} variants, got {config.stability}")
    if config.output_file:
        if config.output_file.suffix.lower() in results.DETAILS_SUFFIXES[1:]:
            raise ConfigError(
                f"--output: expected a name ending in .json, got {config.output}: for a table, add"
                f" --details {config.output}"
            )
        _check_output("--output", config.output_file, (".json",))
    elif config.resume:
        raise ConfigError("--resume: expected the --output of the run that was stopped, got none: add it")
    if config.explain is not None:
        _check_explain(config)
    if config.details is None:
        return
    _check_output("--details", config.details, results.DETAILS_SUFFIXES)
    if config.output_file and config.details.resolve() == config.output_file.resolve():
        raise ConfigError(f"--details and --output name the same file, {config.details}: name another one")


def _check_explain(config: PredictConfig) -> None:
    folder = config.explain.resolve()
    if config.explain.exists() and not folder.is_dir():
        raise DataError(f"--explain: expected a folder, got the file {config.explain}")
    for source in (Path(each) for each in config.inputs if not is_archive_name(each)):
        images = (source if source.is_dir() else source.parent).resolve()
        if folder == images or (config.recursive and folder.is_relative_to(images)):
            raise ConfigError(
                f"--explain {config.explain} is inside the input folder {source}, so the next run would predict the"
                " overlays: name a folder elsewhere"
            )


def check_readable_twice(listing: Listing) -> None:
    """Make sure that images can be explained, for which each is read a second time.

    Raises:
        ConfigError: some are in a compressed tar.
    """
    if archive := next((item.root.path for item in listing.items if item.sequential), None):
        raise ConfigError(
            f"--explain reads images twice, which the compressed archive {archive} doesn't allow: unpack it, and name"
            " its folder with --input"
        )


def _check_output(option: str, path: Path, suffixes: Sequence[str]) -> None:
    if path.is_dir():
        raise DataError(f"{option}: expected a file name, got the folder {path}: try {path / 'predictions.json'}")
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{option}: expected a name ending in {', '.join(suffixes)}, got {path}")
    if os.path.lexists(path) and not path.is_file():
        raise DataError(f"{option}: expected a file name, got {path}, which is not a regular file")
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    try:
        tempfile.TemporaryFile(dir=folder).close()  # permissions don't tell: read-only disks, network folders
    except OSError as error:
        raise DataError(f"{option}: {path} can't be written, because of {folder}: {error.strerror or error}") from error
