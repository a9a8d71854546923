"""Export a detector to the format of another library, with a JSON card that says how to use it.

The exported network is written only where it passes the comparison with Keras, see `parity`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fakereal import __version__
from fakereal.cli import exit_code
from fakereal.dataset.scan import Dataset, Record, scan, scanned_bytes, skipped_lines
from fakereal.engines import engine, parity
from fakereal.engines.formats import RUNTIMES, Runtime
from fakereal.engines.parity import ParityResult
from fakereal.errors import ConfigError, DataError, EngineRefused
from fakereal.files import sha256_of, write_atomic
from fakereal.labels import NAMES
from fakereal.model.metadata import Metadata
from fakereal.preprocessing import CROP_CENTERS, LONGEST_PX, Preprocessing
from fakereal.runtime import log, progress_bar, start_keras

if TYPE_CHECKING:  # it imports Keras
    from fakereal.model.model_file import Detector

_BATCH = 64  # images in memory at once while an int8 network is tested


@dataclass(frozen=True)
class ExportConfig:
    """Options of an export."""

    model: Path
    format: str  # one of RUNTIMES
    output: Path | None = None  # the format's main file; None: beside the model
    int8: bool = False  # a third of the size; needs `data`
    data: Path | None = None  # labeled images: one half calibrates int8, the other half tests it
    foreign_model: bool = False  # the model may be a plain Keras file of another program
    strict: bool = False  # exit code 1 where images of `data` could not be read


@dataclass(frozen=True)
class ExportResult:
    """What was written."""

    files: tuple[Path, ...]  # the network's, then the card
    parity: ParityResult
    skipped: int  # images of `data` that could not be read


def run(config: ExportConfig) -> int:
    """Export, and print what was written.

    Raises:
        EngineRefused: the format is not available, or the outputs differ from Keras; nothing is written then.
        FakeRealError: another problem that the user can solve.
    """
    exported = export(config)
    print("\n".join(f"{path} ({path.stat().st_size / 1e6:.1f} MB)" for path in exported.files))
    print(f"verified: {exported.parity.description}")
    return exit_code(exported.skipped, config.strict)


def export(config: ExportConfig) -> ExportResult:
    """Convert a model, compare the result with Keras and, where it passes, write it; see `run`."""
    runtime = RUNTIMES[config.format]
    output = _output(config, runtime)
    if config.int8 != (config.data is not None):
        raise ConfigError("--int8 and --data DIR go together: int8 is calibrated and tested on labeled images")
    if runtime.version is None:
        raise EngineRefused(
            f"--format {config.format}: package {runtime.package} is not installed:"
            f" pip install -r {runtime.requirements}"
        )
    start_keras()
    from fakereal.model import model_file

    detector = model_file.load(config.model, foreign=config.foreign_model)
    dataset = _scan(config.data, detector.metadata.preprocessing) if config.data is not None else None
    files, result = _convert_and_compare(config.format, detector, dataset)
    if not result.passed:
        option = f"--format {config.format}{' --int8' * config.int8}"
        raise EngineRefused(f"{option}: not written, because {result.description}")
    network = {output.with_suffix(suffix): content for suffix, content in files.items()}
    card = _card(config, detector.metadata, result, network)
    content = {**network, output.with_name(f"{output.name}.json"): (json.dumps(card, indent=2) + "\n").encode()}
    for path, each in content.items():
        write_atomic(path, each)
    failed = sum(each.failed for each in dataset.skipped) if dataset else 0
    return ExportResult(tuple(content), result, failed)


def _output(config: ExportConfig, runtime: Runtime) -> Path:
    suffix = runtime.suffixes[0]
    output = config.output or config.model.with_name(f"{config.model.stem}{'_int8' * config.int8}{suffix}")
    if output.suffix != suffix:
        raise ConfigError(f"--output: expected a name ending in {suffix} for {config.format}, got {output}")
    return output


def _scan(data: Path, preprocessing: Preprocessing) -> Dataset:
    dataset = scan(data, preprocessing)
    log("\n".join(skipped_lines(dataset)) or f"{len(dataset.records):,} labeled images")
    return dataset


def _convert_and_compare(
    name: str, detector: Detector, dataset: Dataset | None
) -> tuple[dict[str, bytes], ParityResult]:
    """Return the converted network by suffix, and how it compares with Keras; int8 if there are labeled images."""
    from fakereal.engines.conversion import MAX_CALIBRATION_IMAGES, check_backend, convert

    check_backend()
    if dataset is None:
        files = convert(detector.model, name)
        return files, engine.check_parity(RUNTIMES[name], files, detector)
    calibration, test = split_in_halves(dataset.records)
    calibration = calibration[:MAX_CALIBRATION_IMAGES]
    log(f"int8: {len(calibration):,} images for calibration, {len(test):,} others for the test")
    files = convert(detector.model, name, _read(calibration, detector.metadata.preprocessing))
    return files, _check_labels(files, RUNTIMES[name], detector, test)


def split_in_halves(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Split labeled images into one half for calibration and one for the test, by content: copies stay together.

    Raises:
        DataError: too few images for the test.
    """
    ordered = sorted(records, key=lambda record: hashlib.sha256(record.content.encode()).digest())
    keys = [hashlib.sha256(b"half " + record.content.encode()).digest()[0] % 2 for record in ordered]
    calibration, test = ([each for each, key in zip(ordered, keys, strict=True) if key == half] for half in (0, 1))
    if len(test) < parity.MIN_TEST_IMAGES:
        raise DataError(
            f"--int8: half of --data is used for the test; expected at least {parity.MIN_TEST_IMAGES} images there,"
            f" got {len(test)}: add images, or export without --int8"
        )
    return calibration, test


