"""Keras models of other programs: what they really look like, through loading, prediction, heatmaps, export."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
from conftest import ROOT, make_labeled_images
from small_networks import noise_images

from fakereal import __main__ as door
from fakereal.cli import run_cli
from fakereal.config import NetworkConfig
from fakereal.errors import ModelFileError
from fakereal.model.foreign import ForeignModel, OutputSpread, parse_output
from fakereal.model.metadata import of_foreign, to_text, write_metadata
from fakereal.runtime import start_keras

start_keras()

import keras  # noqa: E402 - after its start
from keras import layers  # noqa: E402

from fakereal.engines.engine import open_network  # noqa: E402
from fakereal.model import model_file, networks  # noqa: E402
from fakereal.model.gradcam import GradCamExplainer  # noqa: E402
from fakereal.model.weights import load_base  # noqa: E402

SIZE = 40


def body(size=SIZE):
    """A small nested network as people take them from keras.applications: convolutions, BatchNorm, no top."""
    pixels = keras.Input((size, size, 3))
    x = layers.BatchNormalization()(layers.Conv2D(6, 3, strides=2)(pixels))
    x = layers.DepthwiseConv2D(3, padding="same")(layers.ReLU()(x))
    return keras.Model(pixels, layers.Conv2D(6, 1)(x), name="mobilenet")


def sequential(*stack, channels=3):
    return keras.Sequential([keras.Input((SIZE, SIZE, channels)), *stack])


def functional(x_of, size=SIZE, dtype="float32"):
    pixels = keras.Input((size, size, 3), dtype=dtype)
    return keras.Model(pixels, x_of(pixels))


def head(units, activation):
    return [layers.GlobalAveragePooling2D(), layers.Dropout(0.2), layers.Dense(units, activation=activation)]


def through(x, *stack):
    for layer in stack:
        x = layer(x)
    return x


def teachable():
    """Teachable Machine's nesting: Sequentials in a Sequential, the last one without bias."""
    first = keras.Sequential([body(), layers.GlobalAveragePooling2D()])
    return sequential(first, keras.Sequential([layers.Dense(2, activation="softmax", use_bias=False)]))


def preprocessed():
    preprocess = keras.applications.mobilenet_v2.preprocess_input  # operations, not layers
    return functional(lambda x: through(body()(preprocess(x), training=False), *head(1, None)))


def gray_of(images):
    return images @ np.array([[0.299], [0.587], [0.114]])


MODELS = {
    "Sequential with Rescaling, flattened": (
        lambda: sequential(
            layers.Rescaling(1 / 255), layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), *head(1, "sigmoid")[2:]
        ),
        ForeignModel("p_fake"),
        lambda outputs: 1 - outputs[:, 0],
    ),
    "Sequential around a nested body, softmax": (
        lambda: sequential(body(), *head(2, "softmax")),
        ForeignModel("softmax:real,fake", "-1-1"),
        lambda outputs: outputs[:, 0],
    ),
    "Sequentials of Sequentials": (
        teachable,
        ForeignModel("softmax:fake,real", "-1-1"),
        lambda outputs: outputs[:, 1],
    ),
    "functional with operations, logit": (
        preprocessed,
        ForeignModel("logit_fake"),
        lambda outputs: 1 / (1 + np.exp(outputs[:, 0])),
    ),
    "three classes, any size, Softmax layer": (
        lambda: functional(lambda x: through(x, body(None), *head(3, None), layers.Softmax()), size=None),
        ForeignModel("softmax:fake,real,fake", "0-1", SIZE),
        lambda outputs: outputs[:, 1],
    ),
    "uint8 pixels, Activation layer": (
        lambda: functional(
            lambda x: through(
                x, layers.Rescaling(1 / 255), layers.Conv2D(4, 3), *head(1, None), layers.Activation("sigmoid")
            ),
            dtype="uint8",
        ),
        ForeignModel(),
        lambda outputs: outputs[:, 0],
    ),
    "gray images": (
        lambda: sequential(layers.Conv2D(4, 3), *head(1, "sigmoid"), channels=1),
        ForeignModel("p_real", "0-1"),
        lambda outputs: outputs[:, 0],
    ),
    "a convolution as output": (
        lambda: sequential(
            layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(keepdims=True), layers.Conv2D(1, 1, activation="sigmoid")
        ),
        ForeignModel("p_fake", "0-1"),
        lambda outputs: 1 - outputs.reshape(-1),
    ),
    "two sigmoids": (
        lambda: sequential(layers.Conv2D(4, 3), *head(2, "sigmoid")),
        ForeignModel("softmax:real,fake", "0-1"),
        lambda outputs: outputs[:, 0],
    ),
}  # fmt: skip


