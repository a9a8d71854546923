"""Which engine runs a model file: Keras, or a faster one that was seen to give the same answers.

A model is converted once, held against Keras on a few pictures, and kept by the content of its file. From then on
nothing of TensorFlow is imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fakereal.cli import ENGINES
from fakereal.engines import parity
from fakereal.engines.formats import RUNTIMES, RowByRow, Runtime
from fakereal.errors import EngineRefused
from fakereal.files import cache_folder, sha256_of
from fakereal.model.heatmap import Explains, Explanation
from fakereal.model.metadata import FOREIGN_NOTE, Metadata, of_foreign, read_own
from fakereal.runtime import capture_output, log, one_line, start_keras

if TYPE_CHECKING:
    from fakereal.model.model_file import Detector

AUTO, KERAS, *FAST = ENGINES
"""What `auto` tries, in this order: LiteRT is as fast, starts sooner and is a third of the size."""

WORTH_CONVERTING = 1_000
"""Pictures to compute, at least: for fewer, converting takes longer than it saves."""

_GPU = Path("/dev/nvidiactl")  # a driver is loaded; whether TensorFlow can use it, only TensorFlow knows


@dataclass(frozen=True)
class OpenedNetwork:
    """A model file at work."""

    network: RowByRow | Detector
    metadata: Metadata
    engine: str  # its name and version: equal ones give equal outputs on one machine
    words: str  # one line for people
    model_sha256: str  # of the file's content
    detector: Detector | None = None  # the Keras network, where it had to be loaded

    def keras(self, model: Path) -> Detector:
        """Returns the Keras network, loaded from the same file unless it is at hand."""
        if self.detector is not None:
            return self.detector
        return _load(model)


@dataclass(frozen=True)
class Explaining:
    """Outputs of one engine with the evidence of another, so that a picture's output is the same with and without."""

    network: RowByRow
    explainer: Explains

    def p_real(self, images: np.ndarray) -> np.ndarray:
        """Returns the outputs alone."""
        return self.network.p_real(images)

    def explain(self, images: np.ndarray) -> Explanation:
        """Returns the outputs for uint8 pictures of shape (n, S, S, 3) and the evidence behind each of them."""
        return replace(self.explainer.explain(images), p_real=self.network.p_real(images))


def open_network(
    model: Path,
    wanted: str = AUTO,
    foreign: bool = False,
    threads: int | None = None,
    detector: Detector | None = None,
    cache: Path | None = None,
) -> OpenedNetwork:
    """Opens a model file with an engine.

    Args:
        model: the model file.
        wanted: one of `cli.ENGINES`. `auto` takes the first of FAST that can be had and keeps the answers, else Keras.
        foreign: also take a plain Keras file of another program.
        threads: of a converted network, see `RowByRow`; Keras has its own.
        detector: what the file holds, where it is at hand.
        cache: the folder where conversions are kept; None: the user's.

    Raises:
        ModelFileError: as `model_file.load`.
        EngineRefused: the engine that was asked for by name can't be used.
    """
    metadata = read_own(model, foreign)
    if metadata is None:
        log(FOREIGN_NOTE)
    digest, reasons = sha256_of(model), []
    if wanted == AUTO and has_gpu():
        reasons, candidates = ["a GPU is there"], ()
    else:
        candidates = {AUTO: FAST, KERAS: ()}.get(wanted, (wanted,))
    for name in candidates:
        attempt = _Attempt(model, digest, metadata, name, detector, threads, cache)
        try:
            return attempt.open()
        except EngineRefused as error:
            if wanted != AUTO:
                raise EngineRefused(f"--engine {name}: {error}; --engine {AUTO} takes what fits") from error
            reasons.append(f"{RUNTIMES[name].title}: {error}")
            detector = attempt.detector
    detector = detector or _load(model)
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return OpenedNetwork(detector, detector.metadata, keras_version(), f"engine: Keras{why}", digest, detector)


