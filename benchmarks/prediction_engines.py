"""Measure images/s of one network on every engine, batch size, thread layout and precision, on a CPU.

    python -m benchmarks.prediction_engines                              models/pretrained.h5, 64 images, 5 rounds
    python -m benchmarks.prediction_engines --model M.h5 --rounds 3

Every round runs each layout once, so that other load on the machine affects all alike; medians are shown. "2 x 1" is
two networks of one thread each, "1 x 2" one network of two threads. On a busy machine, look at the images per
processor second. Keras uses all cores in every layout. Needs requirements-export.txt.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks._shared import Table, new_parser
from fakereal import cli, runtime
from fakereal.engines import parity
from fakereal.engines.formats import core_count

Run = Callable[[np.ndarray], np.ndarray]
"""float32 (n, S, S, 3) -> p_real (n,)."""


@dataclass
class Layout:
    """One row of the table."""

    engine: str
    batch: int
    networks: int
    threads: int  # of each network
    new_run: Callable[[], Run]
    seconds: list[float] = field(default_factory=list)
    processor_s: list[float] = field(default_factory=list)
    p_real: np.ndarray | None = None

    def start(self) -> None:
        """Make the networks."""
        runs = [self.new_run() for _ in range(self.networks)]
        self._idle, self._pool = runs, ThreadPoolExecutor(self.networks)

    def measure(self, images: np.ndarray) -> None:
        """Run all images once."""
        batches = [images[start : start + self.batch] for start in range(0, len(images), self.batch)]
        wall_s, processor_s = time.perf_counter(), time.process_time()
        self.p_real = np.concatenate(list(self._pool.map(self._one, batches)))
        self.seconds.append(time.perf_counter() - wall_s)
        self.processor_s.append(time.process_time() - processor_s)

    def _one(self, images: np.ndarray) -> np.ndarray:
        run = self._idle.pop()
        try:
            return run(images.astype(np.float32))
        finally:
            self._idle.append(run)


def main() -> int:
    """Print the table; return the exit code."""
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/pretrained.h5"), metavar="FILE")
    parser.add_argument("--images", type=cli.parse_count, default=64, metavar="N")
    parser.add_argument("--rounds", type=cli.parse_count, default=5, metavar="N")
    options = parser.parse_args()
    runtime.start_keras()
    from fakereal.model import model_file

    detector = model_file.load(options.model)
    samples = parity.parity_images(detector.metadata.preprocessing.image_size_px)
    images = np.resize(samples, (options.images, *samples.shape[1:]))
    with runtime.capture_output(shown_on_failure=True):
        layouts = list(all_layouts(detector))
        for layout in layouts:
            layout.start()
            layout.measure(images)  # warms up, and is not counted
            layout.seconds, layout.processor_s = [], []
    with runtime.progress_bar("measure", options.rounds * len(layouts)) as advance:
        for _ in range(options.rounds):
            for layout in layouts:
                layout.measure(images)
                advance(1)
    print_table(layouts, len(images), detector.p_real(samples))
    return 0


def all_layouts(detector) -> Iterator[Layout]:
    """Yield every layout, with its network converted."""
    from fakereal.engines.conversion import convert

    for batch in (1, 8, 32):
        yield Layout("Keras", batch, 1, core_count(), lambda: detector.p_real)
    litert, onnx, vino = (convert(detector.model, name) for name in ("litert", "onnx", "openvino"))
    thread_layouts = [(1, core_count()), (core_count(), 1)]
    for networks, threads in thread_layouts:
        yield Layout("LiteRT float32", 1, networks, threads, lambda threads=threads: litert_run(litert, threads))
    for batch in (1, 8, 32):
        for networks, threads in thread_layouts:
            new_run = onnx_runs(onnx, threads)
            yield Layout("ONNX Runtime float32", batch, networks, threads, new_run)
    for precision in ("f32", "bf16"):
        for batch in (1, 8, 32):
            for networks, threads in thread_layouts:
                new_run = openvino_runs(vino, precision, networks, detector.model.input_shape[1], batch)
                yield Layout(f"OpenVINO {precision.replace('f32', 'float32')}", batch, networks, threads, new_run)


def litert_run(files: dict[str, bytes], threads: int) -> Run:
    """Return a LiteRT network."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=files[".tflite"], num_threads=threads)
    interpreter.allocate_tensors()
    place, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(images: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(place, images)
        interpreter.invoke()
        return interpreter.get_tensor(result).reshape(-1)

    return run


def onnx_runs(files: dict[str, bytes], threads: int) -> Callable[[], Run]:
    """Return a function that makes an ONNX Runtime network."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(files[".onnx"], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: lambda images: session.run(None, {name: images})[0].reshape(-1)


def openvino_runs(files: dict[str, bytes], precision: str, streams: int, size: int, batch: int) -> Callable[[], Run]:
    """Return a function that makes an OpenVINO network for one batch size."""
    import openvino

    core = openvino.Core()
    model = core.read_model(files[".xml"], openvino.Tensor(np.frombuffer(files[".bin"], np.uint8)))
    model.reshape([batch, size, size, 3])
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "THROUGHPUT" if streams > 1 else "LATENCY",
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(core_count()),
    }
    compiled = core.compile_model(model, "CPU", options)

    def new_run() -> Run:
        request = compiled.create_infer_request()
        return lambda images: request.infer({0: images})[0].reshape(-1)

    return new_run


def print_table(layouts: list[Layout], images: int, expected: np.ndarray) -> None:
    """Print one row per layout."""
    table = Table(
        "engine", "batch", "networks x threads", "images/s", "images per processor second", "largest difference"
    )
    for layout in layouts:
        wall_s, processor_s = statistics.median(layout.seconds), statistics.median(layout.processor_s)
        difference = np.abs(layout.p_real[: len(expected)] - expected[: len(layout.p_real)]).max()
        rates = f"{images / wall_s:.0f}", f"{images / processor_s:.0f}"
        table.row(layout.engine, layout.batch, f"{layout.networks} x {layout.threads}", *rates, f"{difference:.0e}")


if __name__ == "__main__":
    sys.exit(main())