def expected_p_real(model, foreign, meaning):
    """What the program that made the model would get."""
    images = noise_images(size=SIZE).astype(np.float32)
    if model.inputs[0].shape[-1] == 1:
        images = gray_of(images)
    scaled = {"0-255": images, "0-1": images / 255, "-1-1": images / 127.5 - 1}[foreign.scale]
    return meaning(np.asarray(model.predict_on_batch(scaled.astype(model.inputs[0].dtype)), np.float64))


def saved(model, path):
    model.save(path)
    return path


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", MODELS)
def test_a_foreign_model_gives_what_its_own_program_gives_with_a_heatmap(name, suffix, tmp_path):
    make, foreign, meaning = MODELS[name]
    keras.utils.set_random_seed(1)
    model = make()
    if "operations" in name and suffix == ".h5":
        with pytest.raises(ModelFileError, match=r"TrueDivide is none of Keras' own layers: .* as \.keras"):
            model_file.load(saved(model, tmp_path / "theirs.h5"), foreign)
        return
    expected = expected_p_real(model, foreign, meaning)
    detector = model_file.load(saved(model, tmp_path / f"theirs{suffix}"), foreign)
    images = noise_images(size=SIZE)
    assert detector.p_real(images) == pytest.approx(expected, abs=1e-6)
    assert np.ptp(expected) > 1e-5  # or the comparison would show nothing
    explained = GradCamExplainer(detector.model).explain(images)
    assert np.array_equal(explained.p_real, detector.p_real(images))
    assert explained.evidence.shape[1] > 1
    assert explained.evidence.std() > 0


def test_the_gradient_of_p_fake_is_evidence_for_fake(tmp_path):
    """The same network under both meanings: what speaks for real under one speaks for fake under the other."""
    path = saved(sequential(layers.Conv2D(4, 3), *head(1, "sigmoid")), tmp_path / "theirs.keras")
    images = noise_images(size=SIZE)
    as_real, as_fake = (
        GradCamExplainer(model_file.load(path, ForeignModel(output)).model).explain(images).evidence
        for output in ("p_real", "p_fake")
    )
    assert as_real == pytest.approx(-as_fake)


