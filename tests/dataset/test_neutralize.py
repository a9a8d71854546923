from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from fakereal import config as configuration
from fakereal.dataset import image_metadata
from fakereal.dataset.neutralize import preprocessing_of, resolve_neutral_settings, settings_for, summary, write_copy
from fakereal.dataset.scan import scan
from fakereal.decoding import decode
from fakereal.errors import ConfigError, DataError
from fakereal.preprocessing import Neutral, Preprocessing

SMALL = Preprocessing(32)
SETTINGS = Neutral(40, 90)


def detailed(width=600, height=400, seed=0):
    """An RGB image with detail at every scale."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (3, 10, 40, 160):
        grid = rng.normal(size=(cells, cells, 3)) * 160 / cells**0.5
        layers = [Image.fromarray(grid[..., band].astype(np.float32)) for band in range(3)]
        total += np.stack([np.asarray(layer.resize((width, height), Image.BICUBIC)) for layer in layers], axis=-1)
    return Image.fromarray(np.clip(128 + total, 0, 255).astype(np.uint8))


def encoded(image, format="PNG", **options):
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def hashes(folder: Path) -> dict[str, str]:
    """Every file under a folder, and the hash of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def mean_difference(first, second) -> float:
    return float(np.abs(np.asarray(first, dtype=float) - np.asarray(second, dtype=float)).mean())


# One image


def test_the_center_square_remains():
    image = Image.new("RGB", (300, 100), "red")
    image.paste("blue", (100, 0, 200, 100))
    square, info = decode(Neutral(50, 95).encode(image), 50)
    assert (info.width_px, info.height_px, info.format) == (50, 50, "JPEG")
    assert mean_difference(square, Image.new("RGB", (50, 50), "blue")) < 3


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("JPEG", {"quality": 95}, 2.0),
        ("JPEG", {"quality": 90, "progressive": True}, 2.5),
        ("WEBP", {"quality": 90}, 2.5),
    ],
)
def test_an_image_comes_out_the_same_whatever_its_format(format, options, tolerance):
    expected = Preprocessing(96, Neutral(120, 90)).read(encoded(detailed()))
    found = Preprocessing(96, Neutral(120, 90)).read(encoded(detailed(), format, **options))
    assert mean_difference(found, expected) <= tolerance


def test_a_large_jpeg_decoded_at_a_reduced_scale_comes_out_like_the_png():
    large, reader = detailed(1200, 800), Preprocessing(96, Neutral(60, 90))
    assert reader.decode(encoded(large, "JPEG"))[0].size == (300, 200), "the reduced scale is not used"
    jpeg, png = (reader.read(encoded(large, each)) for each in ("JPEG", "PNG"))
    assert mean_difference(jpeg, png) < 2.5


def test_an_image_is_decoded_at_twice_the_neutral_size_at_least():
    content = encoded(detailed(800, 600), "JPEG")
    for side in (30, 50, 100):
        assert min(Preprocessing(32, Neutral(side, 90)).decode(content)[0].size) >= 2 * side


