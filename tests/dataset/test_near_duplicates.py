from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fakereal.dataset import near_duplicates
from fakereal.dataset.near_duplicates import Cluster, duplicate_groups, find_duplicates
from fakereal.dataset.scan import THUMBNAIL_PX, scan, thumbnail_of
from fakereal.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(224)


def drawing(seed, size=(160, 120)):
    """An image with outlines: twenty shapes of any color on a shaded ground."""
    rng = np.random.default_rng(seed)
    ground = Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(ground)
    for _ in range(20):
        x, y = rng.integers(0, size[0]), rng.integers(0, size[1])
        width, height = rng.integers(size[0] // 20, size[0] // 3, 2)
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((int(x), int(y), int(x + width), int(y + height)), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return ground


def thumbnails(*images):
    pixels = [thumbnail_of(np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC))) for image in images]
    return np.frombuffer(b"".join(pixels), np.uint8).reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX)


def groups(images, shorter_px=None):
    return [
        group.tolist()
        for group in near_duplicates.similar_groups(
            thumbnails(*images), np.array([shorter_px or min(image.size) for image in images])
        )
    ]


@pytest.fixture
def root(tmp_path):
    """Six fake and six real images, all different."""
    for number in range(12):
        path = tmp_path / "images" / ("fake" if number < 6 else "real") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing(number).save(path)
    return tmp_path / "images"


def found(root):
    return {
        (cluster.kind, *(record.path.relative_to(root).as_posix() for record in cluster.records))
        for cluster in find_duplicates(scan(root, PREPROCESSING).records)
    }


def test_images_that_are_all_different_have_no_duplicates(root):
    assert found(root) == set()


CHANGES = {
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "stretched": lambda image: image.resize((image.width, image.height * 2)),
    "paler": lambda image: Image.blend(image, Image.new("RGB", image.size, "gray"), 0.3),
    "saved again": lambda image: image,
    **{method.name: lambda image, method=method: image.transpose(method) for method in Image.Transpose},
}


@pytest.mark.parametrize("save", [{"format": "PNG"}, {"format": "JPEG", "quality": 60}], ids=["png", "jpeg60"])
@pytest.mark.parametrize("size", [(160, 120), (32, 32)], ids=["160x120", "32x32"])
def test_a_changed_copy_is_a_near_copy(tmp_path, save, size):
    for folder in ("real", "fake"):
        (tmp_path / folder).mkdir()
    for number, (name, change) in enumerate(CHANGES.items()):
        original = drawing(100 + number, size)
        original.save(tmp_path / f"real/{name}.png")
        change(original).save(tmp_path / f"fake/{name}.png", **save)
    kinds = dict.fromkeys(CHANGES, "near")
    if save["format"] == "PNG":
        kinds["saved again"] = "identical"
    assert found(tmp_path) == {(kind, f"fake/{name}.png", f"real/{name}.png") for name, kind in kinds.items()}


def test_identical_images_are_a_cluster_of_their_own_and_part_of_the_near_one(root):
    shutil.copy(root / "fake/1.png", root / "fake/again.png")
    drawing(1).save(root / "real/1.bmp")
    drawing(1).save(root / "real/1.jpg", quality=60)
    same = ("fake/1.png", "fake/again.png", "real/1.bmp")
    assert found(root) == {("identical", *same), ("near", *same, "real/1.jpg")}


def test_the_order_of_the_records_does_not_matter(root):
    for number in (3, 4, 9):
        drawing(number).save(root / f"real/copy {number}.jpg", quality=60)
    shutil.copy(root / "fake/5.png", root / "fake/again.png")
    records = scan(root, PREPROCESSING).records
    clusters = find_duplicates(records)
    assert len(clusters) == 4
    assert [cluster.kind for cluster in clusters] == ["identical", "near", "near", "near"]
    assert find_duplicates(records[::-1]) == clusters


