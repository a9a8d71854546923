"""One training run from a folder to a model file: scan, split, train, calibrate, measure, save, report."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fakereal import config as configuration
from fakereal.audit import report as audit_report
from fakereal.config import Config, DataConfig, PhaseConfig, ReportConfig
from fakereal.dataset.neutralize import preprocessing_of, resolve_neutral_settings
from fakereal.dataset.scan import Dataset, Record, labels_of
from fakereal.dataset.split import Split, fingerprint, scan_and_split, write_manifest
from fakereal.engines.card import files_of
from fakereal.engines.export import ConvertedBackbone, export_beside
from fakereal.errors import FakeRealError
from fakereal.evaluation.evaluate import KnownOutputs, predict_records
from fakereal.evaluation.report import TRAINING_REPORT_FILES, report_training
from fakereal.files import keep_backups, locked, write_atomic
from fakereal.labels import FAKE, NAMES, REAL, SPLITS
from fakereal.model import model_file, networks, out_of_distribution
from fakereal.model.calibration import DecisionRule
from fakereal.model.metadata import Metadata, read_metadata, weights_sha256
from fakereal.model.metrics import measure, measure_by_source, swapped_labels
from fakereal.model.model_file import Detector
from fakereal.model.out_of_distribution import Prototypes
from fakereal.model.weights import BaseWeights, check_choice, load_base
from fakereal.runtime import interrupts_at_checks_only, log, one_line
from fakereal.training import fine_tuning, trainer, unseen_sources
from fakereal.training.base_choice import load_best_base
from fakereal.training.cache import RowCache, open_cache
from fakereal.training.checkpoint import TensorBoard, load_state
from fakereal.training.features import SplitNetwork, penultimate
from fakereal.training.fine_tuning import FineTuning
from fakereal.training.input_pipeline import named_images

MAX_TRAIN_MEASURED = 5_000
"""The figures on the training split of a larger set come from this many images, drawn at random."""

_COST = "cost.json"
_RECORD_SUFFIXES = (".yaml", ".csv", ".tsv", ".json", ".html", ".png")
_CIFAKE_PX = 32
_TIMED_BATCHES, _TIMED_BATCH = 5, 32


class _Stopwatch:
    """Where the seconds of a run go."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()

    def lap(self, stage: str) -> None:
        """Name what happened since the last lap."""
        now = time.monotonic()
        self.seconds[stage] = round(now - self._started, 1)
        self._started = now

    def part(self, stage: str, of: str, seconds: float) -> None:
        """Take a part out of a stage."""
        self.seconds[stage] = round(seconds, 1)
        self.seconds[of] = round(self.seconds[of] - seconds, 1)


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves behind."""

    detector: Detector
    output: Path  # the model file
    folder: Path  # config.yaml, split.csv, history.csv, report.json, report.html, metrics.json, ..., checkpoint.npz
    skipped: int  # images that took no part; other files are only listed
    interrupted: bool  # True where Ctrl-C ended the training early
    diverged: bool  # True where a loss that is not finite ended it; the best epoch before is kept
    advice: str  # what would probably make a better detector, in one line; often empty
    fine_tune_epochs: int  # as configured: `fine_tune: auto` may have trained fewer
    fine_tuning: FineTuning | None  # what `fine_tune: auto` decided by the clock

    @property
    def left_out(self) -> bool:
        """Whether images took no part, or the epochs after a loss that is not finite."""
        return bool(self.skipped or self.diverged)


def train_and_report(
    config: Config, output: Path, resume: bool = False, force: bool = False, execute: trainer.Execute | None = None
) -> TrainResult:
    """Train a detector, measure it, and write the model file and the records of the run.

    Args:
        config: the whole configuration.
        output: the model file, `.h5` or `.keras`; `<name>_run/` beside it gets the run's records.
        resume: continue from the checkpoint of a killed run.
        force: keep no backup of the results of another training that this one replaces.
        execute: see `trainer.train`.

    Raises:
        FakeRealError: with one line that says what to do.
        KeyboardInterrupt: before the first epoch was done, or pressed twice; no model is written then.
    """
    model_file.check_suffix(output)
    if not resume:  # a checkpoint has the weights
        check_choice(config.weights)  # before minutes are spent on the images
    folder, watch = output.with_name(f"{output.stem}_run"), _Stopwatch()
    with locked(folder / ".lock"):
        dataset, split = scan_and_split(config)
        config = resolve_neutral_settings(config, dataset)
        if note := unseen_sources.note(split, config.training.unseen_sources):  # refuses too many
            log(note)
        watch.lap("scan")
        audited = _audit(config, dataset, split)
        watch.lap("audit")
        with open_cache(config.data) as cache:
            detector, trained, known = _train(config, split, folder, resume, audited, watch, execute, cache)
            skipped = sum(item.failed for item in dataset.skipped) + len(split.left_out)
            result = TrainResult(
                detector, output, folder, skipped, trained.interrupted, trained.diverged, _advice(config, trained),
                config.training.fine_tune_epochs, trained.fine_tuning,
            )  # fmt: skip
            with keep_backups(*_results_in(output, folder), force=force or _is_of_same_training(output, detector)):
                model_file.save(output, detector)
                for name in (*TRAINING_REPORT_FILES, _COST):  # of the model before: an end half-way must not leave them
                    (folder / name).unlink(missing_ok=True)
                # Only now: a training that ended early must not replace the records of the existing model.
                _write_records(folder, detector, dataset, split)
                export_beside(output, detector, _converted_backbone(known, detector))
                watch.lap("export")
                report_training(detector, output, folder, dataset.root, split, config.data.cache_folder, known,
                                _next_step(result))  # fmt: skip
                watch.lap("report")
                _write_cost(result, watch.seconds)
    return result


def _converted_backbone(known: KnownOutputs, detector: Detector) -> ConvertedBackbone | None:
    """Return the converted network that computed the features, from which the export goes on; None where Keras did."""
    network = known.network
    return network.converted_backbone(detector.metadata.prototypes) if isinstance(network, SplitNetwork) else None


def _results_in(output: Path, folder: Path) -> list[Path]:
    """Return the files that a training replaces: the model, its exported network, and the records."""
    return [*files_of(output), *sorted(path for path in folder.iterdir() if path.suffix in _RECORD_SUFFIXES)]


def _is_of_same_training(output: Path, detector: Detector) -> bool:
    """Return whether a model file is of these images and this configuration, and not trained for longer.

    Nothing of it is lost then; but a training that was interrupted must not take the place of one that was not.
    """
    try:
        before, now = read_metadata(output), detector.metadata
    except FakeRealError:
        return False
    if before is None or len(before.history) > len(now.history):
        return False
    return (before.config, before.data.get("fingerprint")) == (now.config, now.data.get("fingerprint"))


def _audit(config: Config, dataset: Dataset, split: Split) -> dict[str, Any]:
    """Log whether file features alone tell fake from real; return it for the model file, empty if switched off."""
    if not config.data.audit:
        return {}
    records = [record for name in SPLITS for record in getattr(split, name)]
    tree, lines = audit_report.before_training(records, split.near, dataset, config.neutralize.enabled)
    for line in lines:
        log(line)
    return {"audit": tree}


def _train(
    config: Config,
    split: Split,
    folder: Path,
    resume: bool,
    audited: dict[str, Any],
    watch: _Stopwatch,
    execute: trainer.Execute | None,
    cache: RowCache,
) -> tuple[Detector, trainer.TrainedNetwork, KnownOutputs]:
    """Train and measure: all that works on batches of images, and can be ended by Ctrl-C between two of them."""
    checkpoint, identity = folder / "checkpoint.npz", _identity(config, split)
    state = load_state(checkpoint, identity) if resume else None
    keras.utils.set_random_seed(config.seed)
    model = networks.build(config.network, config.image_size)
    on_epoch_end = TensorBoard(folder / "tensorboard") if config.training.tensorboard else lambda history: None
    with named_images("put it back and add --resume"), interrupts_at_checks_only():
        resumed = BaseWeights(**state.origin) if state and state.origin else None
        origin = resumed or _load_weights(model, config, split, cache)
        log(f"{config.network.name}, weights: {origin.description}, {model.count_params():,} parameters")
        if origin.image_size_px not in (None, config.image_size):
            size = origin.image_size_px
            log(f"this backbone was trained at {size} pixels: --image-size {size} may give a better detector")
        if not origin.pretrained and trainer.is_frozen(config.training, origin):
            log("warning: the backbone has random weights and stays frozen, so hardly anything can be learned: leave"
                " out --fine-tune none, or start from --weights imagenet or pretrained")  # fmt: skip
        if config.report.summary:
            _print_summary(model, trainer.phases(config.training, origin)[0])
        watch.lap("base")
        trained = trainer.train(model, config, origin, split, cache, checkpoint, identity, state, on_epoch_end, execute)
        watch.lap("epochs")
        watch.part("features", "epochs", trained.features_s)
        log("measuring")
        detector, known = _measure(trained, _resolved(config, trained), split, audited)
        watch.lap("measure")
        return detector, trained, known


def _print_summary(model: keras.Model, phase: PhaseConfig) -> None:
    """Print the layers of a network, with those inside its backbone, and the parameters that the first phase trains."""
    networks.set_trainable(model, phase.train, learn_batch_norm=phase.batch_norm == "learned")
    model.summary(print_fn=print, expand_nested=True)


def _load_weights(model: keras.Model, config: Config, split: Split, cache: RowCache) -> BaseWeights:
    """Load the initial weights of the base: those that the configuration names, or the best ones at hand."""
    if config.weights == "auto" and config.network.name in networks.APPLICATIONS:
        return load_best_base(model, config, split, cache)
    return load_base(model, config.network, config.weights)


def _resolved(config: Config, trained: trainer.TrainedNetwork) -> Config:
    """Return the configuration with what was decided on the way: it repeats the run, whatever is at hand then."""
    return replace(config, weights=trained.origin.choice or config.weights, training=trained.training)


def _measure(
    trained: trainer.TrainedNetwork, config: Config, split: Split, audited: dict[str, Any]
) -> tuple[Detector, KnownOutputs]:
    """Fit the decision rule on the validation images, and measure all three splits with it."""
    measured = {"train": _sample(split.train, config.seed, MAX_TRAIN_MEASURED), "val": split.val, "test": split.test}
    familiar = [_sample(part, config.seed, _most_familiar(trained.model)) for part in (split.train, split.val)]
    count = unseen_sources.group_count(split, config.training.unseen_sources)
    sampled = unseen_sources.sample(split, count, _most_features(trained.model), config.seed)
    wanted = {each.sha256 for part in (*familiar, sampled.train, sampled.val, sampled.test) for each in part}
    p_real, features = _outputs(trained, config, split, measured, wanted)
    labels = {name: labels_of(records) for name, records in measured.items()}
    is_frozen = trainer.is_frozen(trained.training, trained.origin)
    fitted = unseen_sources.fit_rule(split, p_real["val"], sampled, features, count, is_frozen)
    rule = replace(fitted.decision, shorter_side_px=_familiar_sizes(split))
    unseen_record = _with_origin(fitted.record, trained.origin)
    metrics: dict[str, Any] = {name: measure(labels[name], p_real[name], rule) for name in SPLITS}
    for name in ("val", "test"):
        if swapped := swapped_labels(metrics[name]["roc_auc"], metrics[name]["intervals"]["roc_auc"]):
            log(f"warning: the labels of {name} seem to be swapped against those of train: {swapped}")
    metrics |= {"unseen_sources": unseen_record} if unseen_record else {}
    metrics["test_at_0.5"] = measure(labels["test"], p_real["test"], DecisionRule(temperature=rule.temperature))
    metrics["test_by_source"] = measure_by_source(
        labels["test"], p_real["test"], [record.source for record in split.test], rule
    )
    metadata = Metadata(
        config=config,
        preprocessing=preprocessing_of(config, config.image_size),
        decision=rule,
        prototypes=_prototypes(trained.model, [[features[r.sha256] for r in part] for part in familiar], config.seed),
        base_weights=trained.origin.description,
        data=_data_facts(split) | _base_caveat(config, split) | audited,
        metrics=metrics,
        history=trained.history,
        versions=model_file.versions(),
    )
    known = KnownOutputs(p_real["test"], trained.source.network, trained.source.engine)
    return Detector(trained.model, metadata), known


def _with_origin(record: dict[str, Any], origin: BaseWeights) -> dict[str, Any]:
    """Return the record of unseen sources; it says so where the base was trained on some before it came here."""
    sources = {*record.get("fake_sources", ()), *record.get("real_sources", ())}
    return record if sources.isdisjoint(origin.sources) else record | {"backbone_saw_them": True}


def _familiar_sizes(split: Split) -> tuple[int, int] | None:
    """Return the range of familiar shorter sides."""
    sides = [record.shorter_px for record in split.train if record.shorter_px]
    return out_of_distribution.fit_sizes(np.array(sides)) if sides else None


def _most_features(model: keras.Model) -> int:
    """Return the number of images whose features are used for figures on unseen sources, at most."""
    features = model.get_layer(networks.FEATURES).output.shape[-1]
    return min(unseen_sources.MAX_IMAGES, unseen_sources.MAX_VALUES // features)


def _most_familiar(model: keras.Model) -> int:
    """Return the number of images that prototypes are fitted on, at most; 0 where the network gets none."""
    units = model.get_layer(networks.OUTPUT).kernel.shape[0]
    return out_of_distribution.MAX_IMAGES if units <= out_of_distribution.MAX_FEATURES else 0


def _prototypes(model: keras.Model, features: Sequence[Sequence[np.ndarray]], seed: int) -> Prototypes | None:
    """Return what tells images like the training images from others, see `out_of_distribution`.

    Args:
        model: the network.
        features: of its base, of training and of validation images.
        seed: of the clustering.
    """
    if not _most_familiar(model):
        return None
    return out_of_distribution.fit_prototypes(*(penultimate(model, np.stack(part)) for part in features), seed)


def _outputs(
    trained: trainer.TrainedNetwork,
    config: Config,
    split: Split,
    measured: dict[str, tuple[Record, ...]],
    wanted: set[str],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return p_real of the measured images, by split, and the base's features of the wanted ones, by their hash.

    Each image passes through the network once, unless the model has crops: p_real then comes from all views.
    """
    source, batch_size, features, p_real = trained.source, config.training.batch_size, {}, {}
    for name in SPLITS:
        first = () if config.views.crops else measured[name]
        p_real[name], found = source.outputs(first, batch_size, wanted)
        rest = [each for each in getattr(split, name) if each.sha256 in wanted and each.sha256 not in found]
        features |= found | source.outputs(rest, batch_size, wanted)[1]
        if config.views.crops:
            p_real[name] = _outputs_of_views(trained, config, measured[name])
    return p_real, features


