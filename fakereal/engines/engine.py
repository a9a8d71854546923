"""Open a model file with an inference engine: Keras, or a faster one that was verified to give the same outputs.

A network that was exported runs as it is (see `card`); the one beside a Keras file runs in its place. Where there is
none, the model is converted once, compared with Keras on a few images, and cached by the SHA-256 of its file. After
that, prediction imports no TensorFlow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fakereal.cli import ENGINES
from fakereal.engines import parity
from fakereal.engines.card import ExportedModel, find_beside, read_exported
from fakereal.engines.conversion_cache import Conversion, find_conversion, store_conversion
from fakereal.engines.formats import LITERT, RUNTIMES, ConvertedNetwork, Runtime, run_network
from fakereal.engines.parity import ParityResult
from fakereal.errors import EngineRefused
from fakereal.files import sha256_of
from fakereal.model.foreign import ForeignModel
from fakereal.model.heatmap import Explainer, Explanation
from fakereal.model.metadata import EXPORTED_SUFFIX, Metadata, check_suffix, of_foreign, read_own
from fakereal.runtime import (
    capture_output,
    interrupts_at_checks_only,
    log,
    one_line,
    package_version,
    start_keras,
)

if TYPE_CHECKING:
    from fakereal.model.model_file import Detector

AUTO, KERAS, *FAST = ENGINES
"""Values of `--engine`: AUTO chooses, KERAS runs the model file as it is, and FAST are the engines that need a
conversion, in the order in which AUTO tries them: LiteRT is as fast as OpenVINO, starts sooner and is a third of the
size."""

MIN_IMAGES_TO_CONVERT = 1_000
"""For fewer images, conversion takes longer than it saves."""

_NVIDIA_DRIVER = Path("/dev/nvidiactl")  # exists when a driver is loaded; only TensorFlow knows whether it can use it


@dataclass
class ModelFile:
    """A model file: metadata and hash are read once, the Keras network is loaded when it is first needed."""

    path: Path
    metadata: Metadata | None  # None: a Keras file of another program
    sha256: str  # of the file's content
    detector: Detector | None = None
    exported: ExportedModel | None = None  # the same network, ready for LiteRT
    foreign: ForeignModel | None = None  # how a file of another program is used

    @property
    def identity(self) -> str:
        """What the outputs depend on: the file, and how one of another program is used."""
        return self.sha256 if self.metadata is not None else f"{self.sha256} {self.foreign.key}"

    @property
    def key(self) -> str:
        """The identity as a SHA-256, for the cache."""
        return self.sha256 if self.metadata is not None else hashlib.sha256(self.identity.encode()).hexdigest()

    def load(self) -> Detector:
        """Return the Keras network; ModelFileError where the file is an exported network."""
        if self.detector is None:
            check_suffix(self.path)
            start_keras()
            from fakereal.model import model_file

            self.detector = model_file.load_network(self.path, self.metadata, self.foreign)
        return self.detector


@dataclass(frozen=True)
class OpenedNetwork:
    """A model file, ready to predict."""

    network: ConvertedNetwork | Detector
    metadata: Metadata
    engine: str  # name and version; on one machine, equal ones compute equal outputs
    description: str  # of the engine, one line for people
    file: ModelFile

    @property
    def model_sha256(self) -> str:
        """The SHA-256 of the model file."""
        return self.file.sha256

    @property
    def is_exported(self) -> bool:
        """Whether the model file is an exported network, so that there is no Keras network to load."""
        return self.file.path.suffix == EXPORTED_SUFFIX

    @property
    def identity(self) -> str:
        """See `ModelFile.identity`."""
        return self.file.identity

    def load_detector(self) -> Detector:
        """Return the Keras network of the same file."""
        return self.file.load()


@dataclass(frozen=True)
class ConvertedExplainer:
    """Outputs of a converted network with evidence from Keras: explaining an image does not change its output."""

    network: ConvertedNetwork
    explainer: Explainer

    def p_real(self, images: np.ndarray) -> np.ndarray:
        """Return p_real alone."""
        return self.network.p_real(images)

    def outputs(self, images: np.ndarray) -> np.ndarray:
        """Return the converted network's outputs."""
        return self.network.outputs(images)

    def explain(self, images: np.ndarray) -> Explanation:
        """Return outputs and evidence for uint8 images of shape (n, S, S, 3)."""
        p_real, scores = run_network(self.network, images)
        return replace(self.explainer.explain(images), p_real=p_real, scores=scores)