def test_nothing_but_pixels_remains_in_the_encoding():
    plain = detailed(64, 64)
    exif = Image.Exif()
    exif[271] = "a camera"
    content = encoded(
        plain, "JPEG", quality=100, exif=exif, comment=b"made by a generator", dpi=(300, 300), progressive=True
    )
    marked = decode(content, 64)[0]
    assert "comment" in marked.info
    bare = Image.fromarray(np.asarray(marked))
    assert SETTINGS.encode(marked) == SETTINGS.encode(bare)
    with Image.open(io.BytesIO(SETTINGS.encode(marked))) as image:
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_a_rotated_photo_is_upright_before_it_is_cropped():
    exif = Image.Exif()
    exif[274] = 6
    turned = encoded(detailed().transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    reader = Preprocessing(32, SETTINGS)
    assert np.array_equal(reader.read(turned), reader.read(encoded(detailed())))


def test_settings_out_of_range_are_refused():
    for side, quality in ((7, 90), (5000, 90), (100, 0), (100, 101)):
        with pytest.raises(ConfigError, match="expected a side of 8 to 4096"):
            Neutral(side, quality)


def test_the_fingerprint_names_the_settings_and_brings_them_back():
    plain, neutral = Preprocessing(224), Preprocessing(224, Neutral(168, 90))
    assert plain.fingerprint == (
        "fakereal-preprocessing/2 size=224 resize=bicubic fit=stretch alpha=white exif=upright"
    ), "models that were trained without neutralizing must stay readable"
    assert neutral.fingerprint == f"{plain.fingerprint} neutral=168px,jpeg90"
    for each in (plain, neutral):
        assert Preprocessing.from_fingerprint(each.fingerprint) == each


def test_the_neutral_arrays_are_those_of_the_fingerprints_version():
    """Fails when a change moves a pixel: raise `_VERSION` in preprocessing.py, and put the new sums here."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    assert int(Preprocessing(64, SETTINGS).read(encoded(noise)).sum()) == 1570738


# The size that is chosen


@pytest.mark.parametrize(
    ("fake_px", "real_px", "side"),
    [
        ((256, 256), (178, 218), 134),  # three quarters of the smaller class
        ((224, 224), (940, 627), 168),
        ((32, 32), (32, 32), 28),  # not less
        ((16, 16), (32, 32), 16),  # nor enlarged
        ((4, 4), (32, 32), 8),  # one JPEG block
        ((720, 700), (740, 700), 512),  # no network looks at more
    ],
)
def test_the_size_reduces_both_classes(tmp_path, make_image, fake_px, real_px, side):
    for number in range(3):
        make_image(tmp_path / "fake" / f"{number}.png", number, fake_px)
        make_image(tmp_path / "real" / f"{number}.jpg", 9 + number, real_px)
    assert settings_for(scan(tmp_path, SMALL)).side_px == side


@pytest.mark.parametrize(
    ("fake", "real", "quality"),
    [
        ({"format": "PNG"}, {"format": "JPEG", "quality": 75}, 75),  # what one class lost, the other loses too
        ({"format": "JPEG", "quality": 92}, {"format": "JPEG", "quality": 85}, 85),
        ({"format": "JPEG", "quality": 30}, {"format": "JPEG", "quality": 30}, 60),  # not less
        ({"format": "PNG"}, {"format": "PNG"}, 90),
    ],
)
def test_the_quality_is_that_of_the_class_with_the_lower_one(tmp_path, make_image, fake, real, quality):
    for number in range(3):
        make_image(tmp_path / "fake" / f"{number}.png", number, (64, 64), **fake)
        make_image(tmp_path / "real" / f"{number}.jpg", 9 + number, (64, 64), **real)
    assert settings_for(scan(tmp_path, SMALL)).quality == quality


def test_the_choice_and_its_reason_are_logged_with_a_warning_about_enlarged_images(tmp_path, make_image, capsys):
    for number in range(30):
        make_image(tmp_path / "fake" / f"{number}.png", number, (100, 100))
        make_image(tmp_path / "real" / f"{number}.png", 50 + number, (40, 40) if number == 0 else (200, 200))
    assert settings_for(scan(tmp_path, SMALL)).side_px == 75
    said = capsys.readouterr().err
    assert "center square of every image at 75x75 pixels, as JPEG of quality 90" in said
    assert "nine in ten fake images have a short side of at least 100 pixels" in said
    assert "warning: 3.3% of the real images are smaller" in said


# The copy


@pytest.fixture
def originals(tmp_path, make_image):
    """Pictures of both classes in two sources and splits, in many formats, and a damaged one."""
    root = tmp_path / "originals"
    for number in range(3):
        make_image(root / f"train/fake/{number}.png", number, (64, 64))
        make_image(root / f"train/real/{number}.jpg", 10 + number, (90, 60))
        make_image(root / f"test/pexels/real/{number}.webp", 20 + number, (60, 90))
        make_image(root / f"test/pexels/fake/{number}.png", 30 + number, (64, 64))
    (root / "train/fake/broken.png").write_bytes(b"\x89PNG no more")
    (root / "train/fake/notes.txt").write_text("not an image")
    return root


def test_a_copy_keeps_the_layout_and_leaves_the_originals_alone(originals, tmp_path):
    before, dataset = hashes(originals), scan(originals, SMALL)
    copied = write_copy(dataset, tmp_path / "copy", SETTINGS)
    assert (copied.written, copied.kept) == (12, 0)
    assert hashes(originals) == before
    found = scan(tmp_path / "copy", SMALL)
    assert [(r.label, r.source, r.split, r.path.stem) for r in found.records] == [
        (r.label, r.source, r.split, r.path.stem) for r in dataset.records
    ]
    assert {path.suffix for path in (tmp_path / "copy").rglob("*.*")} == {".jpg", ".json"}


def test_all_files_of_a_copy_are_alike(originals, tmp_path):
    write_copy(scan(originals, SMALL), tmp_path / "copy", SETTINGS)
    found = image_metadata.read_all_file_facts([record.path for record in scan(tmp_path / "copy", SMALL).records])
    facts = {
        (f.format, f.extension, f.width_px, f.height_px, f.jpeg_table, f.subsampling, f.tags, f.mode) for f in found
    }
    assert len(facts) == 1
    assert not any(f.exif or f.icc or f.progressive for f in found)


def test_what_is_left_out_is_listed_with_the_reason(originals, tmp_path):
    dataset = scan(originals, SMALL)
    (originals / "train/real/1.jpg").unlink()
    copied = write_copy(dataset, tmp_path / "copy", SETTINGS)
    assert [(item.path.name, item.failed) for item in copied.skipped] == [
        ("broken.png", True),
        ("notes.txt", False),
        ("1.jpg", True),
    ]
    note = json.loads((tmp_path / "copy/neutralize.json").read_text())
    assert [item["path"] for item in note["skipped"]] == [
        "train/fake/broken.png",
        "train/fake/notes.txt",
        "train/real/1.jpg",
    ]
    assert note["settings"] == {"crop": "centre square", "side_px": 40, "quality": 90, "subsampling": "4:2:0"}
    assert note["complete"]
    lines = summary(dataset, copied)
    assert lines[0] == f"11 images in {tmp_path / 'copy'}: 40x40 pixels, JPEG quality 90, 4:2:0"
    assert [line.split(":")[0] for line in lines[1:]] == ["skipped 1"] * 3
    assert copied.incomplete


def test_names_that_differ_in_suffix_or_case_only_do_not_meet(tmp_path, make_image):
    names = ["a.png", "a.jpg", "A.jpeg", "a.png.jpg", "b.JPG", "b.bmp", "c.webp"]
    for number, name in enumerate(names):
        make_image(tmp_path / "in/fake" / name, number, (64, 64), format="PNG")
    make_image(tmp_path / "in/real/a.png", 99, (64, 64))
    dataset = scan(tmp_path / "in", SMALL)
    assert write_copy(dataset, tmp_path / "out", SETTINGS).written == 8
    found = {path.name for path in (tmp_path / "out/fake").iterdir()}
    assert {"a.jpg", "a.png.jpg", "c.jpg"} <= found
    assert len({name.casefold() for name in found}) == 7
    kept = Image.open(tmp_path / "out/fake/a.jpg")
    assert mean_difference(kept, decode(SETTINGS.encode(decode(tmp_path / "in/fake/a.jpg", 64)[0]), 40)[0]) == 0


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("settings", [SETTINGS, Neutral(200, 75)])
def test_a_copy_and_neutralizing_on_the_fly_give_the_same_arrays(originals, tmp_path, size, settings):
    dataset = scan(originals, SMALL)
    write_copy(dataset, tmp_path / "copy", settings)
    copies = scan(tmp_path / "copy", SMALL).records
    for record, copy in zip(dataset.records, copies, strict=True):
        on_the_fly = Preprocessing(size, settings).read(record.path)
        assert np.array_equal(on_the_fly, Preprocessing(size).read(copy.path)), record.path


def test_repeating_a_finished_run_changes_nothing(originals, tmp_path):
    dataset = scan(originals, SMALL)
    write_copy(dataset, tmp_path / "copy", SETTINGS)
    before = hashes(tmp_path / "copy")
    copied = write_copy(dataset, tmp_path / "copy", SETTINGS)
    assert (copied.written, copied.kept) == (0, 12)
    assert summary(dataset, copied)[0].startswith("12 images in")
    assert hashes(tmp_path / "copy") == before


KILLED_AFTER_SIX_FILES = """
import os, sys
from pathlib import Path
from fakereal.dataset import neutralize, scan
from fakereal.preprocessing import Neutral, Preprocessing

replaced = []
replace = Path.replace

def deadly(self, target):
    replaced.append(target)
    if len(replaced) > 6:
        os.kill(os.getpid(), 9)
    return replace(self, target)

Path.replace = deadly
dataset = scan.scan(Path(sys.argv[1]), Preprocessing(32))
neutralize.write_copy(dataset, Path(sys.argv[2]), Neutral(40, 90))
"""


def test_a_killed_run_resumes_when_it_is_repeated(originals, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "-c", KILLED_AFTER_SIX_FILES, str(originals), str(out)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9
    assert list(out.rglob(".*.part")), "the kill left nothing torn"
    assert not json.loads((out / "neutralize.json").read_text())["complete"]
    dataset = scan(originals, SMALL)
    copied = write_copy(dataset, out, SETTINGS)
    assert (copied.written + copied.kept, copied.kept >= 4) == (12, True)
    write_copy(dataset, whole, SETTINGS)
    assert hashes(out) == hashes(whole)


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(originals, tmp_path, make_image):
    dataset = scan(originals, SMALL)
    make_image(tmp_path / "album/1.jpg")
    with pytest.raises(DataError, match="the folder already contains other files: choose another"):
        write_copy(dataset, tmp_path / "album", SETTINGS)
    assert [path.name for path in (tmp_path / "album").iterdir()] == ["1.jpg"]
    (tmp_path / "album/neutralize.json").write_text("[]")
    with pytest.raises(DataError, match="contains other files"):
        write_copy(dataset, tmp_path / "album", SETTINGS)
    with pytest.raises(DataError, match="expected a folder, got a file"):
        write_copy(dataset, tmp_path / "album/1.jpg", SETTINGS)


def test_a_copy_of_other_images_or_with_other_settings_is_not_resumed(originals, tmp_path, make_image):
    write_copy(scan(originals, SMALL), tmp_path / "copy", SETTINGS)
    before = hashes(tmp_path / "copy")
    with pytest.raises(DataError, match="a copy of other images or with other settings"):
        write_copy(scan(originals, SMALL), tmp_path / "copy", Neutral(40, 91))
    make_image(originals / "train/fake/new.png", 77)
    with pytest.raises(DataError, match="a copy of other images or with other settings"):
        write_copy(scan(originals, SMALL), tmp_path / "copy", SETTINGS)
    assert hashes(tmp_path / "copy") == before


def test_a_foreign_file_at_a_images_place_is_never_overwritten(originals, tmp_path):
    dataset = scan(originals, SMALL)
    write_copy(dataset, tmp_path / "copy", SETTINGS)
    shutil.copy(originals / "train/real/0.jpg", tmp_path / "copy/train/real/0.jpg")
    copied = write_copy(dataset, tmp_path / "copy", SETTINGS)
    assert [item.path.name for item in copied.skipped if "another file" in item.reason] == ["0.jpg"]
    assert hashes(tmp_path / "copy")["train/real/0.jpg"] == hashes(originals)["train/real/0.jpg"]


@pytest.mark.parametrize("place", ["originals", "originals/neutral", "originals/train/../new", "."])
def test_a_copy_inside_or_around_the_originals_is_refused(originals, tmp_path, place):
    before = hashes(originals)
    with pytest.raises(DataError, match="expected a folder outside of"):
        write_copy(scan(originals, SMALL), tmp_path / place, SETTINGS)
    assert hashes(originals) == before
    assert not (originals / "neutral").exists()


# Training


def test_training_fills_in_the_size_and_keeps_it_in_the_preprocessing(originals):
    dataset = scan(originals, SMALL)
    wanted = configuration.load(None, {"neutralize.enabled": True})
    config = resolve_neutral_settings(wanted, dataset)
    assert preprocessing_of(config, 64) == Preprocessing(64, Neutral(45, 75))
    for key, value in (("side_px", 50), ("quality", 80)):
        given = resolve_neutral_settings(
            configuration.load(None, {"neutralize.enabled": True, f"neutralize.{key}": value}), dataset
        )
        assert asdict(given.neutralize) == {**asdict(config.neutralize), key: value}
    assert resolve_neutral_settings(config, dataset) == config
    assert configuration.from_dict(configuration.as_dict(config), "here") == config
    plain = configuration.load(None)
    assert resolve_neutral_settings(plain, dataset) == plain
    assert preprocessing_of(plain, 64) == Preprocessing(64)


@pytest.mark.parametrize(("key", "value"), [("side_px", 7), ("side_px", 5000), ("quality", 0), ("quality", 101)])
def test_neutral_settings_out_of_range_are_refused(key, value):
    with pytest.raises(ConfigError, match=key):
        configuration.load(None, {f"neutralize.{key}": value})


def test_training_sees_the_neutral_array_that_prediction_sees(originals):
    from fakereal.config import AugmentationConfig
    from fakereal.training.input_pipeline import plain_batches, training_array

    still = AugmentationConfig(horizontal_flip=False, rotation_degrees=0.0)
    record, reader = scan(originals, SMALL).records[0], Preprocessing(64, SETTINGS)
    expected = reader.read(record.path)
    assert not np.array_equal(expected, Preprocessing(64).read(record.path))
    assert np.array_equal(training_array(record, reader, still, np.random.default_rng(0)), expected)
    ((images, _),) = plain_batches([record], reader, 4).as_numpy_iterator()
    assert np.array_equal(images[0].astype(np.uint8), expected)


@pytest.mark.slow
def test_a_model_that_was_trained_neutral_predicts_neutral_and_says_so(make_folder, tmp_path):
    folder = make_folder({"fake": 20, "real": 20})
    output = tmp_path / "model.h5"
    train = "--neutralize --network cnn --weights none --fine-tune all --image-size 32 --epochs 1".split()
    data = ["--data", str(folder), "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "train_model.py", *train, *data], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "center square of every image at 28x28 pixels, as JPEG of quality 90" in done.stderr
    assert configuration.load(tmp_path / "model_run/config.yaml").neutralize.side_px == 28
    from fakereal.model import model_file
    from fakereal.predict.inputs import list_images
    from fakereal.predict.pipeline import predict_batches

    detector = model_file.load(output)
    reader = detector.metadata.preprocessing
    assert reader == Preprocessing(32, Neutral(28, 90))
    results = predict_batches(list_images(folder / "fake").items, detector, reader, 20)
    arrays = np.stack([Preprocessing(32, Neutral(28, 90)).read(folder / f"fake/{n}.png") for n in range(1, 21)])
    assert [result.p_real for result in results] == pytest.approx(detector.p_real(arrays), abs=1e-6)
