import json
import os
import re
from pathlib import Path

import damaged_copies
import numpy as np
import pytest
from PIL import Image, features
from prediction_sets import predict

from fakereal.model.calibration import DecisionRule
from fakereal.predict.inputs import list_images
from fakereal.predict.results import details_of, save
from fakereal.preprocessing import Preprocessing

OUR_REASONS = (
    "expected ",
    "the file ",
    "the image ",
    "the image's header ",
    "not an image of these formats",
    "not a regular file",
)
NAMED = re.compile(", not an image|, a format that is not read")  # for what it is, see test_file_types.py
pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


class Fingerprint:
    """A network whose output depends on every pixel."""

    def p_real(self, images):
        weights = np.random.default_rng(0).random(images.shape[1:])
        return np.array([(image * weights).sum() / (255 * weights.sum()) for image in images])


def pictures(folder: Path) -> list[Path]:
    """Saves images of many formats, modes and sizes; smooth in one half, noise in the other."""
    folder.mkdir()
    chance, paths = np.random.default_rng(1), []
    modes = {"jpg": "RGB L CMYK", "png": "RGB RGBA LA L P 1 I;16", "gif": "P", "bmp": "RGB L", "webp": "RGB RGBA"}
    modes |= {"tiff": "RGB RGBA I;16 CMYK"} | ({"avif": "RGB"} if features.check("avif") else {})
    for suffix, names in modes.items():
        for mode in names.split():
            pixels = np.linspace(0, 255, 60 * 90 * 3).reshape(60, 90, 3).astype(np.uint8)
            pixels[:, 45:] = chance.integers(0, 256, (60, 45, 3))
            image = Image.fromarray(pixels)
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
            paths.append(folder / f"mode-{mode.replace(';', '')}.{suffix}")
            image.save(paths[-1])
    image.convert("RGB").save(folder / "progressive.jpg", progressive=True)
    Image.fromarray(pixels).save(folder / "lzw.tiff", compression="tiff_lzw")
    return [*paths, folder / "progressive.jpg", folder / "lzw.tiff"]


def rows_of(folder: Path, batch_size: int) -> list[dict]:
    results = predict(list_images(folder), Fingerprint(), Preprocessing(32), DecisionRule(), batch_size)
    save(results, folder.parent / "p.json", folder.parent / "d.json")
    return [details_of(result) for result in results]


def assert_each_is_in_its_place(folder: Path, count: int) -> None:
    rows = rows_of(folder, batch_size=32)
    entries = json.loads((folder.parent / "p.json").read_text())
    assert [entry["index"] for entry in entries] == list(range(1, count + 1))
    for entry, row in zip(entries, rows, strict=True):
        assert entry["prediction"] in (("fake", "real") if row["error"] is None else (None,))
        assert (row["error"] is None) == (row["p_real"] is not None) == (row["width"] is not None)
        assert row["error"] is None or row["error"].startswith(OUR_REASONS) or NAMED.search(row["error"])
    written = (folder.parent / "p.json").read_bytes(), (folder.parent / "d.json").read_bytes()
    assert rows_of(folder, batch_size=7) == rows  # no address in a reason, no other neighbour's answer
    assert written == ((folder.parent / "p.json").read_bytes(), (folder.parent / "d.json").read_bytes())


def test_damaged_copies_keep_their_places_with_a_reason_or_a_prediction(tmp_path):
    damages = damaged_copies.make(pictures(tmp_path / "sound"), tmp_path / "in", count=150, seed=3)
    assert len(set(damages.values())) > 10
    assert_each_is_in_its_place(tmp_path / "in", 150)


@pytest.mark.slow
def test_two_thousand_damaged_copies_keep_their_places(tmp_path):
    damaged_copies.make(pictures(tmp_path / "sound"), tmp_path / "in", count=2000, seed=0)
    assert_each_is_in_its_place(tmp_path / "in", 2000)


def test_sound_images_among_damaged_ones_are_predicted_as_if_alone(tmp_path):
    sound = pictures(tmp_path / "sound")
    alone = {row["image"]: row for row in rows_of(tmp_path / "sound", batch_size=8)}
    damaged_copies.make(sound, tmp_path / "in", count=60, seed=4)
    for path in sound:
        path.rename(tmp_path / "in" / path.name)
    among = {row["image"]: row for row in rows_of(tmp_path / "in", batch_size=8)}
    assert all(row["error"] is None for row in alone.values())
    assert {name: among[name] for name in alone} == alone
