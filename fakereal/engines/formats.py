"""What runs a converted network without Keras: LiteRT, OpenVINO, ONNX Runtime. None of them is imported before its use.

All three see one picture at a time, each on one thread. That is the fastest layout on a CPU, since a picture's maps
stay in its cache, and it makes an output depend on nothing but the picture: not on its neighbours, nor on how many
there are, nor on the number of threads.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fakereal.errors import EngineRefused
from fakereal.runtime import capture_output, one_line

RunFunction = Callable[[np.ndarray], np.ndarray]
"""Maps a picture, float32 (1, S, S, 3), to its output, float32 (1, ...); one thread at a time may call it."""


class Network(Protocol):
    """What gives the outputs: a loaded model, or another engine that keeps its verdicts."""

    def p_real(self, images: np.ndarray) -> np.ndarray:
        """Maps pictures 0..255 of shape (n, S, S, 3) to the n outputs from 0 to 1."""


_MAX_THREADS = 32  # each holds a copy of the network's working memory


@dataclass(frozen=True)
class Runtime:
    """A program library that runs networks of its own format."""

    title: str  # for people
    package: str  # that pip installs
    suffixes: tuple[str, ...]  # of the files that hold a network, that of the first file first
    open: Callable[
        [Mapping[str, bytes], int, int], Callable[[], RunFunction]
    ]  # (suffix -> content, threads, S) -> new runs
    installs: str = "requirements-export.txt"  # where the package is listed

    @property
    def version(self) -> str | None:
        """The version that is installed, or None."""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None


class RowByRow:
    """A converted network at work on several threads.

    Args:
        runtime: what runs it.
        files: suffix -> content.
        image_size_px: width and height of the pictures.
        threads: how many pictures at once; None: one for each processor core that this process may use.
    """

    def __init__(
        self, runtime: Runtime, files: Mapping[str, bytes], image_size_px: int, threads: int | None = None
    ) -> None:
        self.threads = threads or core_count()
        self._new_run = runtime.open(files, self.threads, image_size_px)
        self._of_thread = threading.local()
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="network")
        # What batches are filled up with; here too, so that a network that can't run is noticed at once.
        self._black = self._output(np.zeros((image_size_px, image_size_px, 3), np.uint8))

    def p_real(self, images: np.ndarray) -> np.ndarray:
        """Returns the output of a whole network for pictures 0..255 of shape (n, S, S, 3): float64 (n,), 0..1."""
        return np.fromiter((row.item() for row in self.rows(images)), np.float64, len(images))

    def rows(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the output of any network for each of those pictures: float32, without the dimension of the batch."""
        return self._pool.map(self._of_any, images)

    def _of_any(self, image: np.ndarray) -> np.ndarray:
        return self._output(image) if image.any() else self._black

    def _output(self, image: np.ndarray) -> np.ndarray:
        if not hasattr(self._of_thread, "run"):
            self._of_thread.run = self._new_run()
        return self._of_thread.run(image[None].astype(np.float32))[0]


