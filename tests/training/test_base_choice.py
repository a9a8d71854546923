"""`--weights auto` takes the base whose features tell fake from real; with small bases, without network."""

import keras
import numpy as np
import pytest
from small_networks import SIZE_PX, residual_base

from fakereal import config
from fakereal.config import AugmentationConfig, NetworkConfig, TrainingConfig
from fakereal.dataset.split import scan_and_split
from fakereal.errors import ConfigError
from fakereal.model import networks, weights
from fakereal.model.weights import BaseWeights, LoadedBase
from fakereal.preprocessing import Preprocessing
from fakereal.training import base_choice, run
from fakereal.training.cache import RowCache
from fakereal.training.features import choose_batch_source


@pytest.fixture(autouse=True)
def small_base(monkeypatch):
    monkeypatch.setattr(networks, "_base", residual_base)


def whole(data, cache="none", **more):
    return config.Config(
        SIZE_PX,
        data=config.DataConfig(str(data), cache_dir=str(cache)),
        augmentation=AugmentationConfig(horizontal_flip=False, rotation_degrees=0.0),
        training=TrainingConfig(**{"epochs": 2, "batch_size": 16, "fine_tune": "none", **more}),
        report=config.ReportConfig(resave_images=0),
    )


@pytest.fixture
def model():
    keras.utils.set_random_seed(1)
    return networks.build(NetworkConfig(), SIZE_PX)


@pytest.fixture
def bases(model):
    """A blind base, whose features are the same for every image, and one that responds to the checkerboard."""
    base = model.get_layer(networks.BASE)
    seeing = base.get_weights()
    edges = np.zeros_like(seeing[0])
    edges[0, 0], edges[0, 2], edges[1, 1] = 1.0, -1.0, 0.5
    seeing[0] = edges * np.linspace(-1, 1, edges.shape[-1], dtype=np.float32)
    return [
        LoadedBase(BaseWeights("ImageNet (Keras)", True, "imagenet"), [np.zeros_like(each) for each in seeing]),
        LoadedBase(BaseWeights("models/pretrained.h5", True, "pretrained"), seeing),
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_the_base_with_the_better_features_is_chosen_and_one_line_says_both_figures(
    images, tmp_path, model, bases, order, capsys
):
    _, split = scan_and_split(whole(images))
    best = base_choice.choose_base(model, bases[::order], whole(images), split, RowCache(tmp_path, 10**9))
    assert best.origin.choice == "pretrained"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("weights:")]
    assert "models/pretrained.h5 has the better features" in line
    assert "ImageNet (Keras) 0.69" in line
    assert f"({len(split.train)} training, {len(split.val)} validation images; guessing is 0.693)" in line


def test_the_training_finds_the_features_of_the_probe_in_the_cache(images, tmp_path, model, bases, monkeypatch):
    monkeypatch.setattr(base_choice, "TRAIN_IMAGES", 20)
    _, split = scan_and_split(whole(images))
    cache = RowCache(tmp_path, 10**9)
    best = base_choice.choose_base(model, bases, whole(images), split, cache)
    model.get_layer(networks.BASE).set_weights(best.weights)
    count = sum(len(getattr(split, name)) for name in ("train", "val", "test"))
    source = choose_batch_source(model, whole(images), Preprocessing(SIZE_PX), cache, count)
    source.plain(split.val, 16)
    assert source.cost.images == 0
    source.plain(split.train, 16)
    assert source.cost.images == len(split.train) - 20


def test_a_run_starts_from_the_chosen_base_and_its_configuration_names_it(images, tmp_path, bases, monkeypatch):
    monkeypatch.setattr(weights, "available_bases", lambda *_: bases)
    outcome = run.train_and_report(whole(images, tmp_path / "cache"), tmp_path / "m.h5")
    assert outcome.detector.metadata.base_weights == "models/pretrained.h5"
    assert config.load(outcome.folder / "config.yaml").weights == "pretrained"
    base = outcome.detector.model.get_layer(networks.BASE)
    assert all(np.array_equal(one, other) for one, other in zip(base.get_weights(), bases[1].weights, strict=True))


def test_missing_weights_are_named_before_the_images_are_read(tmp_path):
    wrong = config.load(None, {"weights": "nope.h5", "data.path": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match=r"found 'nope\.h5', which does not exist"):
        run.train_and_report(wrong, tmp_path / "model.h5")


def test_a_single_base_is_taken_without_a_probe(images, tmp_path, model, bases, monkeypatch, capsys):
    monkeypatch.setattr(weights, "available_bases", lambda *_: bases[:1])
    monkeypatch.setattr(base_choice, "choose_base", None)
    origin = base_choice.load_best_base(model, whole(images), None, None)
    assert origin == bases[0].origin
    assert capsys.readouterr().err == ""


def test_a_probe_scores_features_that_separate_the_classes_and_none_that_are_noise():
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    noise = rng.normal(size=(120, 10))
    telling = noise + labels[:, None]
    halves = slice(0, 80), slice(80, 120)
    losses = [
        base_choice.fit_probe(*(part[half] for half in halves for part in (each, labels))).loss
        for each in (telling, noise)
    ]
    assert losses[0] < 0.35
    assert losses[1] == pytest.approx(np.log(2), abs=0.05)


def test_images_for_the_probe_have_both_classes_alike(images):
    _, split = scan_and_split(whole(images))
    records = [record for record in split.train if record.label == 0 or record.sha256 < "4"]
    drawn = base_choice.balanced_sample(records, 10, seed=0)
    assert [sum(record.label == label for record in drawn) for label in (0, 1)] == [5, 5]
