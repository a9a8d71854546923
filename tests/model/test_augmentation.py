"""What the internet does to images: random for training, fixed and named for evaluation."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fakereal.config import ResavingConfig
from fakereal.model import augmentation
from fakereal.model.augmentation import random_view, resave_randomly
from fakereal.model.resaves import RESAVES
from fakereal.preprocessing import Neutral, Preprocessing

ALWAYS = ResavingConfig(share=1.0, jpeg=1.0, blur=1.0, rescale=1.0, crop=1.0, colour=1.0)
NOTHING = ResavingConfig(share=1.0, jpeg=0.0, blur=0.0, rescale=0.0, crop=0.0, colour=0.0)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise holds every frequency, so that no step can pass it unchanged."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def only(step: str) -> ResavingConfig:
    return ResavingConfig(**{**vars(NOTHING), step: 1.0})


def difference(a: Image.Image, b: Image.Image) -> float:
    """Returns the mean difference in gray levels."""
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


@pytest.mark.parametrize("size", [(1, 1), (2, 200), (32, 32), (300, 225)])
def test_any_size_comes_back_as_rgb(size):
    for seed in range(60):
        found = resave_randomly(noise(*size), np.random.default_rng(seed), ALWAYS)
        assert found.mode == "RGB"
        assert min(found.size) >= 1


def test_the_same_seed_gives_the_same_image_and_another_seed_another():
    first, again, other = (
        resave_randomly(noise(64, 48), np.random.default_rng((0, 1, seed)), ALWAYS) for seed in (5, 5, 6)
    )
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_the_image_given_is_left_as_it_was():
    image = noise(40, 40)
    before = image.tobytes()
    for seed in range(20):
        resave_randomly(image, np.random.default_rng(seed), ALWAYS)
    assert image.tobytes() == before


def test_the_share_decides_how_many_images_stay_untouched():
    image, options = noise(32, 32), ResavingConfig(share=0.3, jpeg=1.0)
    touched = sum(resave_randomly(image, np.random.default_rng(seed), options) is not image for seed in range(500))
    assert 0.24 < touched / 500 < 0.36
    assert resave_randomly(image, np.random.default_rng(0), ResavingConfig(share=0.0)) is image


@pytest.mark.parametrize("step", ["jpeg", "blur", "rescale", "crop", "colour"])
def test_each_step_alone_changes_the_image(step):
    image = noise(64, 64)
    results = [resave_randomly(image, np.random.default_rng(seed), only(step)) for seed in range(20)]
    assert sum(found.tobytes() != image.tobytes() for found in results) >= 18
    assert resave_randomly(image, np.random.default_rng(0), NOTHING).tobytes() == image.tobytes()


@pytest.mark.parametrize(("side", "least"), [(32, 0.8), (300, 0.6)])
def test_a_crop_keeps_most_of_an_image_and_more_of_a_tiny_one(side, least):
    sides = [resave_randomly(noise(side, side), np.random.default_rng(seed), only("crop")).width for seed in range(100)]
    assert round(least * side) <= min(sides) < side * (least + 0.05)


@pytest.mark.parametrize(("side", "least", "most"), [(32, 0.75, 1 / 0.75), (300, 0.5, 2.0)])
def test_rescaling_stays_within_its_range(side, least, most):
    sides = [
        resave_randomly(noise(side, side), np.random.default_rng(seed), only("rescale")).width for seed in range(100)
    ]
    assert round(side * least) <= min(sides) < side < max(sides) <= round(side * most)
    assert sides.count(side) > 20  # scaled back


def test_a_tiny_image_is_blurred_less_than_a_large_one():
    def kept_contrast(side: int) -> float:
        image = noise(side, side)
        results = [resave_randomly(image, np.random.default_rng(seed), only("blur")) for seed in range(40)]
        return float(np.mean([np.asarray(found).std() / np.asarray(image).std() for found in results]))

    assert kept_contrast(32) > 0.7 > 0.4 > kept_contrast(224)


def test_jpegs_of_all_qualities_and_subsamplings_are_made_and_some_webps(monkeypatch):
    seen = Counter()
    save = Image.Image.save

    def spy(image: Image.Image, buffer: io.BytesIO, file_format: str, **options: object) -> None:
        seen[file_format, options.get("subsampling")] += 1
        assert 30 <= options["quality"] <= 100
        save(image, buffer, file_format, **options)

    monkeypatch.setattr(Image.Image, "save", spy)
    for seed in range(200):
        resave_randomly(noise(16, 16), np.random.default_rng(seed), only("jpeg"))
    assert set(seen) == {("WEBP", None), ("JPEG", 0), ("JPEG", 1), ("JPEG", 2)}
    assert min(seen.values()) >= 5


def test_an_image_longer_than_webp_allows_is_reduced_first():
    assert augmentation._LONGEST_PX * 2 <= 16383
    sizes = {resave_randomly(noise(17_000, 3), np.random.default_rng(seed), only("jpeg")).size for seed in range(12)}
    assert sizes == {(4096, 1)}


@pytest.mark.parametrize("name", RESAVES)
def test_a_named_resave_is_fixed_and_keeps_the_size(name):
    image = noise(33, 47)
    before = image.tobytes()
    found = RESAVES[name].apply(image)
    assert (found.mode, found.size) == ("RGB", image.size)
    assert found.tobytes() == RESAVES[name].apply(image).tobytes()
    assert found is not image
    assert image.tobytes() == before


@pytest.mark.parametrize("name", RESAVES)
def test_a_named_resave_takes_a_single_pixel(name):
    assert RESAVES[name].apply(noise(1, 1)).size == (1, 1)


def test_named_resaves_damage_in_their_order():
    image = noise(64, 64)
    damage = {name: difference(image, each.apply(image)) for name, each in RESAVES.items()}
    assert damage["png"] == 0.0
    assert 0.0 < damage["jpeg90"] < damage["jpeg75"] < damage["jpeg70"] < damage["jpeg50"]
    assert 0.0 < damage["scale0.75"] < damage["scale0.5"]
    assert damage["blur1"] > 0.0


def test_jpeg75_is_what_pillow_saves_at_75():
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, "JPEG", quality=75)
    with Image.open(buffer) as expected:
        assert RESAVES["jpeg75"].apply(noise(64, 64)).tobytes() == expected.tobytes()


def coordinates(width, height):
    """Return an image whose red value is a pixel's column, and green its row."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=2).astype(np.uint8))


