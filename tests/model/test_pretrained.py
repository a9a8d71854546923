from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakereal.engines import parity
from fakereal.engines.card import read_exported
from fakereal.engines.engine import open_network
from fakereal.files import sha256_of
from fakereal.model import model_file, unseen
from fakereal.model.metadata import read_metadata
from fakereal.model.weights import PRETRAINED
from fakereal.preprocessing import Preprocessing

CARD = (Path(__file__).resolve().parents[2] / "models" / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_the_shipped_model_is_small_and_of_the_default_network_with_six_views():
    metadata = read_metadata(PRETRAINED)
    assert PRETRAINED.stat().st_size <= 20e6
    assert metadata.config.network.name == "efficientnetb0"
    assert metadata.preprocessing == Preprocessing(160, square=True, crops=5, version=2)


def test_the_shipped_model_says_where_it_comes_from_but_not_on_whose_disk():
    metadata = read_metadata(PRETRAINED)
    assert metadata.data["fingerprint"]
    assert len(metadata.data["epochs"]) == 33
    assert not Path(metadata.config.data.path).is_absolute()
    assert not Path(metadata.config.weights).is_absolute()


def test_the_shipped_model_was_measured_on_sources_that_it_never_saw():
    metadata = read_metadata(PRETRAINED)
    found = metadata.metrics["unseen_sources"]
    assert (len(found["fake_sources"]), len(found["real_sources"])) == (89, 66)
    assert not {*found["fake_sources"], *found["real_sources"]} & set(metadata.data["sources"])
    assert unseen.sentence(metadata.metrics) in CARD.replace("\n", " ")


@pytest.mark.parametrize("delivery", ["clean", "web", "hard"])
def test_the_card_has_the_figures_that_the_file_has(delivery):
    row = read_metadata(PRETRAINED).metrics["unseen_sources"]["deliveries"][delivery]
    start = f"| {delivery} | {row['images']:,} | {row['mean_roc_auc']:.3f} | {row['balanced_accuracy']:.3f} |"
    assert f"{start} {row['right']} of {row['verdicts']}: " in CARD


def test_the_shipped_model_knows_images_unlike_its_own():
    metadata = read_metadata(PRETRAINED)
    assert metadata.prototypes.features == 1280
    assert metadata.decision.shorter_side_px == (8, 4096)


def test_the_card_has_the_files_figures_on_cifake():
    row = read_metadata(PRETRAINED).metrics["test"]
    assert f"| CIFAKE test | {row['images']:,} | {row['accuracy']:.2%} (" in CARD


def test_the_network_for_prediction_without_tensorflow_is_that_of_the_shipped_model():
    exported = read_exported(PRETRAINED.with_suffix(".tflite"))
    assert exported.original.sha256 == sha256_of(PRETRAINED), "models/pretrained.h5 changed: make pretrained-tflite"
    assert exported.metadata == read_metadata(PRETRAINED)
    assert (exported.precision, exported.limit) == ("float32", parity.MAX_DIFFERENCE)
    images = parity.parity_images(exported.metadata.preprocessing.image_size_px)
    p_real = open_network(exported.path).network.p_real(images)
    assert p_real == pytest.approx(model_file.load(PRETRAINED).p_real(images), abs=1e-4)


def test_the_shipped_model_answers(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.jpg")
    detector = model_file.load(PRETRAINED)
    images = np.stack([detector.metadata.preprocessing.read(tmp_path / "noise.jpg")] * 2)
    p_real = detector.p_real(images)
    assert p_real[0] == pytest.approx(p_real[1], abs=1e-6)  # Keras' rows may round apart; LiteRT's never do
    assert 0.0 <= p_real[0] <= 1.0