def _check_labels(
    files: dict[str, bytes], runtime: Runtime, detector: Detector, records: Sequence[Record]
) -> ParityResult:
    preprocessing, decision = detector.metadata.preprocessing, detector.metadata.decision
    network = engine.start_network(runtime, files, preprocessing.image_size_px)
    expected, actual = [], []
    with progress_bar("test", len(records)) as advance:
        for start in range(0, len(records), _BATCH):
            images = _read(records[start : start + _BATCH], preprocessing)
            expected.append(detector.p_real(images))
            actual.append(network.p_real(images))
            advance(len(images))
    labels = np.array([record.label for record in records])
    return parity.compare_labels(np.concatenate(expected), np.concatenate(actual), labels, decision)


def _read(records: Sequence[Record], preprocessing: Preprocessing) -> np.ndarray:
    return np.stack([preprocessing.read(scanned_bytes(record)) for record in records])


def _card(config: ExportConfig, metadata: Metadata, result: ParityResult, files: dict[Path, bytes]) -> dict[str, Any]:
    """Return what a program needs to use the network correctly."""
    runtime = RUNTIMES[config.format]
    size = metadata.preprocessing.image_size_px
    return {
        "format": config.format,
        "precision": "int8" if config.int8 else "float32",
        "files": {path.name: hashlib.sha256(content).hexdigest() for path, content in files.items()},
        "input": {
            "shape": [1, size, size, 3],
            "type": "float32",
            "meaning": _input_meaning(metadata.preprocessing),
            "preprocessing": metadata.preprocessing.fingerprint,
            "views": {
                "square": metadata.preprocessing.square,
                "crops": CROP_CENTERS[: metadata.preprocessing.crops],
                "longest_px": LONGEST_PX,
                "decode_px": 2 * metadata.preprocessing.decode_px,
            },
        },
        "output": {"shape": [1, 1], "type": "float32", "meaning": "p_real, 0..1: the probability of real"},
        "class_order": list(NAMES),
        "decision": {
            **asdict(metadata.decision),
            "meaning": "p = p_real, clipped to 1e-7 .. 1 - 1e-7;"
            " calibrated_p_fake = 1 - 1 / (1 + exp(-log(p / (1 - p)) / temperature));"
            " fake where calibrated_p_fake is at least threshold; uncertain where it lies inside the band",
        },
        "network": metadata.config.network.name,
        "gate": {"words": result.description, **result.figures},
        "model_sha256": sha256_of(config.model),
        "versions": {"fakereal": __version__, runtime.package: runtime.version},
    }


def _input_meaning(preprocessing: Preprocessing) -> str:
    """Describe how an image file becomes the network's input."""
    neutral = preprocessing.neutral
    image = "the whole image"
    if neutral:
        image = (
            f"the center square at {neutral.side_px} x {neutral.side_px} pixels, saved as a JPEG of quality"
            f" {neutral.quality}, 4:2:0"
        )
    fit = "its center square resized" if preprocessing.square else "stretched to the square"
    return (
        f"RGB of 0..255, not scaled; {image}, upright by EXIF, over white where transparent, 16-bit gray scaled to 8,"
        " a JPEG decoded at the smallest scale of 1, 1/2, 1/4, 1/8 that has at least"
        f" {2 * preprocessing.decode_px} pixels per side, {fit} by Pillow's bicubic filter"
        f"{_crops_meaning(preprocessing)}"
    )


def _crops_meaning(preprocessing: Preprocessing) -> str:
    """Describe the crops that are predicted beside the whole image, empty where there are none."""
    if not preprocessing.crops:
        return ""
    size, places = preprocessing.image_size_px, CROP_CENTERS[: preprocessing.crops]
    return (
        f"; run once more for each crop of {size} x {size} pixels, where the image (bicubic, reduced to at most"
        f" {LONGEST_PX} pixels long) has at least {size} on the shorter and more on the longer side:"
        f" at {', '.join(map(str, places))} of the room from the left and top; p_real is the sigmoid of the mean logit"
    )