def test_the_converted_network_of_one_meaning_is_not_used_for_another(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = saved(sequential(layers.Rescaling(1 / 255), layers.Conv2D(4, 3), *head(1, "sigmoid")), tmp_path / "m.keras")
    images = noise_images(size=SIZE)
    opened = {name: open_network(path, "litert", ForeignModel(name)) for name in ("p_real", "p_fake")}
    outputs = {name: each.network.p_real(images) for name, each in opened.items()}
    assert outputs["p_real"] == pytest.approx(1 - outputs["p_fake"], abs=1e-5)
    assert np.ptp(outputs["p_real"]) > 1e-5
    assert opened["p_real"].identity != opened["p_fake"].identity  # a journal of one can't be resumed with the other


def test_a_saturated_sigmoid_keeps_its_evidence(tmp_path):
    """p_real of exactly 1 has no gradient; its logit has one."""
    positive = keras.initializers.RandomUniform(0.0, 0.1, seed=0)  # so that the logit is large, whatever ran before
    model = sequential(layers.Conv2D(4, 3, kernel_initializer=positive, bias_initializer="ones"), *head(1, "sigmoid"))
    model.layers[-1].set_weights([np.full((4, 1), 50.0), np.full(1, 1e4)])
    detector = model_file.load(saved(model, tmp_path / "sure.keras"), ForeignModel())
    explained = GradCamExplainer(detector.model).explain(noise_images(size=SIZE))
    assert (explained.p_real == 1.0).all()
    assert (explained.evidence.std(axis=(1, 2)) > 0).all()


# refusals


def refusal(path, foreign=None):
    with pytest.raises(ModelFileError) as caught:
        model_file.load(path, foreign or ForeignModel())
    text = str(caught.value)
    assert "\n" not in text
    assert len(text.removeprefix(str(path))) < 300
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("make", "foreign", "expected"),
    [
        (lambda: sequential(*head(2, "softmax")), ForeignModel(),
         "its output has 2 values per image: add --foreign-output softmax:fake,real or softmax:real,fake"),
        (lambda: sequential(*head(5, "softmax")), ForeignModel(), "its output has 5 values per image: say which class"),
        (lambda: sequential(*head(1, "sigmoid")), ForeignModel("softmax:fake,real"),
         "its output has 1 value per image: add --foreign-output p_real or p_fake"),
        (lambda: sequential(*head(1, None)), ForeignModel(), "its last layer has no sigmoid, so its output is a logit"),
        (lambda: sequential(*head(1, "sigmoid")), ForeignModel("logit_real"),
         "its last layer has a sigmoid, so its output is a probability"),
        (lambda: functional(lambda x: through(x, *head(1, "sigmoid")), size=None), ForeignModel(),
         "takes images of any size: add --foreign-size PX"),
        (lambda: sequential(*head(1, "sigmoid")), ForeignModel(size_px=64),
         "expected square images of one size, found 40x40 pixels and --foreign-size 64"),
        (lambda: functional(lambda x: through(x, *head(1, "sigmoid")), dtype="uint8"), ForeignModel(scale="0-1"),
         "takes whole numbers (uint8): use --foreign-scale 0-255"),
        (lambda: sequential(*head(1, "sigmoid"), channels=4), ForeignModel(),
         "expected a network that takes images of shape (S, S, 3), found inputs (None, 40, 40, 4)"),
        (lambda: keras.Sequential([keras.Input((12,)), layers.Dense(1)]), ForeignModel(), "found inputs (None, 12)"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_is_refused_with_the_option_that_helps(make, foreign, expected, tmp_path):
    assert expected in refusal(saved(make(), tmp_path / "theirs.keras"), foreign)


class Squeeze(layers.Layer):
    """A custom layer, which only this module knows."""

    def call(self, x):
        return x


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_lambda_and_custom_layers_are_named_first_and_never_run(suffix, tmp_path):
    stack = layers.Conv2D(2, 3), layers.Lambda(lambda x: x * 2, name="twice"), *head(1, "sigmoid")
    found = refusal(saved(sequential(*stack), tmp_path / f"lambda{suffix}"))
    assert found.startswith("layer 'twice' is a Lambda, whose code is never run: build the model from Keras' own")
    stack = layers.Conv2D(2, 3), Squeeze(), *head(1, "sigmoid")
    found = refusal(saved(sequential(*stack), tmp_path / f"custom{suffix}"))
    named = "layer 'squeeze' is of the custom class Squeeze" if suffix == ".keras" else "Squeeze is none of Keras' own"
    assert named in found


def test_files_that_hold_no_network_are_refused_with_the_reason(tmp_path):
    model = sequential(*head(1, "sigmoid"))
    model.save_weights(tmp_path / "theirs.weights.h5")
    assert refusal(tmp_path / "theirs.weights.h5").startswith("holds weights but no network (as save_weights writes")
    (tmp_path / "words.keras").write_text("hello")
    assert refusal(tmp_path / "words.keras").startswith("not a Keras model file")
    content = saved(model, tmp_path / "whole.h5").read_bytes()
    (tmp_path / "half.h5").write_bytes(content[: len(content) // 2])
    assert refusal(tmp_path / "half.h5").startswith("not a Keras model file")


# Keras 2


def as_keras_2(entry):
    """Rewrite a layer's configuration, and all below it, as Keras 2 wrote it."""
    for value in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
        as_keras_2(value)
    if not (isinstance(entry, dict) and "class_name" in entry):
        return
    for key in ("module", "registered_name", "build_config"):
        entry.pop(key, None)
    config = entry["config"]
    if isinstance(config.get("dtype"), dict):
        config["dtype"] = "float32"
    if "batch_shape" in config:
        config["batch_input_shape"] = config.pop("batch_shape")
        config.pop("optional", None)
    config |= {"DepthwiseConv2D": {"groups": 1}, "BatchNormalization": {"axis": [3]}}.get(entry["class_name"], {})


def keras_2_file(model, path, change=lambda config: None):
    with h5py.File(saved(model, path), "a") as file:
        config = json.loads(file.attrs["model_config"])
        as_keras_2(config)
        change(config)
        file.attrs["model_config"], file.attrs["keras_version"] = json.dumps(config), "2.4.0"
    return path


def test_a_file_of_keras_2_is_read_as_teachable_machine_exports_it(tmp_path):
    model, foreign = teachable(), ForeignModel("softmax:fake,real", "-1-1")
    detector = model_file.load(keras_2_file(model, tmp_path / "keras_model.h5"), foreign)
    expected = expected_p_real(model, foreign, lambda outputs: outputs[:, 1])
    assert detector.p_real(noise_images(size=SIZE)) == pytest.approx(expected, abs=1e-6)
    model_file.save(tmp_path / "ours.keras", detector)  # the stand-in for Keras 2's layer must not be in the file
    assert "_DepthwiseConv2D" not in json.dumps(detector.model.get_config())
    assert model_file.load(tmp_path / "ours.keras").p_real(noise_images(size=SIZE)) == pytest.approx(expected, abs=1e-6)


def test_a_tensorflow_function_in_a_file_of_keras_2_is_named(tmp_path):
    def add_function(config):
        function = {"name": "tf.math.truediv", "trainable": True, "dtype": "float32", "function": "math.truediv"}
        config["config"]["layers"].insert(1, {"class_name": "TFOpLambda", "config": function})

    path = keras_2_file(sequential(*head(1, "sigmoid")), tmp_path / "old.h5", add_function)
    found = refusal(path)
    assert found.startswith("layer 'tf.math.truediv' is the TensorFlow function math.truediv, which Keras 3 can't read")
    assert "saved by Keras 2.4.0" in found


# options and outputs


@pytest.mark.parametrize("text", ["p_reel", "softmax:fake,fake", "softmax:", "fake,real", "softmax:fake,reel"])
def test_a_meaning_that_is_none_is_refused_with_those_that_are(text, capsys):
    with pytest.raises(SystemExit) as stopped:
        door.main(["evaluate", "m.h5", "--data", "d", "--foreign-output", text])
    assert stopped.value.code == 2
    assert "or softmax: with the class of each output such as softmax:fake,real" in capsys.readouterr().err


def test_the_options_are_taken_in_any_order_and_accept_a_foreign_model():
    parse = door.command_parser("export").parse_args
    base = ["m.h5", "--format", "keras"]
    assert parse(base).foreign is None
    assert parse([*base, "--foreign-model"]).foreign == ForeignModel()
    found = parse(
        [*base, "--foreign-scale", "-1-1", "--foreign-model", "--foreign-output", "softmax:Real,Fake"]
    ).foreign
    assert found == ForeignModel("softmax:real,fake", "-1-1")
    assert parse_output("p_fake") == "p_fake"
    assert parse([*base, "--foreign-size", "299"]).foreign.size_px == 299


def test_outputs_that_a_wrong_scale_gives_are_doubted_and_others_are_not():
    assert OutputSpread.of([0, 1, 1, 0.0002, 1]).doubt.startswith("5 of 5 outputs are 0 or 1: the model probably")
    assert OutputSpread.of([0.5312] * 7).doubt.startswith("all 7 outputs are the same (p_real 0.531)")
    assert not OutputSpread.of([0.0, 1.0, 1.0]).doubt  # three images prove nothing
    assert not OutputSpread.of([0.0, 1.0, 0.9, 0.2, 1.0]).doubt


@pytest.fixture
def trained_on_unit_pixels(tmp_path):
    """A Sequential that calls bright images real, for pixels of 0 to 1: with 0..255 every output is 1."""
    model = sequential(layers.Conv2D(1, 3), layers.GlobalAveragePooling2D(), layers.Dense(1, activation="sigmoid"))
    model.set_weights([np.full((3, 3, 3, 1), 1 / 27), np.zeros(1), np.full((1, 1), 40.0), np.full(1, -20.0)])
    return saved(model, tmp_path / "theirs.keras")


def command(*words):
    """Run a command as people do; return exit code, stdout and stderr."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_predict_explains_a_sequential_and_warns_where_the_scale_is_wrong(trained_on_unit_pixels, tmp_path):
    data = make_labeled_images(tmp_path / "set", {"real": 4, "fake": 4})
    words = "predict_and_save_json.py", "--input", data, "--recursive", "--model", trained_on_unit_pixels
    words += "--output", tmp_path / "p.json", "--engine", "keras", "--explain", tmp_path / "why"
    code, _, errors = command(*words, "--foreign-model")
    assert code == 0, errors
    assert "warning: all 8 outputs are the same (p_real 1.000): the model probably expects pixels of" in errors
    code, _, errors = command(*words, "--foreign-scale", "0-1")
    assert code == 0, errors
    assert "outputs are" not in errors
    assert len(list((tmp_path / "why").iterdir())) == 8
    labels = [each["prediction"] for each in json.loads((tmp_path / "p.json").read_text())]
    assert sorted(labels) == ["fake"] * labels.count("fake") + ["real"] * labels.count("real")
    assert {"fake", "real"} == set(labels)


def test_explain_without_convolutional_maps_says_so_and_predicts(tmp_path):
    model = sequential(layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(1, activation="sigmoid"))
    path = saved(model, tmp_path / "flat.keras")
    data = make_labeled_images(tmp_path / "set", {"real": 2, "fake": 2})
    words = "predict_and_save_json.py", "--input", data, "--recursive", "--model", path, "--foreign-model"
    code, output, errors = command(
        *words, "--engine", "keras", "--output", tmp_path / "p.json", "--explain", tmp_path / "why"
    )
    assert code == 0, errors
    assert [line for line in errors.splitlines() if "no heatmaps" in line] == [
        "warning: no heatmaps: the network has no convolutional layers, which heatmaps are made from;"
        " the predictions are made all the same"
    ]
    assert "explanations" not in output
    assert len(json.loads((tmp_path / "p.json").read_text())) == 4


@pytest.mark.parametrize("stack", [(layers.Conv2D(4, 3), layers.GlobalAveragePooling2D()), (layers.Flatten(),)])
def test_the_web_app_takes_a_sequential_with_and_without_heatmaps(stack, tmp_path, capsys):
    from fakereal.web.service import from_opened

    path = saved(sequential(*stack, layers.Dense(1, activation="sigmoid")), tmp_path / "theirs.keras")
    predictor = from_opened(open_network(path, "keras", ForeignModel("p_fake", "0-1")), path)
    try:
        predictor.worker.wait_until_warm()
        assert predictor.worker.explains == (len(stack) == 2)
        with predictor.worker.admit(1) as admission:
            assert 0 < admission.submit(noise_images(1, SIZE)[0]).result(30).p_real < 1
    finally:
        predictor.stop()
    said = "no heatmaps: the network has no convolutional layers, which heatmaps are made from\n"
    assert (said in capsys.readouterr().err) == (len(stack) == 1)


def test_code_in_a_file_that_claims_to_be_ours_is_refused_too(tmp_path):
    stack = layers.Conv2D(2, 3), layers.Lambda(lambda x: x * 2, name="twice"), *head(1, "sigmoid")
    path = saved(sequential(*stack), tmp_path / "ours.keras")
    write_metadata(path, to_text(of_foreign(SIZE, ForeignModel())))
    assert refusal(path).startswith("layer 'twice' is a Lambda, whose code is never run")


def test_a_wrong_weights_file_gives_one_line_and_nothing_of_keras(tmp_path, capfd, recwarn):
    sequential(*head(1, "sigmoid")).save_weights(tmp_path / "theirs.weights.h5")
    model = networks.build(NetworkConfig(), 32)
    capfd.readouterr()
    with pytest.raises(ModelFileError) as caught:
        load_base(model, NetworkConfig(), str(tmp_path / "theirs.weights.h5"))
    assert str(caught.value) == (
        f"{tmp_path}/theirs.weights.h5: not the weights of a backbone efficientnetb0 (A total of 131 objects could not"
        " be loaded.)"
    )
    assert capfd.readouterr() == ("", "")
    assert not [each for each in recwarn if "Skipping" in str(each.message)]
    with pytest.raises(ModelFileError, match="with a cnn, found other weights"):
        load_base(model, NetworkConfig("cnn"), str(tmp_path / "theirs.weights.h5"))


def test_a_foreign_model_is_no_start_of_a_training(tmp_path):
    path = saved(sequential(*head(1, "sigmoid")), tmp_path / "ours.keras")
    write_metadata(path, to_text(of_foreign(SIZE, ForeignModel())))
    with pytest.raises(ModelFileError, match="holds a network of another program, which no training can start from"):
        load_base(networks.build(NetworkConfig(), 32), NetworkConfig(), str(path))


def test_the_settings_go_into_a_model_file_that_needs_no_options(trained_on_unit_pixels, tmp_path, capsys):
    ours = tmp_path / "theirs_fakereal.keras"
    words = ["export", str(trained_on_unit_pixels), "--format", "keras"]
    assert run_cli(door.main, [*words, "--foreign-output", "p_fake", "--foreign-scale", "0-1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{ours} (")
    assert "verified: p_real differs from Keras by at most" in printed
    foreign = ForeignModel("p_fake", "0-1")
    expected = model_file.load(trained_on_unit_pixels, foreign).p_real(noise_images(size=SIZE))
    detector = model_file.load(ours)
    assert detector.p_real(noise_images(size=SIZE)) == pytest.approx(expected, abs=1e-6)
    assert detector.metadata.network == "foreign"
    assert detector.metadata.foreign == {"output": "p_fake", "scale": "0-1", "size_px": SIZE}
    again = keras.models.load_model(ours)  # a regular Keras file: 0..255 in, p_real out
    assert np.asarray(again(noise_images(size=SIZE).astype("f4")))[:, 0] == pytest.approx(expected, abs=1e-6)
    assert run_cli(door.main, [*words, "--foreign-model", "--output", str(trained_on_unit_pixels)]) == 2
    assert "is the model itself: name another file" in capsys.readouterr().err


def test_evaluate_takes_a_foreign_model_and_notes_a_wrong_scale_in_the_report(trained_on_unit_pixels, tmp_path, capsys):
    data = make_labeled_images(tmp_path / "set", {"real": 6, "fake": 6})
    words = ["evaluate", str(trained_on_unit_pixels), "--data", str(data), "--engine", "keras", "--resave-images", "0"]
    assert run_cli(door.main, [*words, "--foreign-scale", "0-1"]) == 0
    assert "Suspicious" not in (tmp_path / "theirs_on_set" / "report.html").read_text()
    assert run_cli(door.main, [*words, "--foreign-model"]) == 0
    assert "warning: all 12 outputs are the same (p_real 1.000)" in capsys.readouterr().err
    assert "Suspicious: all 12 outputs are the same" in (tmp_path / "theirs_on_set" / "report.html").read_text()
