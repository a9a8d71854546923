"""A model file in the format of another program library, with all that its users must know in a JSON file beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fakereal import __version__
from fakereal.cli import EXIT_OK, EXIT_PARTIAL
from fakereal.dataset.scan import Dataset, Record, scan, scanned_bytes, skipped_lines
from fakereal.engines import engine, parity
from fakereal.engines.formats import RUNTIMES, Runtime
from fakereal.engines.parity import Finding
from fakereal.errors import ConfigError, DataError, EngineRefused
from fakereal.files import sha256_of, write_atomic
from fakereal.labels import NAMES
from fakereal.model.metadata import Metadata
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import log, progress_bar, start_keras

if TYPE_CHECKING:  # it imports Keras
    from fakereal.model.model_file import Detector

_BATCH = 64  # pictures in memory at once while an int8 network is judged


@dataclass(frozen=True)
class ExportConfig:
    """What the user asked for."""

    model: Path
    format: str  # one of RUNTIMES
    output: Path | None = None  # the first of the format's files; None: beside the model
    int8: bool = False  # a third of the size; needs `data`
    data: Path | None = None  # labelled pictures: half of them set int8's ranges, the other half judges it
    foreign_model: bool = False  # the model may be a plain Keras file of another program


@dataclass(frozen=True)
class Exported:
    """What was written."""

    files: tuple[Path, ...]  # the network's, then the JSON
    finding: Finding  # the gate's
    skipped: int  # pictures of `data` that could not be used


def run(config: ExportConfig) -> int:
    """Exports, and prints what was written.

    Raises:
        EngineRefused: the format can't be had, or doesn't keep the answers; nothing is written then.
        FakeRealError: something else that the user can put right.
    """
    exported = export(config)
    print("\n".join(f"{path} ({path.stat().st_size / 1e6:.1f} MB)" for path in exported.files))
    print(f"agrees: {exported.finding.words}")
    return EXIT_PARTIAL if exported.skipped else EXIT_OK


def export(config: ExportConfig) -> Exported:
    """Converts a model, judges the result and, where it keeps the answers, writes it; see `run`."""
    runtime = RUNTIMES[config.format]
    output = _output(config, runtime)
    if config.int8 != (config.data is not None):
        raise ConfigError("--int8 and --data DIR: expected both or neither, since int8 is judged on labelled pictures")
    if runtime.version is None:
        raise EngineRefused(
            f"--format {config.format}: expected the package {runtime.package}, found it missing:"
            f" pip install -r {runtime.installs}"
        )
    start_keras()
    from fakereal.model import model_file

    detector = model_file.load(config.model, foreign=config.foreign_model)
    dataset = None
    if config.data is not None:
        dataset = scan(config.data, detector.metadata.preprocessing)
        log("\n".join(skipped_lines(dataset)) or f"{len(dataset.records):,} labelled pictures")
    files, finding = _converted(config.format, detector, dataset)
    if not finding.passed:
        raise EngineRefused(f"--format {config.format}{' --int8' * config.int8}: refused: {finding.words}")
    network = {output.with_suffix(suffix): content for suffix, content in files.items()}
    card = _card(config, detector.metadata, finding, network)
    content = {**network, output.with_name(f"{output.name}.json"): (json.dumps(card, indent=2) + "\n").encode()}
    for path, each in content.items():
        write_atomic(path, each)
    failed = sum(each.failed for each in dataset.skipped) if dataset else 0
    return Exported(tuple(content), finding, failed)


def _output(config: ExportConfig, runtime: Runtime) -> Path:
    suffix = runtime.suffixes[0]
    output = config.output or config.model.with_name(f"{config.model.stem}{'_int8' * config.int8}{suffix}")
    if output.suffix != suffix:
        raise ConfigError(f"--output: expected a name ending in {suffix} for {config.format}, found {output}")
    return output


def _converted(name: str, detector: Detector, dataset: Dataset | None) -> tuple[dict[str, bytes], Finding]:
    """Returns the converted network by suffix, and what the gate found: int8 if there are pictures."""
    from fakereal.engines.formats import CALIBRATING, check_backend, convert

    check_backend()
    if dataset is None:
        files = convert(detector.model, name)
        return files, engine.check_parity(RUNTIMES[name], files, detector)
    calibrating, judging = halves(dataset.records)
    log(f"int8: {min(len(calibrating), CALIBRATING):,} pictures set the ranges, {len(judging):,} others judge")
    files = convert(detector.model, name, _pictures(calibrating[:CALIBRATING], detector.metadata.preprocessing))
    return files, _judged(files, RUNTIMES[name], detector, judging)


def halves(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Divides labelled pictures by their content, so that copies stay together, and mixes either half the same way.

    Raises:
        DataError: too few to judge by.
    """
    ordered = sorted(records, key=lambda record: hashlib.sha256(record.content.encode()).digest())
    keys = [hashlib.sha256(b"half " + record.content.encode()).digest()[0] % 2 for record in ordered]
    calibrating, judging = ([each for each, key in zip(ordered, keys, strict=True) if key == half] for half in (0, 1))
    if len(judging) < parity.MIN_JUDGING:
        raise DataError(
            f"--int8: expected at least {parity.MIN_JUDGING} pictures to judge by, which is half of --data, found"
            f" {len(judging)}: give more, or export without --int8"
        )
    return calibrating, judging


