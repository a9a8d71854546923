from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import predict_and_save_json as door
from fakereal.cli import run_cli
from fakereal.config import Config, NetworkConfig
from fakereal.errors import ModelFileError
from fakereal.labels import FAKE, REAL
from fakereal.predict.pipeline import overlay_names
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import start_keras

SIZE_PX = 64
PATCH_PX = 16


def with_patch(count: int, seed: int):
    """Noise, half of it with a striped patch at a random place: that half is fake. Pictures, labels, corners."""
    rng = np.random.default_rng(seed)
    images = rng.integers(60, 190, (count, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    labels = np.arange(count) % 2
    corners = rng.integers(0, SIZE_PX - PATCH_PX, (count, 2))
    for image, label, (top, left) in zip(images, labels, corners, strict=True):
        if label == FAKE:
            image[top : top + PATCH_PX, left : left + PATCH_PX] = np.where(np.arange(PATCH_PX) % 4 < 2, 255, 0)[:, None]
    return images, labels, corners


@pytest.fixture(scope="session")
def trained():
    """A small network that learned to call images with the patch fake."""
    start_keras()
    import keras

    from fakereal.model import model_file, networks

    keras.utils.set_random_seed(3)
    config = Config(image_size=SIZE_PX, network=NetworkConfig(name="cnn", filters=(8, 16), dropout=0.0))
    model = networks.build(config.network, SIZE_PX)
    model.compile(keras.optimizers.Adam(3e-3), "binary_crossentropy", metrics=["accuracy"])
    images, labels, _ = with_patch(320, seed=0)
    model.fit(images.astype(np.float32), labels[:, None], batch_size=32, epochs=6, verbose=0)
    return model_file.Detector(model, model_file.Metadata(config, Preprocessing(SIZE_PX)))


@pytest.fixture(scope="session")
def explainer(trained):
    from fakereal.model.gradcam import GradCamExplainer

    return GradCamExplainer(trained.model)


def share_inside(heat: np.ndarray, corner: np.ndarray) -> float:
    """The share of a heatmap's warmth that lies within 8 pixels of the patch."""
    from fakereal.model.heatmap import paint

    warmth = np.asarray(paint(heat, (SIZE_PX, SIZE_PX)), np.float64)[..., 3]
    top, left = np.maximum(corner - 8, 0)
    return warmth[top : top + PATCH_PX + 16, left : left + PATCH_PX + 16].sum() / warmth.sum()


# sanity, after Adebayo et al. 2018


def test_the_patch_that_decides_the_class_lights_up(trained, explainer):
    from fakereal.model.heatmap import heatmap

    images, labels, corners = with_patch(64, seed=1)
    explained = explainer.explain(images)
    assert ((explained.p_real >= 0.5) == (labels == REAL)).mean() > 0.95  # or there would be nothing to explain
    fakes = np.flatnonzero(labels == FAKE)
    heat = heatmap(explained.evidence, FAKE)
    shares = [share_inside(heat[number], corners[number]) for number in fakes]
    area = ((PATCH_PX + 16) / SIZE_PX) ** 2
    assert np.median(shares) > 3 * area - 0.05  # 0.25 is what a map without any sense would have


def test_what_speaks_for_the_other_class_is_elsewhere(explainer):
    from fakereal.model.heatmap import heatmap

    images, labels, corners = with_patch(64, seed=1)
    heat = heatmap(explainer.explain(images).evidence, REAL)
    shares = [share_inside(heat[n], corners[n]) for n in np.flatnonzero(labels == FAKE) if heat[n].any()]
    assert len(shares) == 0 or np.median(shares) < 0.5


@pytest.fixture(scope="session")
def copy(trained):
    """The trained network once more, to be spoilt, and what explains it."""
    from fakereal.model import networks
    from fakereal.model.gradcam import GradCamExplainer

    model = networks.build(trained.metadata.config.network, SIZE_PX)
    return model, GradCamExplainer(model)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two heatmaps, 0 where one of them is flat."""
    return 0.0 if one.std() == 0 or other.std() == 0 else float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


@pytest.mark.parametrize("names", [["p_real"], ["p_real", "conv_2"], ["p_real", "conv_2", "conv_1"]])
def test_random_weights_from_the_output_downwards_change_the_map(trained, copy, names):
    from fakereal.model.heatmap import heatmap

    images, _, _ = with_patch(16, seed=2)
    model, explainer = copy
    model.set_weights(trained.model.get_weights())
    before = heatmap(explainer.explain(images).evidence, FAKE)
    alike = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        for name in names:
            layer = model.get_layer(name) if name == "p_real" else model.get_layer("base").get_layer(name)
            layer.set_weights([rng.normal(0, 0.1, weight.shape) for weight in layer.get_weights()])
        after = heatmap(explainer.explain(images).evidence, FAKE)
        alike += [correlation(*pair) for pair in zip(before, after, strict=True)]
    assert abs(np.mean(alike)) < 0.4  # a map that only shows edges would stay what it is


# the method


def test_the_evidence_is_the_maps_weighted_by_their_mean_gradients(trained, explainer):
    import tensorflow as tf

    images, _, _ = with_patch(4, seed=4)
    base, output = trained.model.get_layer("base"), trained.model.get_layer("p_real")
    maps = tf.constant(images, tf.float32) / 255.0
    for name in ("conv_1", "pool_1", "conv_2", "pool_2"):
        maps = base.get_layer(name)(maps)
    # A flattened map meets one weight a place: the gradient of the logit is the weights themselves.
    gradient = np.asarray(output.kernel).reshape(maps.shape[1:])
    expected = (np.asarray(maps) * gradient.mean(axis=(0, 1))).sum(axis=-1)
    assert np.allclose(explainer.explain(images).evidence, expected, atol=1e-4)


def test_the_outputs_are_those_of_prediction_to_the_bit(trained, explainer):
    images, _, _ = with_patch(8, seed=5)
    assert np.array_equal(explainer.explain(images).p_real, trained.p_real(images))
    assert np.array_equal(explainer.p_real(images), trained.p_real(images))


def test_an_image_has_the_same_map_whatever_its_neighbors(explainer):
    images, _, _ = with_patch(8, seed=6)
    alone = explainer.explain(np.stack([images[3], images[3]])).evidence[0]
    assert np.allclose(explainer.explain(images).evidence[3], alone, atol=1e-5)


def test_the_two_classes_share_no_spot():
    from fakereal.model.heatmap import heatmap

    evidence = np.random.default_rng(0).normal(size=(5, 7, 7)).astype(np.float32)
    fake, real = heatmap(evidence, FAKE), heatmap(evidence, REAL)
    assert (fake * real == 0).all()
    assert fake.max() == real.max() == 1.0
    assert fake[evidence < 0].min() > 0


def test_where_nothing_speaks_for_a_class_its_map_is_empty():
    from fakereal.model.heatmap import heatmap, overlay

    heat = heatmap(np.ones((1, 4, 4), np.float32), FAKE)
    assert (heat == 0).all()
    image = Image.new("RGB", (20, 10), (9, 99, 199))
    assert np.array_equal(np.asarray(overlay(image, heat[0])), np.asarray(image))


def test_an_overlay_has_the_size_of_its_image_and_colours_the_hot_side():
    from fakereal.model.heatmap import overlay

    heat = np.zeros((4, 4), np.float32)
    heat[:, :2] = 1.0
    painted = np.asarray(overlay(Image.new("RGB", (80, 40), (128,) * 3), heat), np.int64)
    assert painted.shape == (40, 80, 3)
    assert np.abs(painted[:, :10] - 128).max() > 60
    assert np.abs(painted[:, 70:] - 128).max() < 10


@pytest.mark.parametrize("pooled", [True, False])
def test_a_network_that_nests_a_batch_normalised_base_is_explained(pooled):
    """Stands for the EfficientNets and VGG16, whose weights take long to make: the same nesting, the same names."""
    start_keras()
    import keras

    from fakereal.model.gradcam import GradCamExplainer
    from fakereal.model.networks import BASE

    layers = keras.layers
    inner = keras.Input((32, 32, 3))
    x = layers.BatchNormalization()(layers.Conv2D(6, 3, strides=2)(inner))
    x = layers.add([layers.Conv2D(6, 3, padding="same")(x), x])
    x = layers.GlobalAveragePooling2D()(x) if pooled else layers.Flatten()(x)
    base = keras.Model(inner, x, name=BASE)
    pixels = keras.Input((32, 32, 3))
    x = layers.Dense(5, activation="relu")(base(layers.Rescaling(1 / 255)(pixels), training=False))
    model = keras.Model(pixels, layers.Dense(1, activation="sigmoid")(layers.Dropout(0.5)(x)))
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    explained = GradCamExplainer(model).explain(images)
    assert explained.evidence.shape == (3, 15, 15)
    assert np.array_equal(explained.p_real, np.asarray(model.predict_on_batch(images.astype("f4")), "f8").ravel())


def test_a_flat_network_of_another_program_is_explained_too():
    start_keras()
    import keras

    from fakereal.model.gradcam import GradCamExplainer

    layers = keras.layers
    stack = [layers.Rescaling(1 / 255), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(1, activation="sigmoid")]
    explained = GradCamExplainer(keras.Sequential([keras.Input((16, 16, 3)), *stack])).explain(
        np.ones((2, 16, 16, 3), "u1")
    )
    assert explained.evidence.shape == (2, 14, 14)


def test_a_network_that_has_nothing_to_explain_is_refused_with_a_reason():
    start_keras()
    import keras

    from fakereal.model.gradcam import GradCamExplainer

    layers = keras.layers
    for stack, found in (
        ([layers.Flatten(), layers.Dense(1)], "no convolutional layers"),
        ([layers.Conv2D(1, 3), layers.GlobalMaxPooling2D()], "Dense layer of one unit"),
        ([layers.Conv2D(1, 3), layers.Flatten(), layers.Dense(2)], "Dense layer of one unit"),
    ):
        with pytest.raises(ModelFileError, match=found):
            GradCamExplainer(keras.Sequential([keras.Input((16, 16, 3)), *stack]))


# predict_and_save_json.py --explain


@pytest.fixture(scope="session")
def model_path(trained, tmp_path_factory) -> Path:
    from fakereal.model import model_file

    path = tmp_path_factory.mktemp("model") / "patches.h5"
    model_file.save(path, trained)
    return path


def test_the_script_writes_an_overlay_for_every_predicted_image(model_path, make_image, tmp_path):
    folder, overlays = tmp_path / "in", tmp_path / "why"
    make_image(folder / "1.png", 1, (300, 200))
    make_image(folder / "a" / "1.png", 2, (1000, 300))
    make_image(folder / "a" / "7.jpg", 3, (30, 40), exif=_turned())
    (folder / "broken.png").write_bytes(b"no image")
    plain, output = tmp_path / "plain.json", tmp_path / "p.json"
    command = ["--input", str(folder), "--recursive", "--model", str(model_path), "--batch-size", "2"]
    assert run_cli(door.main, [*command, "--output", str(plain)]) == 0
    assert run_cli(door.main, [*command, "--output", str(output), "--explain", str(overlays), "--strict"]) == 1
    assert output.read_bytes() == plain.read_bytes()
    sizes = {path.name: Image.open(path).size for path in overlays.iterdir()}
    assert sizes == {
        "1.png_gradcam.jpg": (600, 226),
        "a__1.png_gradcam.jpg": (896, 160),
        "a__7.jpg_gradcam.jpg": (330, 56),  # upright: 40 wide, 30 high, and wide enough for the words above
    }


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_overlays_have_names_of_their_own():
    names = ["a/1.png", "a__1.png", "A__1.png", "b/" + 90 * "ä" + "/" + 90 * "ö" + ".png", "1.png", "1.jpg"]
    found = overlay_names(names)
    assert len({name.casefold() for name in found.values()}) == len(names)
    assert found["1.png"] == "1.png_gradcam.jpg"
    assert all(len(name.encode()) < 256 and "/" not in name for name in found.values())


@pytest.mark.parametrize("where", ["in", "in/why", "in/1.png"])
def test_overlays_among_the_images_are_refused_before_anything_is_done(where, model_path, make_image, tmp_path, capsys):
    make_image(tmp_path / "in" / "1.png")
    command = ["--input", str(tmp_path / "in"), "--recursive", "--model", str(model_path)]
    command += ["--output", str(tmp_path / "p.json"), "--explain", str(tmp_path / where)]
    assert run_cli(door.main, command) == 2
    assert (
        "expected a folder, got the file" if where == "in/1.png" else "is inside the input folder"
    ) in capsys.readouterr().err
    assert not (tmp_path / "p.json").exists()


@pytest.mark.slow
def test_the_shipped_network_is_explained_with_the_outputs_of_prediction():
    from fakereal.model import model_file
    from fakereal.model.gradcam import GradCamExplainer

    start_keras()
    detector = model_file.load(ROOT / "models" / "pretrained.h5")
    images = np.random.default_rng(0).integers(0, 256, (4, 160, 160, 3), dtype=np.uint8)
    explained = GradCamExplainer(detector.model).explain(images)
    assert np.array_equal(explained.p_real, detector.p_real(images))
    assert explained.evidence.shape == (4, 5, 5)
    assert np.isfinite(explained.evidence).all()
    assert explained.evidence.std() > 0
