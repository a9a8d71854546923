"""From a Keras network to the formats of `runtimes.RUNTIMES`; only here TensorFlow's converters are at work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

from fakereal.cli import held_back, one_line
from fakereal.errors import EngineRefused

if TYPE_CHECKING:
    import onnx
    import openvino

Files = dict[str, bytes]
"""Suffix -> content."""

CALIBRATING = 300
"""Pictures that int8 takes its ranges from, at most: more change them no further."""

_ONNX_OPSET = 18


def convert(model: keras.Model, name: str, calibrating: Iterable[np.ndarray] = ()) -> Files:
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
        with held_back():
            return _CONVERTERS[name](model, examples)
    except ImportError as error:
        raise EngineRefused(f"expected {error.name}, found it missing: {_INSTALL}") from error
    except Exception as error:  # converters raise whatever they like
        raise EngineRefused(f"the network can't be converted ({one_line(error)[:200]})") from error


def check_backend() -> None:
    """Raises EngineRefused where Keras runs on another backend than the converters need."""
    if keras.backend.backend() != "tensorflow":
        raise EngineRefused(f"expected the TensorFlow backend to convert with, found {keras.backend.backend()}")


_INSTALL = "pip install -r requirements-export.txt"


def _litert(model: keras.Model, examples: list[np.ndarray]) -> Files:
    import tensorflow as tf

    # A graph that still has variables gives a small file whose every output is NaN: its weights stay behind.
    converter = tf.lite.TFLiteConverter.from_concrete_functions([_frozen(model, 1)])
    if examples:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([example] for example in examples)
    return {".tflite": converter.convert()}


def _openvino(model: keras.Model, examples: list[np.ndarray]) -> Files:
    import openvino

    with _graph_file(model) as path:
        # Its Python converter reports every use to its maker unless told not to; the reader below does not.
        converted = _quantized(openvino.Core().read_model(path), examples)
        openvino.serialize(converted, path.with_suffix(".xml"))
        return {suffix: path.with_suffix(suffix).read_bytes() for suffix in (".xml", ".bin")}


def _onnx(model: keras.Model, examples: list[np.ndarray]) -> Files:
    import tf2onnx

    frozen = _frozen(model, None)
    names = {"input_names": [frozen.inputs[0].name], "output_names": [frozen.outputs[0].name]}
    converted, _ = tf2onnx.convert.from_graph_def(frozen.graph.as_graph_def(), opset=_ONNX_OPSET, **names)
    return {".onnx": _quantized(converted, examples).SerializeToString()}


_CONVERTERS: dict[str, Callable[[keras.Model, list[np.ndarray]], Files]] = {
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
