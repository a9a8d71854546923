import typing
from dataclasses import replace

import keras
import numpy as np
import pytest

from fakereal import config
from fakereal.config import Config, NetworkConfig
from fakereal.errors import ConfigError, ModelFileError
from fakereal.model import model_file, networks, weights
from fakereal.model.model_file import Detector, Metadata
from fakereal.preprocessing import Preprocessing

VGG = NetworkConfig("vgg16")


def pixels(count=2, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def names(model):
    return [layer.name for layer in model.layers]


@pytest.fixture(scope="module")
def vgg_source(tmp_path_factory):
    """A VGG16 and a weights file of it, as Keras' own."""
    keras.utils.set_random_seed(3)
    source = keras.applications.VGG16(include_top=False, weights=None, pooling="avg")
    path = tmp_path_factory.mktemp("vgg") / "vgg16.weights.h5"
    source.save_weights(path)
    return source, path


@pytest.fixture(scope="module")
def vgg():
    return networks.build(VGG, 32)


def test_every_network_is_a_chain_of_the_same_parts(vgg):
    for model in (vgg, networks.build(NetworkConfig("cnn"), 32)):
        assert names(model)[:4] == ["pixels", "normalization", "base", "features"]
        assert names(model)[-1] == "p_real"


def test_vgg16_has_two_dense_relu_layers_in_place_of_its_top(vgg):
    dense = [layer for layer in vgg.layers if isinstance(layer, keras.layers.Dense)]
    assert [(layer.units, layer.activation.__name__) for layer in dense] == [
        (256, "relu"),
        (128, "relu"),
        (1, "sigmoid"),
    ]
    own = networks.build(NetworkConfig("vgg16", dense=()), 32)
    assert sum(isinstance(layer, keras.layers.Dense) for layer in own.layers) == 1


def test_vgg16_sees_what_its_imagenet_training_saw(vgg_source, vgg):
    """Keras' preprocess_input makes it blue, green, red; here the first kernel is turned round instead."""
    source, path = vgg_source
    assert weights.load_base(vgg, VGG, str(path)).pretrained
    features = keras.Model(vgg.input, vgg.get_layer(networks.FEATURES).output)
    image = pixels().astype("float32")
    expected = np.asarray(source(keras.applications.vgg16.preprocess_input(image.copy())))
    assert np.asarray(features(image)) == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("name", "low", "high"), [("vgg16", 0.0, 1.0), ("cnn", 0.0, 1.0)])
def test_pixels_can_be_brought_to_0_to_1_by_configuration(name, low, high):
    network = NetworkConfig(name, normalization="unit", filters=(2,))
    layer = networks.build(network, 32).get_layer("normalization")
    assert np.asarray(layer(np.array([0.0, 255.0]))).tolist() == [low, high]


def test_a_cnn_may_have_the_imagenet_normalization():
    layer = networks.build(NetworkConfig("cnn", normalization="imagenet"), 32).get_layer("normalization")
    mean = 255 * np.array(networks.IMAGENET_MEAN, dtype="float32")
    assert np.asarray(layer(mean)) == pytest.approx([0.0] * 3, abs=1e-5)
    assert np.asarray(layer(mean + 255 * np.array(networks.IMAGENET_STD))) == pytest.approx([1.0] * 3, abs=1e-4)


@pytest.mark.parametrize("pooling", ["avg", "max", "flatten"])
@pytest.mark.parametrize("name", ["vgg16", "cnn"])
def test_pooling_is_by_configuration(name, pooling):
    network = NetworkConfig(name, pooling=pooling, filters=(4, 8))
    features = networks.build(network, 64).get_layer("features").output.shape[-1]
    maps, sides = (512, 2 * 2) if name == "vgg16" else (8, 16 * 16)
    assert features == (maps * sides if pooling == "flatten" else maps)


def test_depth_and_activation_of_the_cnn_are_by_configuration():
    network = NetworkConfig("cnn", filters=(2, 4, 8, 16), activation="sigmoid", dense=(8,))
    base = networks.build(network, 32).get_layer("base")
    convolutions = [layer for layer in base.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.filters for layer in convolutions] == [2, 4, 8, 16]
    assert {layer.activation.__name__ for layer in convolutions} == {"sigmoid"}


@pytest.mark.parametrize("network", [NetworkConfig("vgg16", normalization="unit", pooling="flatten", dense=(4,)),
                                     NetworkConfig("cnn", pooling="avg", filters=(3,))])  # fmt: skip