def test_a_random_view_shows_the_whole_image_a_native_crop_or_a_square_of_a_size_in_between():
    preprocessing = Preprocessing(32, square=True, crops=1)
    image = coordinates(200, 160)
    shown = []  # pixels of the image from the left to the right of a view, in both directions
    for seed in range(90):
        view = random_view(image, preprocessing, np.random.default_rng(seed), lambda part: part).astype(int)
        shown.append((np.ptp(view[:, :, 0]), np.ptp(view[:, :, 1])))
        assert abs(shown[-1][0] - shown[-1][1]) <= 6, "it is as high as wide"
        left, top = view[0, 0, :2]
        if shown[-1] == (31, 31):
            assert (view == np.asarray(image)[top : top + 32, left : left + 32]).all()
    assert sum(sides == (31, 31) for sides in shown) > 15, "native: no pixel is changed"
    assert sum(150 <= across <= 160 for across, _ in shown) > 15, "the center square"
    assert sum(40 < across < 145 for across, _ in shown) > 10


def test_random_views_are_cut_before_they_are_re_saved_with_some_room():
    image, preprocessing, seen = coordinates(200, 160), Preprocessing(32, square=True, crops=1), []
    for seed in range(60):
        view = random_view(
            image, preprocessing, np.random.default_rng(seed), lambda part: seen.append(part.size) or part
        )
        assert view.shape == (32, 32, 3)
    assert (58, 58) in seen, "native crops"
    assert max(seen) > (150, 120)
    assert len(set(seen)) > 20


def test_a_re_saved_part_that_became_too_small_is_enlarged():
    preprocessing = Preprocessing(32, square=True, crops=1)
    for seed in range(20):
        view = random_view(
            coordinates(200, 160), preprocessing, np.random.default_rng(seed), lambda part: part.resize((20, 16))
        )
        assert view.shape == (32, 32, 3)


def test_a_neutral_image_is_re_saved_before_it_is_made_neutral():
    image, preprocessing, seen = coordinates(200, 160), Preprocessing(32, Neutral(64, 75), square=True, crops=1), []
    for seed in range(20):
        view = random_view(
            image, preprocessing, np.random.default_rng(seed), lambda whole: seen.append(whole.size) or whole
        )
        assert view.shape == (32, 32, 3)
    assert set(seen) == {(200, 160)}


def test_without_crops_a_random_view_is_the_whole_image():
    image, preprocessing = coordinates(100, 80), Preprocessing(32)
    view = random_view(image, preprocessing, np.random.default_rng(0), lambda part: part)
    assert (view == preprocessing.array(image)).all()


def test_noise_that_no_jpeg_makes_smaller_is_compressed_like_any_image():
    """As a progressive JPEG, it is too large for Pillow's buffer, which ended whole trainings."""
    image = noise(300, 300)
    sizes = {resave_randomly(image, np.random.default_rng(seed), only("jpeg")).size for seed in range(60)}
    assert sizes == {(300, 300)}
