"""One training run from a folder to a model file: scan, split, train, decide, measure, save."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fakereal import config as configuration
from fakereal.audit import report as audit_report
from fakereal.cli import EXIT_INTERRUPTED, EXIT_OK, EXIT_PARTIAL
from fakereal.config import ClusterConfig, Config, DataConfig, ReportConfig
from fakereal.dataset.neutralize import preprocessing_of, resolve_neutral_settings
from fakereal.dataset.scan import Dataset, Record, labels_of, scan, skipped_lines
from fakereal.dataset.split import SPLITS, Split, fingerprint, read_manifest, split_dataset, summary, write_manifest
from fakereal.errors import ConfigError
from fakereal.evaluation.report import report_training
from fakereal.files import locked, write_atomic
from fakereal.labels import FAKE, NAMES, REAL
from fakereal.model import model_file, networks
from fakereal.model.calibration import DecisionRule, fit_decision_rule
from fakereal.model.metadata import Metadata, weights_sha256
from fakereal.model.metrics import measure
from fakereal.model.model_file import Detector
from fakereal.model.weights import BaseWeights, load_base
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import interrupts_at_checks_only, log, one_line
from fakereal.training import cache as training_cache
from fakereal.training import distributed, trainer
from fakereal.training.checkpoint import TensorBoard, load_state
from fakereal.training.distributed import DistributedContext
from fakereal.training.input_pipeline import named_images
from fakereal.training.loop import predict

MAX_TRAIN_MEASURED = 5_000
"""Of larger training sets, the figures on the training split come from so many pictures, drawn at random."""


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves behind."""

    detector: Detector
    output: Path  # the model file
    folder: Path  # config.yaml, split.csv, history.csv, report.json, report.html, metrics.json, ..., checkpoint.npz
    skipped: int  # pictures that took no part; other files are only listed
    interrupted: bool  # True where Ctrl-C ended the training early
    diverged: bool  # True where the loss became no number, and the best epoch before counts
    advice: str  # what would probably make a better detector, in a line for people; often nothing

    @property
    def exit_code(self) -> int:
        """What the door returns: an early end and skipped pictures are told apart from a run that did all."""
        if self.interrupted:
            return EXIT_INTERRUPTED
        return EXIT_PARTIAL if self.skipped or self.diverged else EXIT_OK


def train_and_report(config: Config, output: Path, resume: bool = False) -> TrainResult | None:
    """Trains a detector and writes it.

    Args:
        config: the whole configuration.
        output: the model file, `.h5` or `.keras`; `<name>_run/` beside it gets the run's records.
        resume: go on from the checkpoint of a killed run.

    Returns:
        What it leaves behind; None in a process of several that isn't the first, which writes nothing.

    Raises:
        FakeRealError: with one line that says what to do.
        KeyboardInterrupt: before the first epoch was done, or pressed twice; no model is written then.
    """
    model_file.check_suffix(output)
    folder = output.with_name(f"{output.stem}_run")
    with distributed.join_hosts(config) as spread, locked(folder / ".lock") if spread.leads else nullcontext():
        # The processes' addresses are nobody else's: no file of the run tells them.
        return _run(replace(config, cluster=ClusterConfig()), output, folder, resume, spread)


def _run(config: Config, output: Path, folder: Path, resume: bool, spread: DistributedContext) -> TrainResult | None:
    dataset, split = prepare(config)
    for line in [*skipped_lines(dataset), *summary(split)]:
        log(line)
    config = resolve_neutral_settings(config, dataset)
    audited = _audited(config, dataset, split)
    checkpoint, identity = folder / "checkpoint.npz", _identity(config, split)
    state = None
    if resume:
        with spread.file_of_first(checkpoint) as path:
            state = load_state(path, identity)
    keras.utils.set_random_seed(config.seed)
    model = networks.build(config.network, config.image_size)
    origin = BaseWeights(**state.origin) if state and state.origin else load_base(model, config.network, config.weights)
    log(f"{config.network.name}, weights: {origin.description}, {model.count_params():,} parameters")
    _warn_of_frozen_noise(config, origin)
    spread.agree(f"{identity} {origin.description} {resume}", "options, pictures and starting weights")
    watch = TensorBoard(folder / "tensorboard") if config.training.tensorboard else lambda history: None
    with (
        named_images("put it back and add --resume"),
        interrupts_at_checks_only(),
        training_cache.open_cache(config.data) as cache,
    ):
        trained = trainer.train(model, config, origin, split, cache, checkpoint, identity, state, watch, spread)
        spread.part()
        if not spread.leads:
            return None
        log("measuring")
        detector = _measured(trained, config, origin, split, audited)
    model_file.save(output, detector)
    # Not before: whatever ends a training early must not replace the records of the model that is there.
    _keep_lists(folder, config, dataset, split)
    write_atomic(folder / "config.yaml", configuration.dumps(config).encode())
    report_training(detector, output, folder, dataset.root, split, training_cache.folder_of(config.data))
    skipped = sum(item.failed for item in dataset.skipped) + len(split.left_out)
    advice = _advice(config, origin)
    return TrainResult(detector, output, folder, skipped, trained.interrupted, trained.diverged, advice)


def _keep_lists(folder: Path, config: Config, dataset: Dataset, split: Split) -> None:
    """Writes down every file that was found, in the split or among the skipped ones."""
    manifest = folder / "split.csv"
    given = config.data.split_file
    if not (given and manifest.exists() and Path(given).samefile(manifest)):  # never overwrite the user's own
        write_manifest(manifest, split, dataset.root)
    rows = "".join(f"{one_line(str(item.path))}\t{item.reason}\n" for item in dataset.skipped)
    write_atomic(folder / "skipped.tsv", rows.encode(errors="surrogateescape"))
    if rows:
        log(f"all that was skipped: {folder / 'skipped.tsv'}")


