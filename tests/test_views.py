"""Several views of one image: how they are batched, and how their outputs become one."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fakereal.model.calibration import combine_views
from fakereal.predict.inputs import list_images
from fakereal.predict.pipeline import predict_batches
from fakereal.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(32, square=True, crops=3)


class Brightness:
    """A network whose output is the mean brightness; remembers the shapes that it saw."""

    def __init__(self):
        self.shapes = set()

    def p_real(self, images):
        self.shapes.add(images.shape)
        return np.clip(images.mean(axis=(1, 2, 3)) / 255.0, 0.01, 0.99)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number, size in enumerate([(20, 20), (100, 60), (33, 40), (90, 90), (32, 32), (64, 200)] * 3, start=1):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels // (1 + number % 3)).save(tmp_path / f"{number}.png")
    (tmp_path / "7.png").write_bytes(b"broken")
    return tmp_path


def predicted(folder, batch_size, variants=()):
    network = Brightness()
    items = list_images((str(folder),)).items
    found = list(predict_batches(items, network, PREPROCESSING, batch_size, variants))
    assert network.shapes == {(batch_size, 32, 32, 3)}
    return found


def test_the_output_of_an_image_is_the_mean_logit_of_its_views(folder):
    for prediction in predicted(folder, 8):
        if prediction.error:
            assert prediction.item.name == "7.png"
            continue
        image = Image.open(io.BytesIO((folder / prediction.item.name).read_bytes()))
        views = np.stack(PREPROCESSING.views(image.convert("RGB")))
        p = Brightness().p_real(views)
        mean = np.mean(np.log(p / (1 - p)))
        assert prediction.p_real == pytest.approx(1 / (1 + np.exp(-mean)), abs=1e-6)


@pytest.mark.parametrize("batch_size", [2, 5, 32])
def test_batches_of_any_size_give_the_same_outputs(folder, batch_size):
    wanted = [(each.item.name, each.p_real, each.variants_p_real) for each in predicted(folder, 8, ("jpeg90",))]
    found = [(each.item.name, each.p_real, each.variants_p_real) for each in predicted(folder, batch_size, ("jpeg90",))]
    assert found == wanted
    assert len(found) == 18


def test_one_view_keeps_its_output_bit_for_bit():
    assert combine_views([0.123456789]) == 0.123456789


@pytest.mark.parametrize("invalid", [float("nan"), float("inf"), 1.5, -0.1])
def test_an_invalid_output_of_one_view_is_not_averaged_away(invalid):
    found = combine_views([0.5, invalid, 0.5])
    assert np.isnan(found) if np.isnan(invalid) else found == invalid


def test_certain_views_stay_finite():
    assert combine_views([1.0, 1.0]) > 0.999
    assert combine_views([0.0, 1.0]) == pytest.approx(0.5)
