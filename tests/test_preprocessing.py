from __future__ import annotations

import io
import os
import struct
import time
import zlib

import numpy as np
import pytest
from heic_images import PLAIN, ROTATED, TEN_BITS
from PIL import Image

from fakereal import decoding, preprocessing
from fakereal.decoding import SUFFIXES, decode
from fakereal.errors import ConfigError, ImageRefused, ModelFileError
from fakereal.preprocessing import Preprocessing, resize

SMALL = Preprocessing(32)
LOSSLESS = {"lossless": True}


def gradient(width=48, height=36):
    """A smooth RGB picture in which every corner has another colour."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray(np.stack([255 * x, 255 * y, 255 * (1 - x)], axis=-1).round().astype(np.uint8))


def textured(width, height):
    """A picture with detail of several pixels, and a gradient."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (7 + 3 * c)) * np.cos(y / (11 + 2 * c)) * 80 + 128 + x * 40 / width for c in range(3)]
    return Image.fromarray(np.clip(np.stack(waves, axis=-1), 0, 255).astype(np.uint8))


def encoded(image, format, **options):
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def refused(source, size=224):
    with pytest.raises(ImageRefused) as caught:
        decode(source, size)
    assert "\n" not in str(caught.value)
    return caught.value


def difference(first, second):
    """The largest difference of two pictures, in gray levels."""
    return int(np.abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int)).max())


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"compression": "tiff_adobe_deflate"}, 0),
        ("WEBP", LOSSLESS, 0),
        ("WEBP", {"quality": 95}, 12),
        ("JPEG", {"quality": 95, "subsampling": 0}, 6),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 6),
        ("AVIF", {"quality": 95}, 12),
        ("GIF", {}, 40),
    ],
)
def test_every_format_gives_the_same_picture(format, options, tolerance):
    image, info = decode(encoded(gradient(), format, **options), 224)
    assert (info.width_px, info.height_px, info.format) == (48, 36, format)
    assert image.mode == "RGB"
    assert difference(image, gradient()) <= tolerance


@pytest.mark.parametrize("content", [PLAIN, ROTATED, TEN_BITS], ids=["plain", "rotated", "10 bits"])
def test_heic_gives_the_same_upright_picture(content):
    image, info = decode(content, 224)
    assert (image.mode, image.size, info) == ("RGB", (48, 36), decoding.ImageInfo(48, 36, "HEIF"))
    assert difference(image, gradient()) <= 8


@pytest.mark.parametrize("quarters", range(4))
def test_the_rotation_of_heic_is_applied_once(quarters):
    place = ROTATED.index(b"irot") + 4
    turned = ROTATED[:place] + bytes([quarters]) + ROTATED[place + 1 :]
    image, _ = decode(turned, 224)
    expected = np.rot90(np.asarray(gradient()), quarters - ROTATED[place])  # both count counterclockwise
    assert difference(image, expected) <= 8


def test_heic_that_is_cut_off_or_lies_about_its_size_is_refused_before_it_fills_the_memory():
    assert refused(PLAIN[:-100]).reason == "truncated"
    assert refused(PLAIN[:40]).reason == "unreadable"
    place = PLAIN.index(b"ispe") + 8
    for side, reason in ((9_000, "unreadable"), (60_000, "too_large"), (2**31, "too_large")):
        lie = PLAIN[:place] + struct.pack(">II", side, side) + PLAIN[place + 8 :]
        start = time.monotonic()
        assert refused(lie).reason == reason
        assert time.monotonic() - start < 5


def test_a_heic_item_whose_type_is_no_text_is_refused():
    damaged = ROTATED.replace(b"Exif\0", b"Ex\xe9f\0", 1)  # pi_heif itself would end the whole process here
    assert refused(damaged).reason == "unreadable"


