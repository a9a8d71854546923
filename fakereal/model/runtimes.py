"""What runs a converted network without Keras: LiteRT, OpenVINO, ONNX Runtime. None of them is imported before its use.

All three see one picture at a time, each on one thread. That is the fastest layout on a CPU, since a picture's maps
stay in its cache, and it makes an output depend on nothing but the picture: not on its neighbours, nor on how many
there are, nor on the number of threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from typing import Protocol

import numpy as np

Run = Callable[[np.ndarray], np.ndarray]
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
    open: Callable[[Mapping[str, bytes], int, int], Callable[[], Run]]  # (suffix -> content, threads, S) -> new runs
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
        self.threads = threads or cores()
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


def filled(images: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
    """Returns pictures, at least one, filled up with black ones to a whole batch (batch_size, S, S, 3).

    With Keras the last bits of an output depend on the size of the batch, so all batches have the same.
    """
    batch = np.zeros((batch_size, *images[0].shape), images[0].dtype)
    batch[: len(images)] = images
    return batch


def cores() -> int:
    """Returns how many threads a network gets unless told otherwise."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(found, _MAX_THREADS)


def _litert(files: Mapping[str, bytes], threads: int, size: int) -> Callable[[], Run]:
    from ai_edge_litert.interpreter import Interpreter

    def new_run() -> Run:
        interpreter = Interpreter(model_content=files[".tflite"], num_threads=1)
        interpreter.allocate_tensors()
        place, result = (each()[0]["index"] for each in (interpreter.get_input_details, interpreter.get_output_details))

        def run(image: np.ndarray) -> np.ndarray:
            interpreter.set_tensor(place, image)
            interpreter.invoke()
            return interpreter.get_tensor(result)

        return run

    return new_run


def _openvino(files: Mapping[str, bytes], threads: int, size: int) -> Callable[[], Run]:
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

    def new_run() -> Run:
        request = compiled.create_infer_request()
        return lambda image: request.infer({0: image})[0].copy()

    return new_run


def _onnx(files: Mapping[str, bytes], threads: int, size: int) -> Callable[[], Run]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(files[".onnx"], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: lambda image: session.run(None, {name: image})[0]


RUNTIMES = {
    "litert": Runtime("LiteRT", "ai-edge-litert", (".tflite",), _litert, "requirements.txt"),
    "openvino": Runtime("OpenVINO", "openvino", (".xml", ".bin"), _openvino),
    "onnx": Runtime("ONNX Runtime", "onnxruntime", (".onnx",), _onnx),
}
"""By the names that users give them."""