class _Attempt:
    """One model with one engine."""

    def __init__(
        self,
        model: Path,
        digest: str,
        metadata: Metadata | None,
        name: str,
        detector: Detector | None,
        threads: int | None,
        cache: Path | None,
    ) -> None:
        self._cache = cache
        self._model, self._digest, self._metadata, self._name, self._threads = model, digest, metadata, name, threads
        self._runtime, self._comment = RUNTIMES[name], ""
        self.detector = detector  # loaded where the model has to be converted

    def open(self) -> OpenedNetwork:
        """Returns the network at work; raises EngineRefused."""
        network, size_px = converted(self._name, self._digest, self._converted, self._cache, self._threads)
        version = self._runtime.version
        words = f"engine: {self._runtime.title} {version}, {network.threads} threads{self._comment}"
        return OpenedNetwork(network, self._metadata or of_foreign(size_px), f"{self._name} {version}", words,
                      self._digest, self.detector)  # fmt: skip

    def _converted(self) -> CacheEntry:
        """Converts and judges; a refusal by the gate is kept too, so that it is found out only once.

        Raises:
            EngineRefused: it can't be converted or doesn't run, which another time it may.
        """
        log(f"converting {self._model.name} for {self._runtime.title}, once")
        self.detector = self.detector or _load(self._model)
        size = self.detector.metadata.preprocessing.image_size_px
        from fakereal.engines.formats import check_backend, convert

        check_backend()
        files = convert(self.detector.model, self._name)
        found = check_parity(self._runtime, files, self.detector)
        self._comment = f": {found.words}"
        return CacheEntry(files if found.passed else {}, size, found.words, found.figures)


def converted(
    name: str, digest: str, make: Callable[[], CacheEntry], cache: Path | None = None, threads: int | None = None
) -> tuple[RowByRow, int]:
    """Returns a converted network at work and the size of its pictures, from the cache where an earlier run kept it.

    Args:
        name: of the engine, one of `RUNTIMES`.
        digest: names what the network computes.
        make: converts it and holds it against Keras, where no run has done so yet.
        cache: as `engine_cache.find`.
        threads: as `RowByRow`.

    Raises:
        EngineRefused: the package is missing, it can't be converted, was refused by its gate, or does not run.
    """
    runtime = RUNTIMES[name]
    if runtime.version is None:
        raise EngineRefused(f"expected the package {runtime.package}: pip install -r {runtime.installs}")
    key = digest, name, runtime.version
    entry = find_cached(*key, cache)
    if entry is None:
        entry = make()
        store_converted(*key, entry, cache)
    if not entry.files:
        raise EngineRefused(entry.words)
    return start(runtime, entry.files, entry.image_size_px, threads), entry.image_size_px


def explaining(opened: OpenedNetwork, model: Path) -> Explains:
    """Returns what gives a model's outputs, by the engine that it was opened with, and the evidence behind them.

    Raises:
        ConfigError: Keras is missing, or runs on another backend than TensorFlow.
        ModelFileError: a network that can't be explained.
    """
    detector = opened.keras(model)
    from fakereal.model.gradcam import Explainer

    explainer = Explainer(detector.model)
    if isinstance(opened.network, RowByRow):
        return Explaining(opened.network, explainer)
    return explainer


def check_parity(runtime: Runtime, files: dict[str, bytes], detector: Detector) -> parity.Finding:
    """Holds a float32 network against the Keras network that it was made from; raises EngineRefused as `start`."""
    size = detector.metadata.preprocessing.image_size_px
    pictures = parity.calibration_pictures(size)
    network = start(runtime, files, size)
    return parity.same_outputs(detector.p_real(pictures), network.p_real(pictures))


def start(runtime: Runtime, files: dict[str, bytes], image_size_px: int, threads: int | None = None) -> RowByRow:
    """Returns a converted network at work; raises EngineRefused where it can't run."""
    try:
        with capture_output():
            return RowByRow(runtime, files, image_size_px, threads)
    except Exception as error:  # runtimes raise whatever they like
        raise EngineRefused(f"the converted network does not run here ({one_line(error)[:200]})") from error


def _load(model: Path) -> Detector:
    start_keras()
    from fakereal.model import model_file

    return model_file.load(model, foreign=True, told=True)  # whether it may be foreign was settled before


def keras_version() -> str:
    """Returns how Keras is called as an engine."""
    import keras

    return f"keras {keras.__version__} on {keras.backend.backend()}"


