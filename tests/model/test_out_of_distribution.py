"""Images unlike the training images: prototypes, sizes, engines, and what prediction says of them."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from small_networks import CNN, SIZE_PX, built, noise_images, write

import predict_and_save_json as door
from fakereal.config import Config
from fakereal.decoding import ImageInfo
from fakereal.engines.engine import open_network
from fakereal.engines.formats import run_network
from fakereal.errors import ModelFileError
from fakereal.model import out_of_distribution as ood
from fakereal.model.calibration import DecisionRule
from fakereal.model.metadata import Metadata, from_text, read_metadata, to_text
from fakereal.predict.inputs import Item
from fakereal.predict.journal import from_json, to_json
from fakereal.predict.pipeline import RawPrediction
from fakereal.predict.results import TOO_CLOSE, decide
from fakereal.preprocessing import Preprocessing


def clusters(count=400, features=32, seed=0):
    """Features around three directions, as a network gives for three kinds of images."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(1).normal(0, 1, (3, features))
    return centers[rng.integers(0, 3, count)] * rng.uniform(1, 5, (count, 1)) + rng.normal(0, 0.2, (count, features))


def test_nearly_all_images_of_the_training_kind_are_familiar_and_other_directions_are_not():
    prototypes = ood.fit_prototypes(clusters(seed=0), clusters(seed=1), seed=0)
    assert np.mean(ood.scores(clusters(seed=2), prototypes) <= 1) > 0.93
    others = np.random.default_rng(3).normal(0, 1, (200, 32))
    assert np.mean(ood.scores(others, prototypes) > 1) > 0.97
    assert ood.scores(np.zeros((1, 32)), prototypes)[0] > 1  # no direction at all


def test_features_that_say_nothing_or_are_too_many_give_no_prototypes():
    assert ood.fit_prototypes(np.ones((50, 8)), np.ones((5, 8)), 0) is None
    many = np.random.default_rng(7).normal(size=(6, ood.MAX_FEATURES + 1))
    assert ood.fit_prototypes(many[:4], many[4:], 0) is None


def test_familiar_sizes_reach_from_a_quarter_to_four_times_the_training_images():
    assert ood.fit_sizes(np.full(100, 32)) == (8, 128)
    assert ood.fit_sizes(np.arange(200, 1000)) == (51, 3968)
    assert not ood.is_unfamiliar(None, 128, (8, 128))
    assert ood.is_unfamiliar(None, 129, (8, 128))
    assert ood.is_unfamiliar(0.1, 7, (8, 128))
    assert ood.is_unfamiliar(1.01, 32, (8, 128))
    assert not ood.is_unfamiliar(1.0, 32, None)
    assert not ood.is_unfamiliar(None, None, (8, 128))


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A model file with prototypes of noise images, its network, and what its score must be by NumPy alone."""
    import keras

    from fakereal.model import model_file

    path, network = tmp_path_factory.mktemp("ood") / "m.h5", built(5)
    features = keras.Model(network.inputs, network.layers[-1].input)
    training = features.predict(noise_images(60, seed=1).astype(np.float32), verbose=0)
    prototypes = ood.fit_prototypes(training[:40], training[40:], 0)
    metadata = Metadata(
        Config(image_size=SIZE_PX, network=CNN),
        Preprocessing(SIZE_PX),
        DecisionRule(shorter_side_px=(8, 128)),
        prototypes=prototypes,
    )
    model_file.save(path, model_file.Detector(network, metadata))
    return path, network, lambda images: ood.scores(features.predict(images.astype(np.float32), verbose=0), prototypes)


@pytest.mark.parametrize("engine", ["keras", "litert"])
def test_every_engine_gives_the_score_beside_the_same_output(scored, engine):
    path, network, expected_scores = scored
    images = np.concatenate([noise_images(5, seed=2), np.full((2, SIZE_PX, SIZE_PX, 3), 255, np.uint8)])
    p_real, scores = run_network(open_network(path, engine).network, images)
    assert p_real == pytest.approx(network.predict(images.astype(np.float32), verbose=0)[:, 0], abs=1e-5)
    assert scores == pytest.approx(expected_scores(images), abs=2e-3)
    assert (scores[-2:] > 1).all()  # white images are no noise


def test_a_model_without_prototypes_gives_no_score(tmp_path):
    path = write(tmp_path / "m.h5", built(6))
    assert run_network(open_network(path, "keras").network, noise_images(2))[1] is None


def test_damaged_prototypes_are_a_damaged_file(scored):
    path = scored[0]
    tree = json.loads(to_text(read_metadata(path)))
    assert from_text(json.dumps(tree), path) == read_metadata(path)
    tree["prototypes"]["max_distance"] = -1
    with pytest.raises(ModelFileError, match="metadata is damaged"):
        from_text(json.dumps(tree), path)


def test_prediction_calls_unfamiliar_images_uncertain_and_says_why(scored, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, array in enumerate(noise_images(4, seed=2), start=1):
        Image.fromarray(array).save(folder / f"{number}.png")
    Image.new("RGB", (SIZE_PX, SIZE_PX), "white").save(folder / "5.png")
    Image.fromarray(noise_images(1, size=400)[0]).save(folder / "6.png")  # noise, but far larger
    output, details = tmp_path / "p.json", tmp_path / "d.csv"
    arguments = ["--model", scored[0], "--input", folder, "--output", output, "--details", details]
    assert door.main(list(map(str, arguments))) == 0
    rows = {row["image"]: row for row in csv.DictReader(details.open())}
    assert [rows[f"{n}.png"]["verdict"] == "uncertain" for n in (1, 2, 3, 4, 5, 6)] == [False] * 4 + [True] * 2
    assert rows["5.png"]["reason"] == rows["6.png"]["reason"] == ood.REASON
    assert "2 uncertain because they are unlike the images this model learned from" in capsys.readouterr().out
    assert all(entry["prediction"] in ("fake", "real") for entry in json.loads(output.read_text()))


def test_the_reason_of_every_uncertain_verdict_is_given():
    rule = DecisionRule(band=(0.4, 0.6), shorter_side_px=(8, 128))
    item, info = Item(None, "1.png", 1), ImageInfo(32, 40, "PNG")
    raws = [RawPrediction(item, info, p, score=score) for p, score in ((0.55, 0.2), (0.99, 0.2), (0.99, 1.2))]
    raws.append(RawPrediction(item, replace(info, height_px=7), 0.99, score=0.2))
    found = [(result.verdict, result.reason) for result in decide(raws, rule)]
    assert found == [("uncertain", TOO_CLOSE), ("real", None), ("uncertain", ood.REASON), ("uncertain", ood.REASON)]


def test_the_journal_keeps_the_score():
    raw = RawPrediction(Item(None, "1.png", 1), ImageInfo(32, 40, "PNG"), 0.25, score=1.234567)
    assert from_json(to_json(raw), raw.item) == raw