@pytest.mark.parametrize(
    ("first", "second", "scope"),
    [
        ("train/fake", "train/fake", "within a class"),
        ("train/fake", "other/train/real", "across classes"),
        ("train/fake", "test/fake", "across splits"),
        ("train/fake", "val/real", "across classes and splits"),
        ("fake", "train/fake", "within a class"),
    ],
)
def test_a_cluster_says_what_it_extends_across(root, first, second, scope):
    for folder, name in ((first, "a.png"), (second, "b.png")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        drawing(100).save(root / folder / name)
    (cluster,) = find_duplicates(scan(root, PREPROCESSING).records)
    assert cluster.scope == scope


def test_plain_colors_gradients_and_bare_horizons_are_not_taken_for_one_another():
    rng = np.random.default_rng(0)
    levels = np.arange(40, 200, 8)
    slopes = np.linspace(-1, 1, 64)[:, None, None] * np.ones((64, 64, 3))
    plain = [np.full((64, 64, 3), level) for level in levels]
    gradients = [level + slope * slopes for level in levels for slope in (10, 40)]
    horizons = [np.where(slopes > 0.1, level, level + 40) for level in levels]
    for kind in (plain, gradients, horizons):
        noisy = [(array + rng.normal(0, 3, array.shape)).clip(0, 255).astype(np.uint8) for array in kind]
        assert groups([Image.fromarray(array) for array in noisy]) == []


def test_plain_images_that_are_identical_are_still_found(root):
    for name in ("fake/a.png", "real/b.png"):
        Image.new("RGB", (64, 64), "white").save(root / name)
    Image.new("RGB", (64, 64), "black").save(root / "real/c.png")
    assert found(root) == {("identical", "fake/a.png", "real/b.png")}


def test_large_images_that_agree_in_outline_only_are_not_near_and_small_ones_are():
    ground, checks = drawing(7, (256, 256)), np.indices((256, 256)).sum(axis=0) // 16 % 2 * 120 - 60
    checked = Image.fromarray((np.asarray(ground, int) + checks[..., None]).clip(0, 255).astype(np.uint8))
    assert groups([ground, checked]) == []
    assert groups([ground, checked], shorter_px=near_duplicates.FINE_FROM_PX - 1) == [[0, 1]]


def test_a_chain_of_small_steps_does_not_join_what_has_nothing_in_common():
    start, end = drawing(1), drawing(2)
    steps = [Image.blend(start, end, share) for share in np.linspace(0, 1, 41)]
    found = groups(steps)
    assert len(found) > 1
    assert sorted(index for group in found for index in group) == list(range(41))
    assert not any({0, 40} <= set(group) for group in found)


def test_groups_do_not_depend_on_how_many_pairs_are_kept_at_a_time(monkeypatch):
    images = [drawing(seed, (64, 64)) for seed in range(5) for _ in range(4)]
    whole = groups(images)
    for name in ("_MAX_EDGES", "_ROWS", "_COLUMNS", "_CHUNK"):
        monkeypatch.setattr(near_duplicates, name, 7)
    assert whole == groups(images) == [list(range(first, first + 4)) for first in range(0, 20, 4)]


def test_the_invariants_of_two_images_are_never_less_similar_than_the_images():
    rng = np.random.default_rng(0)
    noisy = np.concatenate([thumbnails(*(drawing(seed) for seed in range(40))), rng.integers(0, 256, (40, 16, 16))])
    transforms = near_duplicates._transforms(noisy, 8)
    invariants = near_duplicates._invariants(transforms)
    for shift in range(1, 80):
        alike = near_duplicates.similarity(transforms, np.roll(transforms, shift, axis=0))
        bound = (invariants * np.roll(invariants, shift, axis=0)).sum(axis=1)
        assert np.all(bound >= alike - 1e-5)


def test_every_orientation_of_an_image_is_the_same_to_the_comparison():
    image = drawing(3)
    turned = thumbnails(image, *(image.transpose(method) for method in Image.Transpose))
    transforms = near_duplicates._transforms(turned, 8)
    assert np.allclose(near_duplicates.similarity(transforms[:1], transforms), 1, atol=1e-3)
    assert np.allclose(near_duplicates._invariants(transforms), near_duplicates._invariants(transforms[:1]), atol=0.02)


def test_identical_images_and_clusters_that_share_one_are_one_group(root):
    Image.open(root / "fake" / "1.png").save(root / "fake" / "1_again.bmp")
    records = scan(root, PREPROCESSING).records
    by_name = {record.path.name: number for number, record in enumerate(records) if record.label == 0}
    clusters = [
        Cluster(tuple(records[by_name[name]] for name in pair), "near")
        for pair in (("1.png", "2.png"), ("2.png", "3.png"))
    ]
    groups = duplicate_groups(records, clusters)
    together = {groups[by_name[name]] for name in ("1.png", "1_again.bmp", "2.png", "3.png")}
    assert len(together) == 1
    assert len(set(groups)) == len(records) - 3