def _outputs_of_views(trained: trainer.TrainedNetwork, config: Config, records: tuple[Record, ...]) -> np.ndarray:
    """Return p_real as prediction computes it, from all views."""
    preprocessing, batch_size = preprocessing_of(config, config.image_size), config.training.batch_size
    network = trained.source.network or Detector(trained.model, Metadata(config, preprocessing))
    return predict_records(network, preprocessing, Path(), records, "keras", batch_size, resave_images=0).p_real


def _sample(records: tuple[Record, ...], seed: int, most: int) -> tuple[Record, ...]:
    """Return at most this many images, drawn at random."""
    if len(records) <= most:
        return records
    chosen = np.random.default_rng(seed).permutation(len(records))[:most]
    return tuple(records[number] for number in sorted(chosen))


def _data_facts(split: Split) -> dict[str, Any]:
    facts: dict[str, Any] = {"fingerprint": _fingerprint(split), "left_out": len(split.left_out)}
    for name in SPLITS:
        counts = np.bincount(labels_of(getattr(split, name)), minlength=2)
        facts[name] = {"fake": int(counts[FAKE]), "real": int(counts[REAL])}
    facts["sources"] = sorted({record.source for record in split.train})
    return facts


def _write_records(folder: Path, detector: Detector, dataset: Dataset, split: Split) -> None:
    """Write the configuration and the list of every file, used or skipped."""
    config = detector.metadata.config
    write_atomic(folder / "config.yaml", configuration.dumps(config).encode())
    manifest, given = folder / "split.csv", config.data.split_file
    if not (given and manifest.exists() and Path(given).samefile(manifest)):  # never overwrite the user's own
        write_manifest(manifest, split, dataset.root)
    rows = "".join(f"{one_line(str(item.path))}\t{item.reason}\n" for item in dataset.skipped)
    write_atomic(folder / "skipped.tsv", rows.encode(errors="surrogateescape"))
    if rows:
        log(f"all skipped files: {folder / 'skipped.tsv'}")