def _judged(files: dict[str, bytes], runtime: Runtime, detector: Detector, records: Sequence[Record]) -> Finding:
    preprocessing, decision = detector.metadata.preprocessing, detector.metadata.decision
    network = engine.start(runtime, files, preprocessing.image_size_px)
    expected, found = [], []
    with progress_bar("judge", len(records)) as advance:
        for start in range(0, len(records), _BATCH):
            pictures = _pictures(records[start : start + _BATCH], preprocessing)
            expected.append(detector.p_real(pictures))
            found.append(network.p_real(pictures))
            advance(len(pictures))
    labels = np.array([record.label for record in records])
    return parity.same_labels(np.concatenate(expected), np.concatenate(found), labels, decision)


def _pictures(records: Sequence[Record], preprocessing: Preprocessing) -> np.ndarray:
    return np.stack([preprocessing.read(scanned_bytes(record)) for record in records])


def _card(config: ExportConfig, metadata: Metadata, finding: Finding, files: dict[Path, bytes]) -> dict[str, Any]:
    """Returns what others need to use the network rightly."""
    runtime = RUNTIMES[config.format]
    size = metadata.preprocessing.image_size_px
    return {
        "format": config.format,
        "precision": "int8" if config.int8 else "float32",
        "files": {path.name: hashlib.sha256(content).hexdigest() for path, content in files.items()},
        "input": {
            "shape": [1, size, size, 3],
            "type": "float32",
            "meaning": _input_of(metadata.preprocessing),
            "preprocessing": metadata.preprocessing.fingerprint,
        },
        "output": {"shape": [1, 1], "type": "float32", "meaning": "p_real, 0..1: the probability of real"},
        "class_order": list(NAMES),
        "decision": {
            **asdict(metadata.decision),
            "meaning": "p = p_real, held between 1e-7 and 1 - 1e-7;"
            " calibrated_p_fake = 1 - 1 / (1 + exp(-log(p / (1 - p)) / temperature));"
            " fake where calibrated_p_fake is at least threshold; uncertain where it lies inside the band",
        },
        "network": metadata.config.network.name,
        "gate": {"words": finding.words, **finding.figures},
        "model_sha256": sha256_of(config.model),
        "versions": {"fakereal": __version__, runtime.package: runtime.version},
    }


def _input_of(preprocessing: Preprocessing) -> str:
    """Returns in words how a file becomes what the network takes."""
    neutral = preprocessing.neutral
    picture = "the whole picture"
    if neutral:
        picture = (
            f"the centre square at {neutral.side_px} pixels a side, saved as a JPEG of quality {neutral.quality}, 4:2:0"
        )
    return (
        f"RGB of 0..255, not scaled; {picture}, upright by EXIF, over white where transparent, 16 bits of grey scaled"
        " to 8, a JPEG decoded at the smallest scale of 1, 1/2, 1/4, 1/8 that has at least"
        f" {2 * preprocessing.decode_px} pixels a side, stretched to the square by Pillow's bicubic filter"
    )
