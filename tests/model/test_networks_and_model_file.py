import json
import pickle
import zipfile

import h5py
import keras
import numpy as np
import pytest

from fakereal.config import Config, NetworkConfig
from fakereal.errors import ConfigError, ModelFileError
from fakereal.model import model_file, networks, weights
from fakereal.model.calibration import DecisionRule
from fakereal.model.foreign import ForeignModel
from fakereal.model.metadata import Metadata, read_metadata
from fakereal.model.model_file import Detector
from fakereal.preprocessing import Preprocessing

CNN = NetworkConfig(name="cnn", filters=(4, 8))


def pixels(count=5, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def detector(network=CNN, size=32):
    keras.utils.set_random_seed(1)
    model = networks.build(network, size)
    decision = DecisionRule(0.45, 1.7, (0.3, 0.6))
    metadata = Metadata(Config(image_size=size, network=network), Preprocessing(size), decision, "random weights",
                        {"train": {"fake": 1}}, {"test": {"f1_macro": 0.5}}, ({"epoch": 1, "loss": 0.5},),
                        model_file.versions())  # fmt: skip
    return Detector(model, metadata)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_a_saved_model_comes_back_with_the_same_outputs_and_metadata(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    saved = detector()
    model_file.save(path, saved)
    loaded = model_file.load(path)
    assert loaded.metadata == saved.metadata
    assert np.array_equal(loaded.p_real(pixels()), saved.p_real(pixels()))
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".h5", pytest.param(".keras", marks=pytest.mark.slow)])
def test_the_file_is_a_regular_keras_model_of_pixels_in_and_p_real_out(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    saved = detector(NetworkConfig(), size=32)
    model_file.save(path, saved)
    loaded = keras.models.load_model(path, compile=False)
    assert loaded.input_shape == (None, 32, 32, 3)
    outputs = loaded.predict(pixels().astype("float32"), verbose=0)
    assert outputs.shape == (5, 1)
    assert outputs[:, 0] == pytest.approx(saved.p_real(pixels()), abs=1e-6)


def test_a_long_history_fits_into_the_file(tmp_path):
    saved = detector()
    rows = tuple({"epoch": number, "loss": 0.123456789} for number in range(5_000))
    long = Detector(saved.model, Metadata(saved.metadata.config, saved.metadata.preprocessing, history=rows))
    model_file.save(tmp_path / "model.h5", long)
    assert read_metadata(tmp_path / "model.h5").history == rows


def test_reading_a_file_never_runs_code_from_it(tmp_path):
    """A Lambda layer in a .keras file is code; ours is rebuilt from our own list, whatever the file's graph says."""
    path = tmp_path / "model.keras"
    model_file.save(path, detector())
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["config.json"] = json.dumps({"class_name": "Lambda", "config": {"function": "boom"}}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert np.array_equal(model_file.load(path).p_real(pixels()), detector().p_real(pixels()))


def test_a_missing_file_names_what_makes_one(tmp_path):
    with pytest.raises(ModelFileError, match=r"no such model file; train_model\.py makes one"):
        model_file.load(tmp_path / "none.h5")


@pytest.mark.parametrize("content", [b"", b"no model", pickle.dumps({"a": 1})])
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_a_file_that_is_no_model_is_refused(tmp_path, content, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="not a Keras model file"):
        model_file.load(path)


def test_another_suffix_is_refused_before_the_work(tmp_path):
    with pytest.raises(ModelFileError, match=r"ending in \.h5 or \.keras"):
        model_file.save(tmp_path / "model.pt", detector())


def change_metadata(path, change):
    with h5py.File(path, "a") as file:
        tree = json.loads(file["fakereal_metadata"][()])
        change(tree)
        del file["fakereal_metadata"]
        file["fakereal_metadata"] = json.dumps(tree)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tree: tree.update(preprocessing="fakereal-preprocessing/9 size=32"), "train it again"),
        (lambda tree: tree.update(format=99), "update fakereal"),
        (lambda tree: tree.pop("decision"), "metadata is damaged"),
        (
            lambda tree: tree["config"]["network"].update(name="__import__('os')"),
            "a setting that this version does not know",
        ),
        (lambda tree: tree["config"].update(new_key=1), "a setting that this version does not know"),
        (lambda tree: tree["config"]["network"].update(filters=[-1]), "are damaged"),
    ],
)
def test_metadata_that_cannot_be_honoured_are_refused_in_one_line(tmp_path, change, expected):
    path = tmp_path / "model.h5"
    model_file.save(path, detector())
    change_metadata(path, change)
    with pytest.raises(ModelFileError) as caught:
        model_file.load(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_weights_of_another_shape_are_a_damaged_file(tmp_path):
    path = tmp_path / "model.h5"
    model_file.save(path, detector())
    change_metadata(path, lambda tree: tree["config"]["network"].update(filters=[4, 8, 16]))
    with pytest.raises(ModelFileError, match="are damaged"):
        model_file.load(path)


def test_a_model_of_another_script_needs_the_flag_and_a_fitting_shape(tmp_path):
    inputs = keras.Input((40, 40, 3))
    outputs = keras.layers.Dense(1, activation="sigmoid")(keras.layers.GlobalAveragePooling2D()(inputs))
    keras.Model(inputs, outputs).save(tmp_path / "foreign.keras")
    keras.Model(inputs, keras.layers.Dense(2)(outputs)).save(tmp_path / "two.keras")
    with pytest.raises(ModelFileError, match="--foreign-model"):
        model_file.load(tmp_path / "foreign.keras")
    foreign = model_file.load(tmp_path / "foreign.keras", foreign=ForeignModel())
    assert foreign.metadata.preprocessing.image_size_px == 40
    assert foreign.p_real(pixels(size=40)).shape == (5,)
    with pytest.raises(ModelFileError, match="its output has 2 values per image: add --foreign-output softmax:"):
        model_file.load(tmp_path / "two.keras", foreign=ForeignModel())


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_a_foreign_model_with_code_in_it_is_refused(tmp_path, suffix):
    path = tmp_path / f"code{suffix}"
    inputs = keras.Input((32, 32, 3))
    outputs = keras.layers.Lambda(lambda x: x[:, :1, 0, 0])(inputs)
    keras.Model(inputs, outputs).save(path)
    with pytest.raises(ModelFileError, match="is a Lambda, whose code is never run"):
        model_file.load(path, foreign=ForeignModel())


def test_the_efficientnet_sees_what_imagenet_training_saw():
    """Guards the trap of weights loaded by path: pixels must reach the stem as (x / 255 - mean) / std."""
    model = networks.build(NetworkConfig(), 32)
    image = pixels(1).astype("float32")
    ours = model.get_layer("normalization")(image)
    base = model.get_layer(networks.BASE)
    before_stem = keras.Model(base.input, base.get_layer("stem_conv_pad").input)
    expected = (image / 255 - np.array(networks.IMAGENET_MEAN)) / np.array(networks.IMAGENET_STD)
    assert np.asarray(before_stem(ours)) == pytest.approx(expected, abs=1e-4)


def keras_style_weights(tmp_path, mean, variance):
    """A weights file as Keras' own: with a Normalization layer that was adapted."""
    keras.utils.set_random_seed(2)
    source = keras.applications.EfficientNetB0(include_top=False, weights=None, pooling="avg", input_shape=(64, 64, 3))
    layer = next(each for each in source.layers if isinstance(each, keras.layers.Normalization))
    layer.set_weights([np.array(mean), np.array(variance), np.array(1)])
    layer.finalize_state()
    for each in source.layers:
        if isinstance(each, keras.layers.BatchNormalization):
            gamma, beta, moving_mean, moving_variance = each.get_weights()
            each.set_weights([gamma, beta + 0.1, moving_mean, moving_variance])
    path = tmp_path / "base.weights.h5"
    source.save_weights(path)
    return source, path


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_an_equal_network_of_another_size_takes_the_base_but_not_the_head_of_a_file(tmp_path, suffix):
    network = NetworkConfig("cnn", filters=(4, 8), pooling="avg", dense=(5,))
    path, saved = tmp_path / f"model{suffix}", detector(network)
    model_file.save(path, saved)
    model = networks.build(network, 48)
    head = [layer for layer in model.layers if layer.name != networks.BASE]
    before = [layer.get_weights() for layer in head]
    weights.load_base(model, network, str(path))
    base, theirs = (each.get_layer(networks.BASE).get_weights() for each in (model, saved.model))
    assert all(np.array_equal(*pair) for pair in zip(base, theirs, strict=True))
    after = [layer.get_weights() for layer in head]
    assert keras.tree.flatten(after)
    for mine, kept in zip(keras.tree.flatten(after), keras.tree.flatten(before), strict=True):
        np.testing.assert_array_equal(mine, kept)


def test_the_base_of_a_model_file_with_another_suffix_is_refused(tmp_path):
    network = NetworkConfig("cnn", filters=(4, 8), pooling="avg")
    model_file.save(tmp_path / "model.h5", detector(network))
    renamed = (tmp_path / "model.h5").rename(tmp_path / "model.hdf5")
    with pytest.raises(ModelFileError, match="expected"):
        weights.load_base(networks.build(network, 32), network, str(renamed))


def test_weights_by_path_see_the_same_pixels_as_where_they_come_from(tmp_path):
    source, path = keras_style_weights(tmp_path, [0.5, 0.45, 0.4], [0.25**2, 0.2**2, 0.3**2])
    model = networks.build(NetworkConfig(), 64)
    origin = weights.load_base(model, NetworkConfig(), str(path))
    assert origin.pretrained
    features = keras.Model(model.input, model.get_layer(networks.FEATURES).output)
    image = pixels(3, 64)
    expected, found = (np.asarray(each(image.astype("float32"), training=False)) for each in (source, features))
    # The padding's zeros stand for another gray at the very border, hence not to the last bit.
    assert np.median(np.abs(found - expected)) < 0.02 * np.abs(expected).mean()


def test_a_model_file_gives_its_base_to_the_next_training(tmp_path):
    saved = detector(NetworkConfig(), 32)
    model_file.save(tmp_path / "model.h5", saved)
    model = networks.build(NetworkConfig(dense=(8,)), 64)
    weights.load_base(model, NetworkConfig(dense=(8,)), str(tmp_path / "model.h5"))
    pairs = zip(saved.model.get_layer("base").get_weights(), model.get_layer("base").get_weights(), strict=True)
    assert all(np.array_equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize(
    ("choice", "network", "expected"),
    [
        ("no_such_file.h5", NetworkConfig(), "expected auto, imagenet, pretrained, none or a file"),
        ("imagenet", CNN, "there are no ImageNet weights for cnn"),
    ],
)
def test_weights_that_cannot_be_had_are_refused(choice, network, expected):
    with pytest.raises(ConfigError, match=expected):
        weights.load_base(networks.build(network, 32), network, choice)


def test_offline_auto_takes_the_shipped_base_and_says_so(tmp_path, monkeypatch, capsys):
    """Keras' cache is empty here and its download refused, as on a machine without internet."""

    def refuse(*arguments, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("keras.src.applications.efficientnet.file_utils.get_file", refuse)
    monkeypatch.setattr(weights, "PRETRAINED", tmp_path / "pretrained.h5")
    model = networks.build(NetworkConfig(), 32)
    with pytest.raises(
        ConfigError, match="are available: connect to the internet, or train from random weights with --weights none"
    ):
        weights.available_bases(model, NetworkConfig())
    with pytest.raises(ConfigError, match="--weights none trains from random weights offline"):
        weights.load_base(model, NetworkConfig(), "imagenet")
    model_file.save(tmp_path / "pretrained.h5", detector(NetworkConfig(), 32))
    with pytest.raises(ConfigError, match="--weights pretrained works offline"):
        weights.load_base(model, NetworkConfig(), "imagenet")
    (shipped,) = weights.available_bases(model, NetworkConfig())
    expected = weights.BaseWeights("models/pretrained.h5", pretrained=True, choice="pretrained", image_size_px=32)
    assert shipped.origin == expected
    assert "not available offline" in capsys.readouterr().err
    unit = NetworkConfig(normalization="unit")  # which the shipped base was not trained with
    with pytest.raises(ConfigError, match="neither ImageNet weights"):
        weights.available_bases(networks.build(unit, 32), unit)


def test_weights_of_another_network_are_refused(tmp_path):
    model_file.save(tmp_path / "cnn.h5", detector())
    with pytest.raises(ModelFileError, match="expected weights of efficientnetb0, found cnn"):
        weights.load_base(networks.build(NetworkConfig(), 32), NetworkConfig(), str(tmp_path / "cnn.h5"))


@pytest.mark.parametrize(("scope", "learning"), [("head", 2), ("last20", 2 + 8), ("all", 2 + 113)])
def test_the_scope_decides_what_learns_and_batch_norm_stays_frozen(scope, learning):
    model = networks.build(NetworkConfig(), 32)
    networks.set_trainable(model, scope, learn_batch_norm=False)
    assert len(model.trainable_variables) == learning
    norms = [layer for layer in model.get_layer("base").layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert norms
    assert not any(layer.trainable for layer in norms)


def test_one_colour_looks_the_same_at_every_image_size():
    """Weights are of no size, so that training may start small: away from the border, flat images give one output."""
    small, large = networks.build(NetworkConfig(), 64), networks.build(NetworkConfig(), 96)
    large.set_weights(small.get_weights())
    ours, theirs = (
        keras.Model(model.get_layer(networks.BASE).input, model.get_layer(networks.BASE).get_layer("stem_bn").output)
        for model in (small, large)
    )
    flat = np.array([200.0, 30.0, 90.0], dtype=np.float32)
    one, other = (np.asarray(model(np.tile(flat, (1, size, size, 1)))) for model, size in ((ours, 64), (theirs, 96)))
    assert np.allclose(one[0, 10, 10], other[0, 20, 20], atol=1e-5)