def _write_cost(result: TrainResult, seconds: dict[str, float]) -> None:
    """Write what the run took, as its last file; a comparison reads it. An interrupted run has none."""
    path, history = result.folder / _COST, result.detector.metadata.history
    if result.interrupted:
        path.unlink(missing_ok=True)
        return
    cost = {
        "minutes": sum(row["seconds"] for row in history) / 60,
        "epochs": len(history),
        "skipped": result.skipped,
        "diverged": result.diverged,
        "fine_tuned_by_time": result.fine_tuning.text if result.fine_tuning else None,
        **{f"seconds_{stage}": value for stage, value in seconds.items()},
    }
    if result.detector.metadata.config.report.speed:
        cost["images_per_s"] = _images_per_s(result.detector)
    write_atomic(path, json.dumps(cost, indent=1).encode())


def _images_per_s(detector: Detector) -> float:
    """Return how many decoded images per second the network predicts, the median of a few batches."""
    size = detector.metadata.preprocessing.image_size_px
    images = np.zeros((_TIMED_BATCH, size, size, 3), np.uint8)
    seconds = []
    for _ in range(1 + _TIMED_BATCHES):  # the first one compiles
        started = time.perf_counter()
        detector.p_real(images)
        seconds.append(time.perf_counter() - started)
    return round(_TIMED_BATCH / float(np.median(seconds[1:])), 1)