def test_damaged_heic_is_refused_or_read_and_never_ends_the_process():
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(600):
        damaged = bytearray(ROTATED)
        for place in rng.integers(0, len(damaged), size=4):
            damaged[place] = rng.integers(0, 256)
        outcomes.add(outcome(bytes(damaged)))
    assert {"unreadable", (48, 36)} <= outcomes


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_content_decides_whatever_the_name_says(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(encoded(gradient(), "PNG"))
    assert difference(SMALL.read(path), resize(gradient(), 32)) == 0


def test_a_path_and_its_bytes_give_the_same_array(tmp_path):
    path = tmp_path / "1.jpg"
    path.write_bytes(encoded(gradient(), "JPEG"))
    from_path, info = SMALL.read_with_info(path)
    assert difference(from_path, SMALL.read(path.read_bytes())) == 0
    assert info == decoding.ImageInfo(48, 36, "JPEG")


def test_the_array_is_uint8_and_of_the_size_that_was_asked_for():
    for size in (32, 64, 224):
        array = Preprocessing(size).read(encoded(gradient(), "PNG"))
        assert (array.shape, array.dtype) == ((size, size, 3), np.uint8)


def test_a_picture_of_the_right_size_is_not_touched():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert difference(SMALL.read(encoded(Image.fromarray(noise), "PNG")), noise) == 0


def test_shrinking_is_antialiased():
    stripes = np.zeros((320, 320, 3), np.uint8)
    stripes[:, ::2] = 255
    assert difference(SMALL.read(encoded(Image.fromarray(stripes), "PNG")), np.full((32, 32, 3), 127)) <= 5


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_modes_without_transparency_keep_their_colours(mode):
    image = gradient().convert(mode)
    assert difference(decode(encoded(image, "PNG"), 224)[0], image.convert("RGB")) == 0


def test_cmyk_is_converted():
    image = gradient().convert("CMYK")
    for format in ("JPEG", "TIFF"):
        assert difference(decode(encoded(image, format), 224)[0], image.convert("RGB")) <= 24


@pytest.mark.parametrize(("mode", "format"), [("RGBA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF"), ("LA", "PNG")])
def test_transparency_lies_over_white(mode, format):
    image = gradient().convert(mode)
    image.putalpha(Image.fromarray(np.repeat([[0, 128, 255]], 36, axis=0).repeat(16, axis=1).astype(np.uint8)))
    found = np.asarray(decode(encoded(image, format, **(LOSSLESS if format == "WEBP" else {})), 224)[0], dtype=int)
    opaque = np.asarray(gradient().convert(mode[:-1] if mode == "LA" else "RGB").convert("RGB"), dtype=int)
    assert (found[:, :16] == 255).all()
    assert np.abs(found[:, 16:32] - (opaque[:, 16:32] + 255) / 2).max() <= 2
    assert (found[:, 32:] == opaque[:, 32:]).all()


def test_a_transparent_palette_entry_and_a_transparent_colour_are_white():
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    plain = Image.new("RGB", (8, 8), (10, 20, 30))
    for image, transparency in ((palette, 1), (plain, (10, 20, 30))):
        content = encoded(image, "PNG", transparency=transparency)
        assert (np.asarray(decode(content, 224)[0]) == 255).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_not_clipped(format):
    gray = np.linspace(0, 65535, 64 * 4).astype(np.uint16).reshape(4, 64)
    found = np.asarray(decode(encoded(Image.fromarray(gray), format), 224)[0], dtype=int)
    assert np.abs(found - (gray / 257)[:, :, None]).max() <= 0.51
    assert (found[..., 0] == found[..., 2]).all()


def test_32_bit_gray_is_unsupported():
    for content in (np.zeros((4, 4), np.float32), np.zeros((4, 4), np.int32)):
        error = refused(encoded(Image.fromarray(content), "TIFF"))
        assert error.reason == "unsupported"
        assert "8 or 16 bits" in str(error)


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP", "PNG", "AVIF"])
def test_the_first_of_many_frames_counts(format):
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    content = encoded(red, format, save_all=True, append_images=[blue, blue])
    assert difference(decode(content, 224)[0], red) <= 3


def test_the_first_picture_of_a_stereo_jpeg_counts():
    image, info = decode(encoded(gradient(), "MPO", save_all=True, append_images=[Image.new("RGB", (48, 36))]), 224)
    assert info.format == "JPEG"
    assert difference(image, gradient()) < 40


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format, orientation):
    stored = {
        1: lambda array: array,
        2: lambda array: array[:, ::-1],
        3: lambda array: array[::-1, ::-1],
        4: lambda array: array[::-1],
        5: lambda array: array.swapaxes(0, 1),
        6: lambda array: np.rot90(array),
        7: lambda array: array[::-1, ::-1].swapaxes(0, 1),
        8: lambda array: np.rot90(array, 3),
    }[orientation](np.asarray(gradient()))
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"quality": 95} if format in ("JPEG", "WEBP", "AVIF") else {}
    content = encoded(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif, **options)
    image, _ = decode(content, 224)
    assert image.size == (48, 36)
    assert difference(image, gradient()) <= 24


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_corrupt_exif_does_not_refuse_a_sound_picture(format):
    exif = Image.Exif()
    exif[0x112], exif[0x10F] = 6, "maker"
    sound = exif.tobytes()
    rng = np.random.default_rng(0)
    blocks = [b"Exif\0\0garbage", b"Exif\0\0", sound[:-9], sound[:20]]
    for _ in range(300):
        block = bytearray(sound)
        for place in rng.integers(6, len(block), size=4):
            block[place] = rng.integers(0, 256)
        blocks.append(bytes(block))
    pixels = np.asarray(decode(encoded(gradient(), format), 224)[0])
    for block in blocks:
        found = np.asarray(decode(encoded(gradient(), format, exif=block), 224)[0])
        assert sorted(found.shape) == sorted(pixels.shape)
        assert found.sum() == pixels.sum()


