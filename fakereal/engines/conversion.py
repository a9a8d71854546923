"""Convert a Keras network to the formats of `formats.RUNTIMES`, in float32 or int8.

The only module that runs TensorFlow's converters; apart from `formats`, which must work without TensorFlow.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fakereal.errors import EngineRefused
from fakereal.runtime import capture_output, interrupts_at_checks_only, one_line

if TYPE_CHECKING:
    import keras
    import onnx
    import openvino

ConvertedFiles = dict[str, bytes]
"""Suffix -> content."""

MAX_CALIBRATION_IMAGES = 300
"""Number of images that int8 ranges are computed from: more change them no further."""

_ONNX_OPSET = 18


def convert(model: keras.Model, name: str, calibration: Iterable[np.ndarray] = ()) -> ConvertedFiles:
    """Convert a network to a format of `formats.RUNTIMES`.

    Args:
        model: maps images (n, S, S, 3), float32 of 0..255, to p_real (n, 1), or to the features of a backbone.
        name: the format.
        calibration: representative images, uint8 (S, S, 3), for quantization to int8; none: float32.

    Raises:
        EngineRefused: a package is missing, or the network can't be converted.
    """
    examples = [image[None].astype(np.float32) for image in calibration]
    try:
        with interrupts_at_checks_only(), capture_output():  # TensorFlow's converters can lose Ctrl-C, or crash
            return _CONVERTERS[name](model, examples)
    except ImportError as error:
        raise EngineRefused(f"{error.name} is not installed: pip install -r requirements-export.txt") from error
    except Exception as error:  # converters raise whatever they like
        raise EngineRefused(f"the network can't be converted ({one_line(error)[:200]})") from error


def check_backend() -> None:
    """Raise EngineRefused unless Keras runs on TensorFlow, which the converters need."""
    import keras

    if keras.backend.backend() != "tensorflow":
        raise EngineRefused(f"conversion needs the TensorFlow backend, Keras runs on {keras.backend.backend()}")


def _to_litert(model: keras.Model, examples: list[np.ndarray]) -> ConvertedFiles:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_concrete_functions([_graph(model, 1)])  # it freezes the weights itself
    if examples:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([example] for example in examples)
    return {".tflite": converter.convert()}


def _to_openvino(model: keras.Model, examples: list[np.ndarray]) -> ConvertedFiles:
    import openvino

    with _graph_file(model) as path:
        # Unlike `Core.read_model`, OpenVINO's Python converter sends usage reports unless told not to.
        converted = _quantized(openvino.Core().read_model(path), examples)
        openvino.serialize(converted, path.with_suffix(".xml"))
        return {suffix: path.with_suffix(suffix).read_bytes() for suffix in (".xml", ".bin")}


def _to_onnx(model: keras.Model, examples: list[np.ndarray]) -> ConvertedFiles:
    import tf2onnx

    frozen = _frozen(model)
    names = {"input_names": [frozen.inputs[0].name], "output_names": [frozen.outputs[0].name]}
    converted, _ = tf2onnx.convert.from_graph_def(frozen.graph.as_graph_def(), opset=_ONNX_OPSET, **names)
    return {".onnx": _quantized(converted, examples).SerializeToString()}


_CONVERTERS: dict[str, Callable[[keras.Model, list[np.ndarray]], ConvertedFiles]] = {
    "litert": _to_litert,
    "openvino": _to_openvino,
    "onnx": _to_onnx,
}


def _quantized(
    converted: openvino.Model | onnx.ModelProto, examples: list[np.ndarray]
) -> openvino.Model | onnx.ModelProto:
    if not examples:
        return converted
    os.environ.setdefault("NNCF_CI", "1")  # disables nncf's usage reports
    import nncf

    is_onnx = hasattr(converted, "graph")
    name = converted.graph.input[0].name if is_onnx else 0
    dataset = nncf.Dataset(examples, lambda example: {name: example})
    # Activations such as swish are strongly asymmetric: MIXED quantizes them asymmetrically.
    return nncf.quantize(converted, dataset, preset=nncf.QuantizationPreset.MIXED, subset_size=len(examples))


@contextmanager
def _graph_file(model: keras.Model) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fakereal-") as folder:
        path = Path(folder, "model.pb")
        path.write_bytes(_frozen(model).graph.as_graph_def().SerializeToString())
        yield path


def _frozen(model: keras.Model):
    """Return the network as a TensorFlow function with its weights as constants, for batches of any size."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    return convert_variables_to_constants_v2(_graph(model, None))


def _graph(model: keras.Model, batch: int | None):
    """Return the network as a TensorFlow function; traced as Keras does, without autograph, which takes longer."""
    import tensorflow as tf

    pixels = tf.TensorSpec([batch, *model.input_shape[1:]], tf.float32, name="pixels")
    function = tf.function(lambda pixels: model(pixels, training=False), [pixels], autograph=False)
    return function.get_concrete_function()