def open_network(
    model: Path,
    wanted: str = AUTO,
    foreign: ForeignModel | None = None,
    threads: int | None = None,
    detector: Detector | None = None,
    cache: Path | None = None,
) -> OpenedNetwork:
    """Open a model file with an engine.

    Args:
        model: the model file.
        wanted: one of `cli.ENGINES`. `auto` takes the first of FAST that is available and passes the comparison
            with Keras, else Keras.
        foreign: also accept a Keras file of another program, used as this says.
        threads: for a converted network, see `ConvertedNetwork`; Keras chooses its own number.
        detector: the network in the file, if it is already loaded.
        cache: folder of converted networks; None: the user's.

    Raises:
        ModelFileError: as `metadata.read_own` and `model_file.load_network`.
        EngineRefused: the engine that was named can't be used.
    """
    file = _read_file(model, foreign, detector)
    if model.suffix == EXPORTED_SUFFIX:
        if wanted not in (AUTO, LITERT):
            raise EngineRefused(f"--engine {wanted}: {model} is an exported network, which only LiteRT runs")
        return _open_exported(file, threads)
    if file.metadata is None:
        log(foreign.note)
    if wanted == AUTO and has_gpu():
        return _open_keras(file, ["a GPU is available"])
    reasons = []
    for name in {AUTO: FAST, KERAS: ()}.get(wanted, (wanted,)):
        try:
            return _open_with(name, file, threads, cache)
        except EngineRefused as error:
            if wanted != AUTO:
                raise EngineRefused(f"--engine {name}: {error}; use --engine {AUTO}") from error
            reasons.append(f"{RUNTIMES[name].title}: {error}")
    return _open_keras(file, reasons)


def _read_file(model: Path, foreign: ForeignModel | None, detector: Detector | None) -> ModelFile:
    """Read a model file's metadata, which the network beside it has too: to read those takes no h5py."""
    if model.suffix == EXPORTED_SUFFIX:
        exported = read_exported(model)
        return ModelFile(model, exported.metadata, exported.sha256, exported=exported)
    sha256 = sha256_of(model) if model.is_file() else ""
    exported = find_beside(model, sha256) if sha256 and foreign is None else None
    metadata = exported.metadata if exported else read_own(model, foreign is not None)
    return ModelFile(model, metadata, sha256, detector, exported, foreign)


def _open_keras(file: ModelFile, reasons: Sequence[str]) -> OpenedNetwork:
    detector = file.load()
    description = "engine: Keras" + (f" ({'; '.join(reasons)})" if reasons else "")
    return OpenedNetwork(detector, detector.metadata, keras_version(), description, file)


def _open_with(name: str, file: ModelFile, threads: int | None, cache: Path | None) -> OpenedNetwork:
    """Open a file with a converted network; raise EngineRefused as `open_converted`."""
    if name == LITERT and file.exported is not None:
        return _open_exported(file, threads)
    runtime, results = RUNTIMES[name], []

    def convert_and_compare() -> Conversion:
        log(f"converting {file.path.name} to {runtime.title} (once per model)")
        detector = file.load()
        from fakereal.engines.conversion import check_backend, convert

        check_backend()
        files = convert(detector.scoring_model, name)
        result = check_parity(runtime, files, detector)
        results.append(f": {result.description}")
        return Conversion.of(files, detector.metadata.preprocessing.image_size_px, result)

    network, conversion = open_converted(name, file.key, convert_and_compare, cache, threads)
    description = f"engine: {runtime.title} {runtime.version}, {network.threads} threads{''.join(results)}"
    metadata = file.metadata or of_foreign(conversion.image_size_px, file.foreign)
    return OpenedNetwork(network, metadata, f"{name} {runtime.version}", description, file)


