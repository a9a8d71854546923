"""Open a model file with an inference engine: Keras, or a faster one that was verified to give the same outputs.

A model is converted once, compared with Keras on a few images, and cached by the SHA-256 of its file. After that,
prediction imports no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fakereal.cli import ENGINES
from fakereal.engines import parity
from fakereal.engines.conversion_cache import Conversion, find_conversion, store_conversion
from fakereal.engines.formats import RUNTIMES, ConvertedNetwork, Runtime
from fakereal.engines.parity import ParityResult
from fakereal.errors import EngineRefused
from fakereal.files import sha256_of
from fakereal.model.heatmap import Explainer, Explanation
from fakereal.model.metadata import FOREIGN_NOTE, Metadata, of_foreign, read_own
from fakereal.runtime import capture_output, log, one_line, start_keras

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
    metadata: Metadata | None  # None: a plain Keras file of another program
    sha256: str  # of the file's content
    detector: Detector | None = None

    def load(self) -> Detector:
        """Return the Keras network."""
        if self.detector is None:
            start_keras()
            from fakereal.model import model_file

            self.detector = model_file.load_network(self.path, self.metadata)
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

    def load_detector(self) -> Detector:
        """Return the Keras network of the same file."""
        return self.file.load()


@dataclass(frozen=True)
class ConvertedExplainer:
    """Outputs of a converted network with evidence from Keras: explaining an image does not change its output."""

    network: ConvertedNetwork
    explainer: Explainer

    def p_real(self, images: np.ndarray) -> np.ndarray:
        """Return the outputs alone."""
        return self.network.p_real(images)

    def explain(self, images: np.ndarray) -> Explanation:
        """Return outputs and evidence for uint8 images of shape (n, S, S, 3)."""
        return replace(self.explainer.explain(images), p_real=self.network.p_real(images))


def open_network(
    model: Path,
    wanted: str = AUTO,
    foreign: bool = False,
    threads: int | None = None,
    detector: Detector | None = None,
    cache: Path | None = None,
) -> OpenedNetwork:
    """Open a model file with an engine.

    Args:
        model: the model file.
        wanted: one of `cli.ENGINES`. `auto` takes the first of FAST that is available and passes the comparison
            with Keras, else Keras.
        foreign: also accept a plain Keras file of another program.
        threads: for a converted network, see `ConvertedNetwork`; Keras chooses its own number.
        detector: the network in the file, if it is already loaded.
        cache: folder of converted networks; None: the user's.

    Raises:
        ModelFileError: as `metadata.read_own` and `model_file.load_network`.
        EngineRefused: the engine that was named can't be used.
    """
    file = ModelFile(model, read_own(model, foreign), sha256_of(model), detector)
    if file.metadata is None:
        log(FOREIGN_NOTE)
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


def _open_keras(file: ModelFile, reasons: Sequence[str]) -> OpenedNetwork:
    detector = file.load()
    description = "engine: Keras" + (f" ({'; '.join(reasons)})" if reasons else "")
    return OpenedNetwork(detector, detector.metadata, keras_version(), description, file)


def _open_with(name: str, file: ModelFile, threads: int | None, cache: Path | None) -> OpenedNetwork:
    """Open a file with a converted network; raise EngineRefused as `open_converted`."""
    runtime, results = RUNTIMES[name], []

    def convert_and_compare() -> Conversion:
        log(f"converting {file.path.name} to {runtime.title} (once per model)")
        detector = file.load()
        from fakereal.engines.conversion import check_backend, convert

        check_backend()
        files = convert(detector.model, name)
        result = check_parity(runtime, files, detector)
        results.append(f": {result.description}")
        return Conversion.of(files, detector.metadata.preprocessing.image_size_px, result)

    network, size_px = open_converted(name, file.sha256, convert_and_compare, cache, threads)
    description = f"engine: {runtime.title} {runtime.version}, {network.threads} threads{''.join(results)}"
    metadata = file.metadata or of_foreign(size_px)
    return OpenedNetwork(network, metadata, f"{name} {runtime.version}", description, file)


def open_converted(
    name: str, key: str, convert: Callable[[], Conversion], cache: Path | None = None, threads: int | None = None
) -> tuple[ConvertedNetwork, int]:
    """Return a converted network, from the cache where possible, and its image size in pixels.

    Args:
        name: of the engine, one of `RUNTIMES`.
        key: hash of what the network computes.
        convert: converts it and compares it with Keras, where no earlier run did.
        cache: as `find_conversion`.
        threads: as `ConvertedNetwork`.

    Raises:
        EngineRefused: the package is missing, or the network can't be converted, gave other outputs or can't run.
    """
    runtime = RUNTIMES[name]
    if runtime.version is None:
        raise EngineRefused(f"package {runtime.package} is not installed: pip install -r {runtime.requirements}")
    conversion = find_conversion(key, name, runtime.version, cache)
    if conversion is None:
        conversion = convert()
        store_conversion(key, name, runtime.version, conversion, cache)
    if not conversion.files:
        raise EngineRefused(conversion.description)
    return start_network(runtime, conversion.files, conversion.image_size_px, threads), conversion.image_size_px


def open_explainer(opened: OpenedNetwork) -> Explainer:
    """Return an explainer whose outputs come from the engine that the model was opened with.

    Raises:
        ConfigError: Keras is missing, or runs on another backend than TensorFlow.
        ModelFileError: the network can't be explained.
    """
    detector = opened.load_detector()
    from fakereal.model.gradcam import GradCamExplainer

    explainer = GradCamExplainer(detector.model)
    if isinstance(opened.network, ConvertedNetwork):
        return ConvertedExplainer(opened.network, explainer)
    return explainer


def check_parity(runtime: Runtime, files: dict[str, bytes], detector: Detector) -> ParityResult:
    """Compare a float32 network with the Keras network it was made from; raise EngineRefused as `start_network`."""
    size = detector.metadata.preprocessing.image_size_px
    images = parity.parity_images(size)
    network = start_network(runtime, files, size)
    return parity.compare_outputs(detector.p_real(images), network.p_real(images))


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
    if not _NVIDIA_DRIVER.exists():
        return False
    start_keras()
    import keras

    if keras.backend.backend() != "tensorflow":
        return True  # another backend is chosen for the sake of a GPU
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))
