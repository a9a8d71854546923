"""Export a detector to the format of another library, with a JSON card that says how to use it.

The exported network is written only where it passes the comparison with Keras, see `parity`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fakereal.cli import exit_code
from fakereal.dataset.scan import Dataset, Record, scan, scanned_bytes, skipped_lines
from fakereal.engines import engine, parity
from fakereal.engines.card import OriginalModel, card_path, make_card
from fakereal.engines.formats import LITERT, RUNTIMES, Runtime
from fakereal.engines.parity import ParityResult
from fakereal.errors import ConfigError, DataError, EngineRefused
from fakereal.files import keep_backups, replacing, sha256_of, write_atomic
from fakereal.model.foreign import ForeignModel
from fakereal.model.metadata import EXPORTED_SUFFIX, beside, check_suffix, read_metadata
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import check_interrupt, interrupts_at_checks_only, log, one_line, progress_bar, start_keras

if TYPE_CHECKING:  # they import Keras
    import keras

    from fakereal.model.model_file import Detector

KERAS = "keras"
"""The format of our own model files; the others are those of `RUNTIMES`."""

_BATCH = 64  # images in memory at once while an int8 network is tested


@dataclass(frozen=True)
class ExportConfig:
    """Options of an export."""

    model: Path
    format: str  # one of `cli.EXPORT_FORMATS`: RUNTIMES, or a model file of Keras
    output: Path | None = None  # the format's main file; None: beside the model
    int8: bool = False  # a third of the size; needs `data`
    data: Path | None = None  # labeled images: one half calibrates int8, the other half tests it
    foreign: ForeignModel | None = None  # accept a Keras file of another program, used as this says
    force: bool = False  # replace another exported model without a backup
    strict: bool = False  # exit code 1 where images of `data` could not be read


@dataclass(frozen=True)
class ExportResult:
    """What was written."""

    files: tuple[Path, ...]  # the network's, then the card
    parity: ParityResult
    skipped: int  # images of `data` that could not be read


@dataclass(frozen=True)
class ConvertedBackbone:
    """The lower part of a network, converted to LiteRT before the upper one was trained, and the upper one."""

    network: bytes  # a `.tflite` file, from pixels to features
    features: np.ndarray  # of `parity.parity_images`, by Keras
    head: keras.Model  # from features to what `Detector.scoring_model` gives


def run(config: ExportConfig) -> int:
    """Export, and print what was written.

    Raises:
        EngineRefused: the format is not available, or the outputs differ from Keras; nothing is written then.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is written, or, where writing had begun, all of it.
        FakeRealError: another problem that the user can solve.
    """
    with interrupts_at_checks_only():  # a network and its card are written together, or not at all
        exported = export(config)
    print("\n".join(f"{path} ({path.stat().st_size / 1e6:.1f} MB)" for path in exported.files))
    print(f"verified: {exported.parity.description}")
    return exit_code(exported.skipped, config.strict)


def export(config: ExportConfig) -> ExportResult:
    """Convert a model, compare the result with Keras and, where it passes, write it; see `run`."""
    if config.format == KERAS:
        return _export_model_file(config)
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

    detector = model_file.load(config.model, config.foreign)
    dataset = _scan(config.data, detector.metadata.preprocessing) if config.data is not None else None
    check_interrupt()
    files, result = _convert_and_compare(config.format, detector, dataset)
    if not result.passed:
        option = f"--format {config.format}{' --int8' * config.int8}"
        raise EngineRefused(f"{option}: not written, because {result.description}")
    original = OriginalModel(sha256_of(config.model), foreign=read_metadata(config.model) is None)
    replaced = [output.with_suffix(suffix) for suffix in files]
    check_interrupt()
    with keep_backups(*replaced, card_path(output), force=config.force):
        written = _write(config.format, output, files, detector, original, result, config.int8)
    failed = sum(each.failed for each in dataset.skipped) if dataset else 0
    return ExportResult(written, result, failed)


def export_beside(model: Path, detector: Detector, backbone: ConvertedBackbone | None = None) -> None:
    """Write the LiteRT network of a model file beside it, so that prediction needs no conversion; log why if it can't.

    Args:
        model: the model file, already written.
        detector: the network in it.
        backbone: its lower part, where that has been converted: only the rest is converted then.
    """
    output, runtime = model.with_suffix(EXPORTED_SUFFIX), RUNTIMES[LITERT]
    try:
        if runtime.version is None:
            raise EngineRefused(f"package {runtime.package} is not installed")
        files, result = _join_and_compare(detector, backbone) or _convert_and_compare(LITERT, detector, None)
        if not result.passed:
            raise EngineRefused(result.description)
        _write(LITERT, output, files, detector, OriginalModel(sha256_of(model), foreign=False), result)
    except EngineRefused as error:
        for path in (output, card_path(output)):  # of the model that this one replaces
            path.unlink(missing_ok=True)
        log(f"no {output.name} for prediction without TensorFlow: {error}")


def _write(
    name: str,
    output: Path,
    files: dict[str, bytes],
    detector: Detector,
    original: OriginalModel,
    result: ParityResult,
    int8: bool = False,
) -> tuple[Path, ...]:
    """Write the network's files and, last, their card; return the paths."""
    network = {output.with_suffix(suffix): content for suffix, content in files.items()}
    size = detector.metadata.preprocessing.image_size_px
    p_real = engine.start_network(RUNTIMES[name], files, size).p_real(parity.synthetic_images(size))
    card = make_card(name, detector.metadata, original, network, result, p_real, int8)
    written = {**network, card_path(output): card}
    for path, content in written.items():
        write_atomic(path, content)
    return tuple(written)