def test_a_large_jpeg_is_decoded_small_and_stays_close():
    content = encoded(gradient(3200, 2400), "JPEG", quality=90)
    image, info = decode(content, 224)
    assert image.size == (800, 600)
    assert (info.width_px, info.height_px) == (3200, 2400)
    whole = resize(Image.open(io.BytesIO(content)).convert("RGB"), 224)
    assert difference(resize(image, 224), whole) <= 4


def test_drafting_leaves_at_least_twice_the_size_that_is_needed():
    for side in (400, 448, 449, 900, 1800, 5000):
        image, _ = decode(encoded(Image.new("RGB", (side, side)), "JPEG"), 224)
        assert min(image.size) >= min(side, 448)


def test_a_rotated_large_jpeg_is_upright_and_close():
    exif = Image.Exif()
    exif[0x112] = 6
    stored = gradient(1600, 1200).transpose(Image.Transpose.ROTATE_90)
    image, _ = decode(encoded(stored, "JPEG", exif=exif, quality=90), 224)
    assert difference(resize(image, 224), resize(gradient(1600, 1200), 224)) <= 4


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "1.png").touch()
    assert refused(tmp_path / "1.png").reason == "empty"
    assert refused(b"").reason == "empty"


def test_a_missing_file_is_refused(tmp_path):
    assert refused(tmp_path / "1.png").reason == "missing"


def test_a_folder_a_pipe_and_a_device_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path, tmp_path / "pipe.png", "/dev/zero"):
        assert refused(preprocessing.Path(path)).reason == "unreadable"


def test_a_file_that_is_too_big_is_refused_unread(tmp_path):
    with (tmp_path / "1.tif").open("wb") as file:
        file.truncate(decoding.MAX_FILE_BYTES + 1)
    error = refused(tmp_path / "1.tif")
    assert error.reason == "too_large"
    assert "256 MB" in str(error)


@pytest.mark.parametrize("content", [b"\0", b"<html>", b"%PDF-1.7 ...", b"RIFF\0\0\0\0WAVEfmt ", os.urandom(999)])
def test_what_is_no_image_is_refused(content):
    assert refused(content).reason == "not_an_image"


def test_formats_beyond_ours_are_refused():
    for format in ("PPM", "ICO", "EPS", "JPEG2000"):
        assert refused(encoded(gradient(), format)).reason == "unsupported"
    for format in ("TGA", "PCX"):  # without a signature of their own
        assert refused(encoded(gradient(), format)).reason == "not_an_image"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "GIF", "BMP"])