def fill_batch(images: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
    """Returns pictures, at least one, filled up with black ones to a whole batch (batch_size, S, S, 3).

    With Keras the last bits of an output depend on the size of the batch, so all batches have the same.
    """
    batch = np.zeros((batch_size, *images[0].shape), images[0].dtype)
    batch[: len(images)] = images
    return batch


def core_count() -> int:
    """Returns how many threads a network gets unless told otherwise."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(found, _MAX_THREADS)


def _litert_runtimes(files: Mapping[str, bytes], threads: int, size: int) -> Callable[[], RunFunction]:
    from ai_edge_litert.interpreter import Interpreter

    def new_run() -> RunFunction:
        interpreter = Interpreter(model_content=files[".tflite"], num_threads=1)
        interpreter.allocate_tensors()
        place, result = (each()[0]["index"] for each in (interpreter.get_input_details, interpreter.get_output_details))

        def run(image: np.ndarray) -> np.ndarray:
            interpreter.set_tensor(place, image)
            interpreter.invoke()
            return interpreter.get_tensor(result)

        return run

    return new_run


def _openvino_runtimes(files: Mapping[str, bytes], threads: int, size: int) -> Callable[[], RunFunction]:
    import openvino

    weights = openvino.Tensor(np.frombuffer(files[".bin"], np.uint8))
    core = openvino.Core()
    model = core.read_model(files[".xml"], weights)
    model.reshape([1, size, size, 3])
    options = {
        "INFERENCE_PRECISION_HINT": "f32",  # its own choice is bf16 where the processor has it: labels change
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": str(threads),
        "INFERENCE_NUM_THREADS": str(threads),
    }
    compiled = core.compile_model(model, "CPU", options)

    def new_run() -> RunFunction:
        request = compiled.create_infer_request()
        return lambda image: request.infer({0: image})[0].copy()

    return new_run


def _onnx_runtimes(files: Mapping[str, bytes], threads: int, size: int) -> Callable[[], RunFunction]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(files[".onnx"], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: lambda image: session.run(None, {name: image})[0]


RUNTIMES = {
    "litert": Runtime("LiteRT", "ai-edge-litert", (".tflite",), _litert_runtimes, "requirements.txt"),
    "openvino": Runtime("OpenVINO", "openvino", (".xml", ".bin"), _openvino_runtimes),
    "onnx": Runtime("ONNX Runtime", "onnxruntime", (".onnx",), _onnx_runtimes),
}
"""By the names that users give them."""


# ---- From a Keras network to the formats of `runtimes.RUNTIMES`; only here TensorFlow's converters are at work.

if TYPE_CHECKING:
    import keras
    import onnx
    import openvino

ConvertedFiles = dict[str, bytes]
"""Suffix -> content."""

CALIBRATING = 300
"""Pictures that int8 takes its ranges from, at most: more change them no further."""

_ONNX_OPSET = 18


def convert(model: keras.Model, name: str, calibrating: Iterable[np.ndarray] = ()) -> ConvertedFiles:
    """Converts a network to the format `name` of `runtimes.RUNTIMES`.

    Args:
        model: pictures (n, S, S, 3), float32 of 0..255, in; p_real (n, 1), or the activations of a part, out.
        name: the format.
        calibrating: uint8 pictures (S, S, 3) like those that it will see: makes int8 of it. None of them: float32.

    Raises:
        EngineRefused: in one line.
    """
    examples = [image[None].astype(np.float32) for image in calibrating]
    try:
        with capture_output():
            return _CONVERTERS[name](model, examples)
    except ImportError as error:
        raise EngineRefused(f"expected {error.name}, found it missing: {_INSTALL}") from error
    except Exception as error:  # converters raise whatever they like
        raise EngineRefused(f"the network can't be converted ({one_line(error)[:200]})") from error


def check_backend() -> None:
    """Raises EngineRefused where Keras runs on another backend than the converters need."""
    import keras  # here, as whoever runs a converted network needs none

    if keras.backend.backend() != "tensorflow":
        raise EngineRefused(f"expected the TensorFlow backend to convert with, found {keras.backend.backend()}")


_INSTALL = "pip install -r requirements-export.txt"


def _litert(model: keras.Model, examples: list[np.ndarray]) -> ConvertedFiles:
    import tensorflow as tf

    # A graph that still has variables gives a small file whose every output is NaN: its weights stay behind.
    converter = tf.lite.TFLiteConverter.from_concrete_functions([_frozen(model, 1)])
    if examples:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([example] for example in examples)
    return {".tflite": converter.convert()}


def _openvino(model: keras.Model, examples: list[np.ndarray]) -> ConvertedFiles:
    import openvino

    with _graph_file(model) as path:
        # Its Python converter reports every use to its maker unless told not to; the reader below does not.
        converted = _quantized(openvino.Core().read_model(path), examples)
        openvino.serialize(converted, path.with_suffix(".xml"))
        return {suffix: path.with_suffix(suffix).read_bytes() for suffix in (".xml", ".bin")}


def _onnx(model: keras.Model, examples: list[np.ndarray]) -> ConvertedFiles:
    import tf2onnx

    frozen = _frozen(model, None)
    names = {"input_names": [frozen.inputs[0].name], "output_names": [frozen.outputs[0].name]}
    converted, _ = tf2onnx.convert.from_graph_def(frozen.graph.as_graph_def(), opset=_ONNX_OPSET, **names)
    return {".onnx": _quantized(converted, examples).SerializeToString()}


_CONVERTERS: dict[str, Callable[[keras.Model, list[np.ndarray]], ConvertedFiles]] = {
    "litert": _litert,
    "openvino": _openvino,
    "onnx": _onnx,
}


def _quantized(
    converted: openvino.Model | onnx.ModelProto, examples: list[np.ndarray]
) -> openvino.Model | onnx.ModelProto:
    if not examples:
        return converted
    os.environ.setdefault("NNCF_CI", "1")  # or it reports its use to its maker
    import nncf

    is_onnx = hasattr(converted, "graph")
    name = converted.graph.input[0].name if is_onnx else 0
    dataset = nncf.Dataset(examples, lambda example: {name: example})
    # Activations like swish reach far below zero on one side only: ranges of their own for both ends.
    return nncf.quantize(converted, dataset, preset=nncf.QuantizationPreset.MIXED, subset_size=len(examples))


@contextmanager
def _graph_file(model: keras.Model) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fakereal-") as folder:
        path = Path(folder, "model.pb")
        path.write_bytes(_frozen(model, None).graph.as_graph_def().SerializeToString())
        yield path


def _frozen(model: keras.Model, batch: int | None):
    """Returns the network as a TensorFlow function with its weights as constants, the one input in front."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    pixels = tf.TensorSpec([batch, *model.input_shape[1:]], tf.float32, name="pixels")
    function = tf.function(lambda pixels: model(pixels, training=False), input_signature=[pixels])
    return convert_variables_to_constants_v2(function.get_concrete_function())