def _advice(config: Config, trained: trainer.TrainedNetwork) -> str:
    """Return what to try next, with what that takes and brings; empty where there is nothing."""
    decided = trained.fine_tuning
    if decided and decided.fine_tune != "all":
        times = {scope: fine_tuning.about(minutes) for scope, minutes in decided.minutes.items()}
        shorter = f" (last20: {times['last20']})" if decided.fine_tune == "none" else ""
        takes = f"--fine-tune all trains all layers, {times['all']} more here{shorter}"
        return f"Next step: {takes}{_gain(config, trained)}"
    frozen = trained.origin.pretrained and trainer.is_frozen(trained.training, trained.origin)
    if decided or config.training.fine_tune == "auto" or config.training.phases or not frozen:
        return ""  # phases refuse the option
    return (
        f"Next step: --fine-tune auto also trains the backbone, as far as the time limit allows{_gain(config, trained)}"
    )


def _gain(config: Config, trained: trainer.TrainedNetwork) -> str:
    """Return what fine-tuning brought elsewhere, as the rest of a sentence; empty where nothing was measured."""
    compared = trainer.is_frozen(trained.training, trained.origin) and config.network.name == "efficientnetb0"
    if not compared or (trained.origin.choice or config.weights) != "imagenet":
        return ""  # other bases, such as the shipped one, have been fine-tuned already
    return "; +3 to +17 F1 points on four small sets (EfficientNetB0 at 112 px, see docs/train.md)"


