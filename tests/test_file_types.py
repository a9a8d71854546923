"""Files that are taken for images, each named for what it is."""

import codecs
import io
import json
import struct

import pytest
from heic_images import PLAIN
from PIL import Image

from fakereal import file_types
from fakereal.decoding import decode
from fakereal.errors import ImageRefused

NOT_READ = "a format that is not read: convert it to PNG or JPEG"
EXPORT = "a format that is not read: export it as JPEG or TIFF"
FAILED = "not an image: the download probably failed"
FRAME = "not an image: save the frame that counts"
FILES = [
    (b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>", f"HTML page, {FAILED}"),
    (b"\xef\xbb\xbf\n <!-- cached -->\n<HTML lang='en'>", f"HTML page, {FAILED}"),
    (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', f"XML text, {FAILED}"),
    (b'{"message": "rate limit exceeded"}', f"JSON text, {FAILED}"),
    (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "Git LFS pointer, not an image: fetch the file itself with `git lfs pull`",
    ),
    (b"\xff\x0a\xfa\x7f\x01\x90\x08\x06", f"JPEG XL image, {NOT_READ}"),
    (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ", f"JPEG XL image, {NOT_READ}"),
    (b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ", f"JPEG 2000 image, {NOT_READ}"),
    (b"\xff\x4f\xff\x51\0\x2f\0\0", f"JPEG 2000 image, {NOT_READ}"),
    (b"8BPS\0\x01\0\0\0\0\0\0\0\x03", f"Photoshop document, {NOT_READ}"),
    (b'<svg xmlns="http://www.w3.org/2000/svg"/>', f"SVG drawing, {NOT_READ}"),
    (b'<?xml version="1.0"?>\n<!-- by hand -->\n<svg width="9">', f"SVG drawing, {NOT_READ}"),
    (b"%PDF-1.7\n%\xe2\xe3", "PDF document, not an image: export its images"),
    (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", f"MP4 video, {FRAME}"),
    (b"\0\0\0\x14ftypqt  \0\0\2\0qt  ", f"QuickTime video, {FRAME}"),
    (b"\0\0\0\x08wide\0\0\x10\0mdat", f"QuickTime video, {FRAME}"),
    (b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\x82\x84webm", f"WebM video, {FRAME}"),
    (b"\x1a\x45\xdf\xa3\xa3B\x86\x81\x01B\x82\x88matroska", f"Matroska video, {FRAME}"),
    (b"II*\0\x10\0\0\0CR\x02\0", f"CR2 RAW photo, {EXPORT}"),
    (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", f"CR3 RAW photo, {EXPORT}"),
    (b"FUJIFILMCCD-RAW 0201", f"RAF RAW photo, {EXPORT}"),
    (b"PK\x03\x04\x14\0", "zip archive, not an image: unpack it"),
    (b"\0\x05\x16\x07\0\x02\0\0", "macOS metadata (AppleDouble), not an image: the image itself has the same name"),
    (b"/9j/4AAQSkZJRgABAQ", "base64 text, not an image: decode it to the image's bytes"),
    (bytes(5000), "zero bytes, not an image: the copy or download was probably interrupted"),
    ("Größe: klein\n".encode(), "text, not an image"),
    ("é".encode() * 3000, "text, not an image"),
    (codecs.BOM_UTF16_LE + "notes".encode("utf-16-le"), "text, not an image"),
    (bytes(range(1, 256)), "not an image of these formats: JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, HEIF"),
    (b"", "the file is empty"),
]


@pytest.mark.parametrize(("data", "reason"), FILES, ids=[reason.partition(",")[0] for _, reason in FILES])
def test_what_is_no_readable_image_is_named_for_what_it_is_in_one_short_line(data, reason):
    with pytest.raises(ImageRefused) as caught:
        decode(data, 224)
    assert str(caught.value).startswith(reason)
    assert len(str(caught.value)) < 110
    assert "\n" not in str(caught.value)


def tiff(**tags) -> bytes:
    """A small TIFF file, readable by itself, with tags by their numbers."""
    info, file = Image.Exif(), io.BytesIO()
    for number, value in tags.items():
        info[int(number.removeprefix("t"))] = value
    Image.new("RGB", (16, 12), "red").save(file, "TIFF", tiffinfo=info)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (tiff(t50706=b"\x01\x04\0\0"), "DNG"),
        (tiff(t254=1, t271="NIKON CORPORATION"), "NEF"),
        (tiff(t254=1, t271="SONY"), "ARW"),
        (tiff(t254=1, t271="Other"), "TIFF"),
    ],
)
def test_a_raw_photo_is_never_judged_by_the_preview_that_it_begins_with(data, name):
    with pytest.raises(ImageRefused, match=f"{name} RAW photo, {EXPORT}") as caught:
        decode(data, 224)
    assert caught.value.reason == "unsupported"


def test_an_ordinary_tiff_of_the_same_camera_is_read():
    assert decode(tiff(t271="NIKON CORPORATION"), 224)[0].size == (16, 12)


def test_the_formats_that_are_read_are_recognized_whatever_follows(make_image, tmp_path):
    for suffix in (".jpg", ".png", ".webp", ".bmp", ".gif", ".tiff", ".avif"):
        head = make_image(tmp_path / f"1{suffix}").read_bytes()[:64]
        found = file_types.recognize(head)
        assert found is not None, suffix
        assert found.is_read, suffix
    assert file_types.recognize(PLAIN).is_read


def test_avif_and_heic_are_told_apart_by_their_brands(make_image, tmp_path):
    avif = make_image(tmp_path / "1.avif").read_bytes()
    assert file_types.image_format(avif) == "AVIF"
    assert file_types.image_format(PLAIN) == "HEIF"
    for data, name in ((avif, "AVIF"), (PLAIN, "HEIF")):
        general = data[:8] + b"mif1" + data[12:]  # the brand of both
        assert file_types.image_format(general) == name
        assert decode(general, 224)[1].format == name


def test_text_and_numbers_are_no_images_by_content():
    for data in (
        json.dumps([1, 2]).encode(),
        b"BM is short for bitmap, a format of 1990",
        b"P1 is a place",
        struct.pack("<8I", *range(8)),
    ):
        assert not file_types.begins_like_image(data)