def _export_model_file(config: ExportConfig) -> ExportResult:
    """Write a model file of our own, with the settings of a foreign model in it; see `export`."""
    output = config.output or beside(config.model, f"{config.model.stem}_fakereal.keras")
    if config.int8 or config.data:
        raise ConfigError(f"--int8 and --data: not available with --format {KERAS}")
    check_suffix(output)
    if output.exists() and output.samefile(config.model):
        raise ConfigError(f"--output: {output} is the model itself: name another file")
    start_keras()
    from fakereal.model import model_file

    detector = model_file.load(config.model, config.foreign)
    images = parity.parity_images(detector.metadata.preprocessing.image_size_px)
    expected = detector.outputs(images)
    check_interrupt()
    with keep_backups(output, force=config.force), replacing(output, output.suffix) as written:
        model_file.save(written, detector)
        result = parity.compare_outputs(expected, model_file.load(written).outputs(images))
        if not result.passed:
            raise EngineRefused(f"--format {KERAS}: not written, because {result.description}")
        check_interrupt()
    return ExportResult((output,), result, 0)


def _output(config: ExportConfig, runtime: Runtime) -> Path:
    suffix = runtime.suffixes[0]
    output = config.output or beside(config.model, f"{config.model.stem}{'_int8' * config.int8}{suffix}")
    if output.suffix != suffix:
        raise ConfigError(f"--output: expected a name ending in {suffix} for {config.format}, got {output}")
    return output


def _scan(data: Path, preprocessing: Preprocessing) -> Dataset:
    dataset = scan(data, preprocessing)
    log("\n".join(skipped_lines(dataset)) or f"{len(dataset.records):,} labeled images")
    return dataset


def _join_and_compare(
    detector: Detector, backbone: ConvertedBackbone | None
) -> tuple[dict[str, bytes], ParityResult] | None:
    """Return what `_convert_and_compare` does, in a tenth of its time; None where the whole must be converted."""
    if backbone is None:
        return None
    from fakereal.engines.conversion import convert
    from fakereal.model import networks

    try:
        head = convert(backbone.head, LITERT)
        with interrupts_at_checks_only():
            files = {EXPORTED_SUFFIX: _joined(backbone.network, head[EXPORTED_SUFFIX])}
            expected = networks.outputs_once(backbone.head, backbone.features)
            result = engine.check_parity(RUNTIMES[LITERT], files, detector, expected)
        if not result.passed:
            raise EngineRefused(result.description)
    except EngineRefused as error:
        log(f"converting the whole network, not only its head: {error}")
        return None
    return files, result


def _joined(lower: bytes, upper: bytes) -> bytes:
    try:
        from fakereal.engines.litert_join import join

        return join(lower, upper)
    except Exception as error:  # of modules of TensorFlow that another version may lack or change
        raise EngineRefused(f"the parts can't be joined ({one_line(error)[:200]})") from error


def _convert_and_compare(
    name: str, detector: Detector, dataset: Dataset | None
) -> tuple[dict[str, bytes], ParityResult]:
    """Return the converted network by suffix, and how it compares with Keras; int8 if there are labeled images."""
    from fakereal.engines.conversion import MAX_CALIBRATION_IMAGES, check_backend, convert

    check_backend()
    if dataset is None:
        files = convert(detector.scoring_model, name)
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
            check_interrupt()
            advance(len(images))
    labels = np.array([record.label for record in records])
    return parity.compare_labels(np.concatenate(expected), np.concatenate(actual), labels, decision)


def _read(records: Sequence[Record], preprocessing: Preprocessing) -> np.ndarray:
    return np.stack([preprocessing.read(scanned_bytes(record)) for record in records])