def _next_step(result: TrainResult) -> str:
    """Return the command that the advice means, or an empty string."""
    option = re.search(r"--fine-tune \w+", result.advice)
    if not option:
        return ""
    config, output = str(result.folder / "config.yaml"), str(result.output)
    command = ["python", "train_model.py", "--config", config, "--output", output, *option[0].split()]
    if result.fine_tune_epochs != result.detector.metadata.config.training.fine_tune_epochs:  # fewer fitted
        command += ["--fine-tune-epochs", str(result.fine_tune_epochs)]
    return shlex.join(command)


def _base_caveat(config: Config, split: Split) -> dict[str, str]:
    """Return and log a warning where the shipped base was probably trained on images like these."""
    sides = [record.shorter_px for name in SPLITS for record in getattr(split, name)]
    if config.weights != "pretrained" or np.mean(np.equal(sides, _CIFAKE_PX)) < 0.5:
        return {}
    caveat = (
        f"the shipped backbone was trained on CIFAKE, whose images are {_CIFAKE_PX} pixels wide as well, so it has"
        " probably seen these images or similar ones: trust the figures only on images that are not from CIFAKE."
    )
    log(f"warning: {caveat}")
    return {"base_caveat": caveat}


def _identity(config: Config, split: Split) -> str:
    """Return a hash that a checkpoint is known by: a run with other images or another result can't resume from it."""
    anywhere = replace(
        config.data, cache_dir=DataConfig.cache_dir, cache_gb=DataConfig.cache_gb, audit=DataConfig.audit
    )
    silent = replace(config.training, tensorboard=False, unseen_sources=None)
    same = replace(config, data=anywhere, training=silent, report=ReportConfig())
    text = configuration.dumps(same) + _fingerprint(split) + weights_sha256(config.weights)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fingerprint(split: Split) -> str:
    """Return a hash of the images, their labels and their splits, whatever their file names."""
    return fingerprint((r.sha256, NAMES[r.label], name) for name in SPLITS for r in getattr(split, name))