def has_gpu() -> bool:
    """Says whether Keras has a GPU, which is faster than any engine here; costs nothing where no driver is loaded."""
    if not _GPU.exists():
        return False
    start_keras()
    import keras

    if keras.backend.backend() != "tensorflow":
        return True  # whoever chose another backend did so for their accelerator
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


# ---- Converted networks kept from run to run, beside the cache of pictures. The folder may be deleted at any time.
#
# An entry is a folder that appears whole, by renaming, and never changes: a kill leaves no half entry, and of two runs
# that convert the same model, the later one uses its own and drops it. Damage is noticed by checksums.

_FORMAT = 2  # of an entry; another number makes all entries anew
_RECORD = "record.json"
_NETWORK = "network"  # the files are called network.tflite and the like
_KEPT = 20  # entries, as large as their networks; those that nobody used for longest make room
_DAY_S = 86_400


@dataclass(frozen=True)
class CacheEntry:
    """What came of a conversion."""

    files: dict[str, bytes]  # suffix -> content; empty where the network was refused
    image_size_px: int  # what a model file of another program doesn't say by itself
    words: str  # what the gate found, or why the network was refused
    figures: dict[str, Any]  # the gate's


def find_cached(model_sha256: str, engine: str, version: str, cache: Path | None = None) -> CacheEntry | None:
    """Returns what an earlier run kept, None where there is nothing sound.

    Args:
        model_sha256: of the model file, or another name of what the network computes; 32 digits count.
        engine: one of `runtimes.RUNTIMES`.
        version: of the engine.
        cache: the folder of all caches; None: the user's.
    """
    folder = _folder(model_sha256, engine, version, cache)
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        files = {suffix: (folder / f"{_NETWORK}{suffix}").read_bytes() for suffix in record["files"]}
        if {suffix: hashlib.sha256(content).hexdigest() for suffix, content in files.items()} != record["files"]:
            raise ValueError("its content has changed")
        entry = CacheEntry(files, **record["entry"])
    except FileNotFoundError:
        if not folder.is_dir():
            return None
        damage = "a file is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        damage = one_line(error)
    else:
        with contextlib.suppress(OSError):
            os.utime(folder)
        return entry
    log(f"cache: {folder.name} is thrown away and made anew, as {damage}")
    shutil.rmtree(folder, ignore_errors=True)
    return None


def store_converted(model_sha256: str, engine: str, version: str, entry: CacheEntry, cache: Path | None = None) -> None:
    """Keeps a conversion for the next run, by what `find` takes; says so where that can't be done."""
    folder = _folder(model_sha256, engine, version, cache)
    plain = asdict(entry)
    del plain["files"]
    checksums = {suffix: hashlib.sha256(content).hexdigest() for suffix, content in entry.files.items()}
    text = json.dumps({"files": checksums, "entry": plain}, indent=1, allow_nan=False)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, suffix=".part", ignore_cleanup_errors=True) as temporary:
            part = Path(temporary, "entry")
            part.mkdir()
            for suffix, content in entry.files.items():
                (part / f"{_NETWORK}{suffix}").write_bytes(content)
            (part / _RECORD).write_text(text, encoding="utf-8")
            with contextlib.suppress(OSError):  # another run was first
                part.rename(folder)
        _make_room(folder.parent)
    except OSError as error:
        log(f"cache: {folder.parent} can't be written ({error.strerror or error}), so the next run converts again")


def _folder(model_sha256: str, engine: str, version: str, cache: Path | None) -> Path:
    return (cache or cache_folder()) / "engines" / f"{model_sha256[:32]}-{engine}-{version}-{_FORMAT}"


def _make_room(folder: Path) -> None:
    """Removes the entries that nobody used for longest, and what kills left behind a day ago."""
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another run has removed it
            found.append((path.stat().st_mtime, path))
    found.sort(reverse=True)
    entries = [path for _, path in found if path.suffix != ".part"]
    left = [path for changed, path in found if path.suffix == ".part" and time.time() - changed > _DAY_S]
    for path in (*entries[_KEPT:], *left):
        shutil.rmtree(path, ignore_errors=True)