def _open_exported(file: ModelFile, threads: int | None) -> OpenedNetwork:
    """Open an exported network, which must give the outputs that its card records.

    Raises:
        EngineRefused: LiteRT is missing, or the network can't run here or gives other outputs.
    """
    runtime, exported = installed_runtime(LITERT), file.exported
    size_px = exported.metadata.preprocessing.image_size_px
    network = start_network(runtime, {EXPORTED_SUFFIX: exported.content}, size_px, threads)
    difference = exported.difference(network)
    if not difference <= exported.limit:  # also for NaN
        raise EngineRefused(
            f"{exported.path.name} gives other outputs here: p_real differs by {difference:.2g} from what its"
            f" card records; the limit is {exported.limit:.1g}"
        )
    description = f"engine: {runtime.title} {runtime.version}, {network.threads} threads"
    return OpenedNetwork(network, exported.metadata, f"{LITERT} {runtime.version}", description, file)


def installed_runtime(name: str) -> Runtime:
    """Return a runtime of `RUNTIMES`; raise EngineRefused where its package is missing."""
    runtime = RUNTIMES[name]
    if runtime.version is None:
        raise EngineRefused(f"package {runtime.package} is not installed: pip install -r {runtime.requirements}")
    return runtime


def open_converted(
    name: str, key: str, convert: Callable[[], Conversion], cache: Path | None = None, threads: int | None = None
) -> tuple[ConvertedNetwork, Conversion]:
    """Return a converted network, from the cache where possible.

    Args:
        name: of the engine, one of `RUNTIMES`.
        key: hash of what the network computes.
        convert: converts it and compares it with Keras, where no earlier run did.
        cache: as `find_conversion`.
        threads: as `ConvertedNetwork`.

    Raises:
        EngineRefused: the package is missing, or the network can't be converted, gave other outputs or can't run.
    """
    runtime = installed_runtime(name)
    conversion = find_conversion(key, name, runtime.version, cache)
    if conversion is None:
        conversion = convert()
        store_conversion(key, name, runtime.version, conversion, cache)
    if not conversion.files:
        raise EngineRefused(conversion.description)
    return start_network(runtime, conversion.files, conversion.image_size_px, threads), conversion


def open_explainer(opened: OpenedNetwork) -> Explainer:
    """Return an explainer whose outputs come from the engine that the model was opened with.

    Raises:
        ConfigError: Keras is missing, or runs on another backend than TensorFlow.
        ModelFileError: the network can't be explained.
    """
    detector = opened.load_detector()
    from fakereal.model.gradcam import GradCamExplainer

    explainer = GradCamExplainer(detector.model, detector.metadata.prototypes)
    if isinstance(opened.network, ConvertedNetwork):
        return ConvertedExplainer(opened.network, explainer)
    return explainer


def check_parity(
    runtime: Runtime, files: dict[str, bytes], detector: Detector, expected: np.ndarray | None = None
) -> ParityResult:
    """Compare a float32 network with the Keras network it was made from; raise EngineRefused as `start_network`.

    Args:
        runtime: what runs it.
        files: suffix -> content.
        detector: the network that it was made from.
        expected: what that one gives for `parity.parity_images`; None: it is computed.
    """
    from fakereal.model import networks

    size = detector.metadata.preprocessing.image_size_px
    images = parity.parity_images(size)
    with interrupts_at_checks_only():
        network = start_network(runtime, files, size)
        if expected is None:
            expected = networks.outputs_once(detector.scoring_model, images)
        return parity.compare_outputs(expected, network.outputs(images))


def start_network(
    runtime: Runtime, files: dict[str, bytes], image_size_px: int, threads: int | None = None
) -> ConvertedNetwork:
    """Return a converted network, ready to run; raise EngineRefused where it can't."""
    try:
        with capture_output():
            return ConvertedNetwork(runtime, files, image_size_px, threads)
    except Exception as error:  # runtimes raise whatever they like
        raise EngineRefused(f"the converted network does not run here ({one_line(error)[:200]})") from error


def keras_version() -> str:
    """Return the name and version of Keras as an engine."""
    import keras

    return f"keras {keras.__version__} on {keras.backend.backend()}"


def has_gpu() -> bool:
    """Return whether Keras has a GPU, which is faster than any engine here; cheap where no driver is loaded."""
    if not _NVIDIA_DRIVER.exists() or package_version("keras") is None:
        return False
    start_keras()
    import keras

    if keras.backend.backend() != "tensorflow":
        return True  # another backend is chosen for the sake of a GPU
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))