def prepare(config: Config) -> tuple[Dataset, Split]:
    """Reads and divides the pictures that a configuration names.

    What counts as the same picture is decided at one size, whatever the network's, so that runs with other sizes on
    the same folder have the same split.
    """
    dataset = scan(Path(config.data.path), Preprocessing())
    if config.data.exclude_sources:
        known = {record.source for record in dataset.records}
        for name in set(config.data.exclude_sources) - known:
            raise ConfigError(f"exclude_sources: expected some of {', '.join(sorted(known))}, found {name!r}")
        kept = tuple(record for record in dataset.records if record.source not in config.data.exclude_sources)
        log(f"left out {len(dataset.records) - len(kept)} pictures of {', '.join(config.data.exclude_sources)}")
        dataset = replace(dataset, records=kept)
    if config.data.split_file:
        return dataset, read_manifest(Path(config.data.split_file), dataset)
    return dataset, split_dataset(dataset, config.seed, config.data.shares)


def _stays_frozen(config: Config, origin: BaseWeights) -> bool:
    return {phase.train for phase in trainer.phases(config.training, origin)} == {"head"}


def _advice(config: Config, origin: BaseWeights) -> str:
    if config.training.phases or not (origin.pretrained and _stays_frozen(config, origin)):  # phases refuse the flag
        return ""
    return (
        "next: --fine-tune all lets the base learn too, for several times the minutes:"
        " on four small sets F1 was 3 to 17 points higher (EfficientNetB0 at 112 px, see README)"
    )


def _warn_of_frozen_noise(config: Config, origin: BaseWeights) -> None:
    if not origin.pretrained and _stays_frozen(config, origin):
        log(
            "warning: the base has random weights and stays frozen, so hardly anything can be learnt:"
            " --fine-tune all, or --weights imagenet or pretrained"
        )


def _audited(config: Config, dataset: Dataset, split: Split) -> dict[str, Any]:
    """Says whether the files give the answer away; returns it for the model's report, nothing where not wanted."""
    if not config.data.audit:
        return {}
    records = [record for name in SPLITS for record in getattr(split, name)]
    tree, lines = audit_report.before_training(records, split.near, dataset.root, config.neutralize.enabled)
    for line in lines:
        log(line)
    return {"audit": tree}


def _measured(
    trained: trainer.Trained, config: Config, origin: BaseWeights, split: Split, audited: dict[str, Any]
) -> Detector:
    """Chooses the decision on validation, and measures all three splits with it."""
    preprocessing = preprocessing_of(config, config.image_size)
    judged = {"train": _sample(split.train, config.seed), "val": split.val, "test": split.test}
    outputs = {
        name: predict(trained.feed.model, trained.feed.plain(records, config.training.batch_size))
        for name, records in judged.items()
    }
    labels = {name: labels_of(records) for name, records in judged.items()}
    decision = fit_decision_rule(labels["val"], outputs["val"])
    metrics: dict[str, Any] = {name: measure(labels[name], outputs[name], decision) for name in SPLITS}
    plain = DecisionRule(temperature=decision.temperature)
    metrics["test_at_0.5"] = measure(labels["test"], outputs["test"], plain)
    metrics["test_by_source"] = _by_source(split, outputs["test"], decision)
    metadata = Metadata(
        config=config,
        preprocessing=preprocessing,
        decision=decision,
        base_weights=origin.description,
        data=_data_facts(split) | audited,
        metrics=metrics,
        history=trained.history,
        versions=model_file.versions(),
    )
    return Detector(trained.model, metadata)


def _sample(records: tuple[Record, ...], seed: int) -> tuple[Record, ...]:
    """Returns at most `MAX_TRAIN_MEASURED` pictures: what training sees says little of what counts."""
    if len(records) <= MAX_TRAIN_MEASURED:
        return records
    chosen = np.random.default_rng(seed).permutation(len(records))[:MAX_TRAIN_MEASURED]
    return tuple(records[number] for number in sorted(chosen))


def _by_source(split: Split, p_real: np.ndarray, decision: DecisionRule) -> dict[str, Any]:
    sources = np.array([record.source for record in split.test])
    labels = labels_of(split.test)
    rows = {}
    for source in sorted(set(sources)) if len(set(sources)) > 1 else ():
        chosen = sources == source
        if set(labels[chosen]) == {FAKE, REAL}:
            rows[str(source)] = measure(labels[chosen], p_real[chosen], decision)
    return rows


def _data_facts(split: Split) -> dict[str, Any]:
    facts: dict[str, Any] = {"fingerprint": _fingerprint(split), "left_out": len(split.left_out)}
    for name in SPLITS:
        counts = np.bincount(labels_of(getattr(split, name)), minlength=2)
        facts[name] = {"fake": int(counts[FAKE]), "real": int(counts[REAL])}
    facts["sources"] = sorted({record.source for record in split.train})
    return facts


def _fingerprint(split: Split) -> str:
    """Names the pictures, their labels and their splits, whatever their file names."""
    return fingerprint((r.sha256, NAMES[r.label], name) for name in SPLITS for r in getattr(split, name))


def _identity(config: Config, split: Split) -> str:
    """Names a run for its checkpoint: a longer or otherwise changed run can't go on from another's."""
    anywhere = replace(
        config.data, cache_dir=DataConfig.cache_dir, cache_gb=DataConfig.cache_gb, audit=DataConfig.audit
    )
    silent = replace(config.training, tensorboard=False)
    same = replace(config, data=anywhere, training=silent, report=ReportConfig())
    text = configuration.dumps(same) + _fingerprint(split) + weights_sha256(config.weights)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