def test_a_model_file_rebuilds_each_network_by_name(tmp_path, network):
    model = networks.build(network, 32)
    metadata = Metadata(Config(image_size=32, network=network), Preprocessing(32))
    model_file.save(tmp_path / "model.h5", Detector(model, metadata))
    loaded = model_file.load(tmp_path / "model.h5")
    assert loaded.metadata.config.network == network
    assert np.array_equal(loaded.p_real(pixels()), Detector(model, metadata).p_real(pixels()))


@pytest.mark.parametrize("scope", ["head", "last20", "all"])
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_a_model_file_loads_whatever_was_frozen_when_it_was_saved(tmp_path, scope, suffix):
    model = networks.build(NetworkConfig(), 32)
    networks.set_trainable(model, scope, learn_batch_norm=False)
    learned = len(model.trainable_variables)
    path = tmp_path / f"model{suffix}"
    model_file.save(path, Detector(model, Metadata(Config(32), Preprocessing(32))))
    assert len(model.trainable_variables) == learned
    pairs = zip(model_file.load(path).model.get_weights(), model.get_weights(), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)


@pytest.mark.slow
def test_the_large_efficientnet_is_built_saved_and_fine_tuned_like_the_small_one(tmp_path):
    network = NetworkConfig("efficientnetb4")
    model = networks.build(network, 64)
    networks.set_trainable(model, "last20", learn_batch_norm=False)
    assert 2 < len(model.trainable_variables) < 20
    model_file.save(tmp_path / "b4.h5", Detector(model, Metadata(Config(64, network=network), Preprocessing(64))))
    loaded = model_file.load(tmp_path / "b4.h5")
    pairs = zip(loaded.model.get_weights(), model.get_weights(), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)
    with pytest.raises(ModelFileError, match="expected weights of efficientnetb0, found efficientnetb4"):
        weights.load_base(networks.build(NetworkConfig(), 64), NetworkConfig(), str(tmp_path / "b4.h5"))


def test_a_base_that_was_trained_on_other_pixels_is_refused(tmp_path):
    unit = NetworkConfig("cnn", filters=(4,))
    path = tmp_path / "unit.h5"
    model_file.save(path, Detector(networks.build(unit, 32), Metadata(Config(32, network=unit), Preprocessing(32))))
    for other, expected in (
        (replace(unit, normalization="imagenet"), r"network\.normalization imagenet, found one for unit"),
        (replace(unit, activation="tanh"), r"network\.activation tanh, found relu"),
    ):
        with pytest.raises(ModelFileError, match=expected):
            weights.load_base(networks.build(other, 32), other, str(path))
    assert weights.load_base(networks.build(unit, 32), replace(unit, normalization="unit"), str(path)).pretrained


def test_offline_a_network_without_a_shipped_base_says_what_can_be_done(vgg, monkeypatch):
    def refuse(*arguments, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("keras.src.applications.vgg16.file_utils.get_file", refuse)
    expected = r"nor a vgg16 in .* connect to the internet, or train from random weights with --weights none"
    with pytest.raises(ConfigError, match=expected):
        weights.available_bases(vgg, VGG)


def test_weights_that_tie_the_image_size_are_refused_at_another_one(tmp_path):
    path = tmp_path / "grow.yaml"
    path.write_text("network: {name: vgg16, pooling: flatten}\ntraining: {phases: [{image_size: 64}]}")
    with pytest.raises(ConfigError, match="flattened maps fit one size only"):
        config.load(path)


def test_an_efficientnet_refuses_a_normalization_that_its_weights_do_not_fit(tmp_path):
    path = tmp_path / "unit.yaml"
    path.write_text("network: {normalization: unit}")
    with pytest.raises(ConfigError, match="auto or imagenet for efficientnetb0"):
        config.load(path)


def test_model_files_of_before_there_was_a_choice_of_layers_stay_readable():
    tree = config.as_dict(Config())
    for key in ("normalization", "pooling"):
        del tree["network"][key]
    tree["network"]["dense"] = []
    assert config.from_dict(tree, "old").network == NetworkConfig(dense=())


def test_every_network_has_a_rule_for_all_that_depends_on_its_name():
    names = typing.get_args(typing.get_type_hints(NetworkConfig)["name"])
    assert set(names) == set(config.NORMALIZATIONS) == set(networks.NETWORKS)


def test_a_network_without_a_rule_is_refused():
    with pytest.raises(ConfigError, match="expected one of efficientnetb0"):
        networks.build(NetworkConfig("resnet"), 32)
