from __future__ import annotations

import pytest
from heic_images import ROTATED
from PIL import Image

from fakereal.dataset import image_metadata


def test_facts_come_from_the_header(make_image, tmp_path):
    exif = Image.Exif()
    exif[0x0110] = "camera"
    path = make_image(
        tmp_path / "IMG_0012 (3).jpeg", size=(64, 48), quality=75, subsampling=0, exif=exif, progressive=True
    )
    found = image_metadata.read_file_facts(path)
    assert (found.format, found.extension, found.width_px, found.height_px) == ("JPEG", ".jpeg", 64, 48)
    assert (found.jpeg_quality, found.subsampling) == (75, "4:4:4")
    assert (found.exif, found.icc, found.progressive) == (True, False, True)
    assert found.name_pattern == "a_4 (1)"
    assert found.file_bytes == path.stat().st_size


def test_facts_of_heic_are_its_own_and_not_the_decoders(tmp_path):
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(ROTATED)
    found = image_metadata.read_file_facts(path)
    assert (found.format, found.extension, found.width_px, found.height_px) == ("HEIF", ".heic", 48, 36)
    assert (found.exif, found.frames, found.tags) == (True, 1, "")
    assert image_metadata.measure_all_pixels([path])[0].brightness > 0


@pytest.mark.parametrize("quality", [5, 30, 50, 75, 90, 95, 100])
def test_the_quality_of_a_jpeg_is_read_from_its_table(make_image, tmp_path, quality):
    assert image_metadata.read_file_facts(make_image(tmp_path / "1.jpg", quality=quality)).jpeg_quality == quality
