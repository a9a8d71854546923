"""Run converted networks without TensorFlow: LiteRT, OpenVINO, ONNX Runtime. Each is imported at its first use.

All three process one image at a time, each image on one thread. That is the fastest layout on a CPU, because the
feature maps of one image stay in its cache, and it makes an output independent of the other images in the batch, of
their number and of the number of threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fakereal.runtime import package_version

RunFunction = Callable[[np.ndarray], np.ndarray]
"""Map one image, float32 (1, S, S, 3), to its output, float32 (1, ...); not thread-safe."""

_MAX_THREADS = 32  # each holds a copy of the network's working memory


class Network(Protocol):
    """A detector at work: a loaded Keras model or a converted network."""

    def p_real(self, images: np.ndarray) -> np.ndarray:
        """Map images 0..255 of shape (n, S, S, 3) to n probabilities of real, 0..1."""


def run_network(network: Network, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return p_real, float64 (n,), and the out-of-distribution scores (n,), None where the network gives none."""
    if not hasattr(network, "outputs"):
        return np.asarray(network.p_real(images), np.float64), None
    outputs = np.asarray(network.outputs(images), np.float64)
    return outputs[:, 0], outputs[:, 1] if outputs.shape[1] == 2 else None


@dataclass(frozen=True)
class Runtime:
    """A library that runs networks in its own format."""

    title: str  # for people
    package: str  # name of the package that pip installs
    suffixes: tuple[str, ...]  # of the files that hold a network, the main file first
    open: Callable[[Mapping[str, bytes], int, int], Callable[[], RunFunction]]
    """(suffix -> content, threads, S) -> a factory that gives each thread its own RunFunction."""
    requirements: str = "requirements-export.txt"  # the file that lists the package

    @property
    def version(self) -> str | None:
        """The installed version, or None."""
        return package_version(self.package)


class ConvertedNetwork:
    """A converted network that runs on several threads, one image per thread.

    Args:
        runtime: the library that runs it.
        files: suffix -> content.
        image_size_px: width and height of the images.
        threads: images processed at once; None: one per processor core that this process may use.
    """

    def __init__(
        self, runtime: Runtime, files: Mapping[str, bytes], image_size_px: int, threads: int | None = None
    ) -> None:
        self.threads = threads or core_count()
        self._new_run = runtime.open(files, self.threads, image_size_px)
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="network")
        # Batches are padded with black images. Computed here, so that a network that can't run fails at once.
        self._black = self._output(np.zeros((image_size_px, image_size_px, 3), np.uint8))

    def p_real(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities of real, float64 (n,), 0..1, of images 0..255 of shape (n, S, S, 3)."""
        return self.outputs(images)[:, 0].astype(np.float64)

    def outputs(self, images: np.ndarray) -> np.ndarray:
        """Return any network's outputs, float32 (n, ...); those of a detector are p_real and, mostly, the score."""
        found = list(self._pool.map(self._output_or_black, images))
        return np.stack(found) if found else np.empty((0, *self._black.shape), self._black.dtype)

    def _output_or_black(self, image: np.ndarray) -> np.ndarray:
        return self._output(image) if image.any() else self._black

    def _output(self, image: np.ndarray) -> np.ndarray:
        if not hasattr(self._local, "run"):
            self._local.run = self._new_run()
        return self._local.run(image[None].astype(np.float32))[0]


def pad_batch(images: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
    """Return images, at least one, padded with black ones to a full batch (batch_size, S, S, 3).

    With Keras, the last bits of an output depend on the size of the batch, so all batches have the same.
    """
    batch = np.zeros((batch_size, *images[0].shape), images[0].dtype)
    batch[: len(images)] = images
    return batch


def core_count() -> int:
    """Return the default number of threads: the processor cores that this process may use, at most 32."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, _MAX_THREADS)


def _open_litert(files: Mapping[str, bytes], threads: int, size: int) -> Callable[[], RunFunction]:
    from ai_edge_litert.interpreter import Interpreter

    def new_run() -> RunFunction:
        interpreter = Interpreter(model_content=files[".tflite"], num_threads=1)
        interpreter.allocate_tensors()
        (pixels,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()

        def run(image: np.ndarray) -> np.ndarray:
            interpreter.set_tensor(pixels["index"], image)
            interpreter.invoke()
            return interpreter.get_tensor(output["index"])

        return run

    return new_run


def _open_openvino(files: Mapping[str, bytes], threads: int, size: int) -> Callable[[], RunFunction]:
    import openvino

    weights = openvino.Tensor(np.frombuffer(files[".bin"], np.uint8))
    core = openvino.Core()
    model = core.read_model(files[".xml"], weights)
    model.reshape([1, size, size, 3])
    options = {
        "INFERENCE_PRECISION_HINT": "f32",  # the default is bf16 where the processor has it, which changes labels
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": str(threads),
        "INFERENCE_NUM_THREADS": str(threads),
    }
    compiled = core.compile_model(model, "CPU", options)

    def new_run() -> RunFunction:
        request = compiled.create_infer_request()
        return lambda image: request.infer({0: image})[0].copy()

    return new_run


def _open_onnx(files: Mapping[str, bytes], threads: int, size: int) -> Callable[[], RunFunction]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(files[".onnx"], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: lambda image: session.run(None, {name: image})[0]


LITERT = "litert"
"""The name of the format that prediction runs by default."""

RUNTIMES = {
    LITERT: Runtime("LiteRT", "ai-edge-litert", (".tflite",), _open_litert, "requirements.txt"),
    "openvino": Runtime("OpenVINO", "openvino", (".xml", ".bin"), _open_openvino),
    "onnx": Runtime("ONNX Runtime", "onnxruntime", (".onnx",), _open_onnx),
}
"""By the names that users give to --engine and --format."""
