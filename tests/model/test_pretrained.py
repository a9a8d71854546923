import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakereal.model import model_file
from fakereal.model.metadata import read_metadata
from fakereal.model.weights import PRETRAINED
from fakereal.preprocessing import Preprocessing

CARD = (Path(__file__).resolve().parents[2] / "models" / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_the_shipped_model_is_small_and_of_the_default_network_and_preprocessing():
    metadata = read_metadata(PRETRAINED)
    assert PRETRAINED.stat().st_size <= 20e6
    assert metadata.config.network.name == "efficientnetb0"
    assert metadata.preprocessing == Preprocessing()


def test_the_shipped_model_says_where_it_comes_from_but_not_on_whose_disk():
    metadata = read_metadata(PRETRAINED)
    assert metadata.history
    assert metadata.data["fingerprint"]
    assert not Path(metadata.config.data.path).is_absolute()
    assert not Path(metadata.config.weights).is_absolute()


def test_the_card_has_the_figures_that_the_file_has():
    metrics = read_metadata(PRETRAINED).metrics
    names = {"all": metrics["test"], **metrics["test_by_source"]}
    rows = re.findall(r"^\| ([\w ]+) \| ([\d,]+) \| ([\d.]+) % .*? \| ([\d.]+) \(", CARD, flags=re.MULTILINE)
    found = {
        name.lower(): (int(images.replace(",", "")), float(share), float(auc)) for name, images, share, auc in rows
    }
    for name, row in names.items():
        expected = (row["images"], round(100 * row["accuracy"], 1), round(row["roc_auc"], 3))
        assert np.allclose(found[name], expected, atol=0.051), name


def test_the_shipped_model_answers(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.jpg")
    detector = model_file.load(PRETRAINED)
    images = np.stack([detector.metadata.preprocessing.read(tmp_path / "noise.jpg")] * 2)
    p_real = detector.p_real(images)
    assert p_real[0] == pytest.approx(p_real[1], abs=1e-6)  # Keras' rows may round apart; LiteRT's never do
    assert 0.0 <= p_real[0] <= 1.0