def test_a_truncated_file_is_refused_with_a_reason(format):
    content = encoded(gradient(), format)
    assert refused(content[: len(content) * 2 // 3]).reason == "truncated"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP", "AVIF"])
def test_a_file_cut_anywhere_is_refused_or_read_but_never_crashes(format):
    content = encoded(gradient(), format)
    outcomes = {outcome(content[:length]) for length in range(1, len(content), max(1, len(content) // 60))}
    assert outcomes <= {"truncated", "not_an_image", "unreadable", (48, 36)}


def outcome(content):
    """The reason of the refusal, or the size of the picture."""
    try:
        return decode(content, 224)[0].size
    except ImageRefused as error:
        return error.reason


def test_a_cut_header_is_not_called_no_image():
    for format, length in (("JPEG", 40), ("PNG", 20), ("WEBP", 40)):
        assert refused(encoded(gradient(), format)[:length]).reason in ("truncated", "unreadable")


def png_of(width, height, data=b""):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded():
    content = png_of(50_000, 50_000)
    started = time.process_time()
    error = refused(content)
    assert error.reason == "too_large"
    assert "found 2500 (50000x50000)" in str(error)
    assert time.process_time() - started < 0.5


def test_the_pixel_limit_itself_is_allowed(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 48 * 36)
    decode(encoded(gradient(), "PNG"), 224)
    assert refused(encoded(gradient(49, 36), "PNG")).reason == "too_large"


def progressive_with_scans(count):
    content = encoded(gradient(), "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + scan * count + content[-2:]


def test_a_jpeg_of_thousands_of_scans_is_refused_at_once():
    decode(progressive_with_scans(20), 224)
    content = progressive_with_scans(5000)
    started = time.process_time()
    assert refused(content).reason == "too_large"
    assert time.process_time() - started < 0.5


def test_what_only_looks_like_scans_behind_a_jpeg_does_not_refuse_it():
    content = encoded(gradient(), "JPEG")
    assert decode(content + b"\xff\xda video" * 5000, 224)[0].size == (48, 36)


def test_a_png_with_a_text_bomb_does_not_fill_the_memory():
    bomb = zlib.compress(b"\0" * 200_000_000, 9)
    text = b"zTXt" + b"note\0\0" + bomb
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    content = encoded(gradient(), "PNG")
    assert refused(content[:33] + chunk + content[33:]).reason == "unreadable"


def test_image_sizes_outside_the_sensible_are_refused():
    for size in (0, 31, 1025):
        with pytest.raises(ConfigError, match="expected 32 to 1024"):
            Preprocessing(size)


def test_a_fingerprint_brings_the_preprocessing_back():
    for size in (32, 224):
        assert Preprocessing.from_fingerprint(Preprocessing(size).fingerprint) == Preprocessing(size)
    assert Preprocessing(32).fingerprint != Preprocessing(33).fingerprint


@pytest.mark.parametrize(
    "fingerprint", ["", "fakereal-preprocessing/2 size=224", Preprocessing().fingerprint.replace("/2", "/99")]
)
def test_a_fingerprint_of_another_preprocessing_is_refused(fingerprint):
    with pytest.raises(ModelFileError, match="train it again"):
        Preprocessing.from_fingerprint(fingerprint)


def test_the_arrays_are_those_of_the_fingerprints_version():
    """Fails when a change moves a pixel: raise `_VERSION` in preprocessing.py, and put the new sums here."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    assert [int(Preprocessing(size).read(encoded(noise, "PNG")).sum()) for size in (32, 64, 224)] == [
        391686,
        1566979,
        19195181,
    ]


@pytest.mark.parametrize("size", [(1793, 1201), (3001, 2203), (4000, 3000), (897, 640), (300, 200)])
@pytest.mark.parametrize(("crops", "twice_px"), [(0, 128), (1, 1024)])
def test_a_model_of_version_1_keeps_its_pixels(size, crops, twice_px):
    older = Preprocessing.from_fingerprint(
        "fakereal-preprocessing/1 size=64 resize=bicubic fit=square alpha=white exif=upright"
        + f" crops={crops}" * bool(crops)
    )
    assert older == Preprocessing(64, square=True, crops=crops, version=1)
    assert older.fingerprint != Preprocessing(64, square=True, crops=crops).fingerprint
    content = encoded(textured(*size), "JPEG", quality=90)
    with Image.open(io.BytesIO(content)) as expected:
        expected.draft(None, (twice_px, twice_px))  # what version 1 has always done
        assert difference(older.decode(content)[0], expected) == 0


@pytest.mark.parametrize("size", [(257, 257), (389, 261), (1031, 521)])
def test_a_jpeg_decoded_at_a_reduced_scale_is_not_stretched_against_its_png(size):
    image = textured(*size)
    jpeg, png = encoded(image, "JPEG", quality=95, subsampling=0), encoded(image, "PNG")
    assert min(Preprocessing(32).decode(jpeg)[0].size) < min(size), "it must be one that is reduced"
    now, before = (
        np.abs(each.read(jpeg).astype(int) - each.read(png)).mean()
        for each in (Preprocessing(32), Preprocessing(32, version=1))
    )
    assert now < before / 2


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((1800, 1200), (1800, 1200)),
        ((1844, 1200), (1024, 666)),
        ((3000, 2000), (1024, 683)),
        ((4000, 3000), (1024, 768)),
    ],
)
def test_a_large_jpeg_for_crops_is_decoded_at_the_smallest_scale_that_covers_them(size, decoded, turned):
    exif = Image.Exif()
    exif[0x112] = 6 if turned else 1
    content = encoded(textured(*size), "JPEG", quality=90, exif=exif)
    image, info = Preprocessing(160, square=True, crops=1).decode(content)
    assert image.size == (decoded[::-1] if turned else decoded)
    assert (info.width_px, info.height_px) == size


def test_the_crops_of_a_large_jpeg_are_close_to_those_of_its_png():
    image, reader = textured(1999, 1501), Preprocessing(160, square=True, crops=2)
    jpeg, png = encoded(image, "JPEG", quality=95, subsampling=0), encoded(image, "PNG")
    assert reader.decode(jpeg)[0].size == (1024, 769)
    views = zip(*(reader.views(reader.decode(content)[0]) for content in (jpeg, png)), strict=True)
    assert [np.abs(a.astype(int) - b).mean() < 2 for a, b in views] == [True] * 3


# views


def test_the_center_square_keeps_the_aspect_ratio():
    wide = gradient(96, 48)
    squared = Preprocessing(32, square=True).array(wide)
    assert difference(squared, resize(wide.crop((24, 0, 72, 48)), 32)) == 0
    assert difference(squared, Preprocessing(32).array(wide)) > 10


def test_crops_are_native_pixels_beside_the_whole_image():
    image = gradient(100, 80)
    whole, center, top_left = Preprocessing(32, square=True, crops=2).views(image)
    assert difference(whole, Preprocessing(32, square=True).array(image)) == 0
    assert difference(center, np.array(image.crop((34, 24, 66, 56)))) == 0
    assert difference(top_left, np.array(image.crop((14, 10, 46, 42)))) == 0


@pytest.mark.parametrize("size", [(31, 200), (32, 32), (20, 20)])
def test_an_image_without_room_for_crops_has_the_whole_view_only(size):
    assert len(Preprocessing(32, crops=3).views(gradient(*size))) == 1


def test_crops_of_large_images_are_cut_after_reducing_them():
    reduced = Preprocessing(224, square=True, crops=1).views(gradient(2048, 1024))[1]
    assert difference(reduced, Preprocessing(224, square=True, crops=1).views(gradient(1024, 512))[1]) <= 2


@pytest.mark.parametrize("options", [{"square": True}, {"crops": 3}, {"square": True, "crops": 5}])
def test_the_fingerprint_holds_the_views(options):
    preprocessing = Preprocessing(64, **options)
    assert Preprocessing.from_fingerprint(preprocessing.fingerprint) == preprocessing
    assert preprocessing.fingerprint != Preprocessing(64).fingerprint


@pytest.mark.parametrize("crops", [-1, 6])
def test_an_impossible_number_of_crops_is_refused(crops):
    with pytest.raises(ConfigError, match="crops: expected 0 to 5"):
        Preprocessing(64, crops=crops)
