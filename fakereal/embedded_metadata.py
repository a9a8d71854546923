"""Find the metadata blocks of an image file: text chunks, EXIF, XMP, IPTC and C2PA, without decoding its pixels.

Written for hostile files. Every walk is bounded in steps and in bytes, nothing is inflated beyond a limit, and XMP is
handed on as text that nobody parses as XML, so that no entity is ever resolved.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

MAX_TEXT_BYTES = 262_144
"""Longest text that is read, inflated; a ComfyUI workflow of a hundred nodes has about 100 kB."""

MAX_ALL_TEXTS_BYTES = 4 * MAX_TEXT_BYTES
"""Texts of one file together."""

MAX_READ = 64
"""Texts, EXIF blocks and XMP packets read of one file; real files have a handful."""

MAX_C2PA_BYTES = 32 * 2**20
"""Longest C2PA manifest store whose signature is worth checking; with thumbnails they have about 1 MB."""

_MAX_BLOCKS = 65_536  # segments, chunks or boxes looked at in one file: some 30 ms
_MAX_IFD_ENTRIES = 512
_SEARCHED_BYTES = 16 * 2**20  # from the start of a file whose format is not walked
_JPEG_EXIF, _JPEG_XMP, _JPEG_IPTC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"Photoshop 3.0\0"
_JPEG_SCAN, _JPEG_END, _JPEG_COMMENT = 0xDA, 0xD9, 0xFE
_C2PA_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")  # of the ISO base media box that holds a manifest store
_TIFF_HEADERS = (b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08")
_XMP_START, _XMP_END = b"<x:xmpmeta", b"</x:xmpmeta>"

EXIF_TEXTS = {
    0x010E: "ImageDescription",
    0x010F: "Make",
    0x0110: "Model",
    0x0131: "Software",
    0x013B: "Artist",
    0x013C: "HostComputer",
    0x9003: "DateTimeOriginal",
    0x9286: "UserComment",
    0x9C9B: "XPTitle",
    0x9C9C: "XPComment",
    0x9C9D: "XPAuthor",
    0x9C9E: "XPKeywords",
}
"""EXIF tags whose text is read, by number (EXIF 2.32; XP*: written by Windows)."""

_IPTC_TEXTS = {0x41: "Software", 0x50: "Author", 0x6E: "Credit", 0x73: "Source"}
_IPTC_DATASET = re.compile(
    rb"\x1c\x02([\x41\x50\x6e\x73])([\x00-\x0f].)", re.DOTALL
)  # tag marker, record, dataset, size
_TIFF_XMP, _TIFF_IPTC, _TIFF_C2PA, _EXIF_IFD = 0x02BC, 0x83BB, 0xCD41, 0x8769
_BYTES_OF_TYPE = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1, 13: 4}  # of the TIFF field types that are read


@dataclass
class EmbeddedMetadata:
    """The metadata blocks of one file; what it lacks is empty."""

    mime: str = ""  # "" where the format is unknown
    texts: list[tuple[str, str]] = field(default_factory=list)  # keyword, text: PNG texts, JPEG comments, IPTC records
    exif: dict[str, str] = field(default_factory=dict)  # values of `EXIF_TEXTS`
    xmp: str = ""
    c2pa: bytearray = field(default_factory=bytearray)  # C2PA manifest store, cut after `MAX_C2PA_BYTES`
    text_bytes_left: int = MAX_ALL_TEXTS_BYTES
    _read: int = 0  # blocks so far

    def may_read(self) -> bool:
        """Count one more block, and say whether it is still to be read."""
        self._read += 1
        return self._read <= MAX_READ and self.text_bytes_left > 0


def read_embedded_metadata(content: bytes) -> EmbeddedMetadata:
    """Return the metadata blocks of an image file; what is damaged is left out.

    Args:
        content: the whole file.
    """
    found = EmbeddedMetadata()
    for mime, signature, read in _READERS:
        if signature.match(content):
            found.mime = mime
            read(content, found)
            break
    return found


def _read_jpeg(content: bytes, found: EmbeddedMetadata) -> None:
    for marker, start, end in _jpeg_segments(content):
        if marker == 0xE1 and content.startswith(_JPEG_EXIF, start):
            _read_exif(content[start + len(_JPEG_EXIF) : end], found)
        elif marker == 0xE1 and content.startswith(_JPEG_XMP, start):
            _add_xmp(content[start + len(_JPEG_XMP) : end], found)
        elif marker == 0xEB and _holds_c2pa(content, start, found):
            _add_c2pa(content[start + 8 : end], found)
        elif marker == 0xED and content.startswith(_JPEG_IPTC, start):
            _read_iptc(content[start:end], found)
        elif marker == _JPEG_COMMENT:
            _add_text("Comment", content[start:end], found)


def _holds_c2pa(content: bytes, start: int, found: EmbeddedMetadata) -> bool:
    """Say whether an APP11 segment holds the start of a C2PA manifest store, or continues one."""
    return content.startswith(b"JP", start) and (bool(found.c2pa) or content.find(b"c2pa", start, start + 72) >= 0)


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment's payload before the first scan."""
    position, size = 2, len(content)
    for _ in range(_MAX_BLOCKS):
        if position + 4 > size or content[position] != 0xFF:
            return
        marker = content[position + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7:  # a fill byte, or a marker without a payload
            position += 1 if marker == 0xFF else 2
            continue
        length = content[position + 2] << 8 | content[position + 3]
        if marker in (_JPEG_SCAN, _JPEG_END) or length < 2:
            return
        yield marker, position + 4, min(position + 2 + length, size)
        position += 2 + length


def _read_png(content: bytes, found: EmbeddedMetadata) -> None:
    position = 8
    for _ in range(_MAX_BLOCKS):
        if position + 8 > len(content):
            return
        length, name = struct.unpack_from(">I4s", content, position)
        start = position + 8
        if name in _PNG_CHUNKS:
            _PNG_CHUNKS[name](content[start : start + length], found)
        position = start + length + 4


def _add_png_text(chunk: bytes, found: EmbeddedMetadata) -> None:
    keyword, _, text = chunk.partition(b"\0")
    _add_text(keyword.decode("latin-1")[:80], text, found)


def _add_png_compressed_text(chunk: bytes, found: EmbeddedMetadata) -> None:
    keyword, _, rest = chunk.partition(b"\0")
    if found.may_read():
        _add_text(keyword.decode("latin-1")[:80], _inflated(rest[1:]), found)


def _add_png_international_text(chunk: bytes, found: EmbeddedMetadata) -> None:
    keyword, _, rest = chunk.partition(b"\0")
    text = rest[2:].split(b"\0", 2)[-1]  # behind the flag, the method, the language and the translated keyword
    if not found.may_read():
        return
    if rest[:1] == b"\x01":
        text = _inflated(text)
    if keyword == b"XML:com.adobe.xmp":
        _add_xmp(text, found)
    else:
        _add_text(keyword.decode("latin-1")[:80], text, found)


def _inflated(data: bytes) -> bytes:
    """Return at most `MAX_TEXT_BYTES` of a zlib stream; b"" where it is damaged."""
    try:
        return zlib.decompressobj().decompress(data, MAX_TEXT_BYTES)
    except zlib.error:
        return b""


def _read_webp(content: bytes, found: EmbeddedMetadata) -> None:
    position = 12
    for _ in range(_MAX_BLOCKS):
        if position + 8 > len(content):
            return
        name, length = struct.unpack_from("<4sI", content, position)
        start = position + 8
        if name in _WEBP_CHUNKS:
            _WEBP_CHUNKS[name](content[start : start + length], found)
        position = start + length + length % 2


def _read_tiff(content: bytes, found: EmbeddedMetadata) -> None:
    _read_exif(content, found, whole_file=True)


def _read_boxes(content: bytes, found: EmbeddedMetadata) -> None:
    """Read AVIF and HEIC: the C2PA box by its place; EXIF and XMP lie anywhere among the data and are searched for."""
    position = 0
    for _ in range(_MAX_BLOCKS):
        if position + 8 > len(content):
            break
        length, name = struct.unpack_from(">I4s", content, position)
        if name == b"uuid" and content.startswith(_C2PA_UUID, position + 8):
            _add_c2pa(content[position + 24 : position + length], found)
        if length < 8:  # to the end of the file, or of 64 bits
            break
        position += length
    _search(content, found)


def _read_gif(content: bytes, found: EmbeddedMetadata) -> None:
    if (place := content.find(b"C2PA_GIF", 0, _SEARCHED_BYTES)) >= 0:
        _add_c2pa(content[place + 8 :], found)
    _search(content, found)


def _search(content: bytes, found: EmbeddedMetadata) -> None:
    start = content.find(_XMP_START, 0, _SEARCHED_BYTES)
    if start >= 0:
        end = content.find(_XMP_END, start, start + MAX_TEXT_BYTES)
        _add_xmp(content[start : end if end >= 0 else start + MAX_TEXT_BYTES], found)
    for header in _TIFF_HEADERS:
        if (place := content.find(header, 0, _SEARCHED_BYTES)) >= 0:
            _read_exif(content[place : place + MAX_TEXT_BYTES], found)


def _read_exif(data: bytes, found: EmbeddedMetadata, whole_file: bool = False) -> None:
    """Read a TIFF structure: its first directory and the EXIF directory below it.

    Args:
        data: from its byte order mark on, or from the mark "Exif" on.
        found: takes the texts.
        whole_file: whether this is a TIFF file, which also has XMP, IPTC and C2PA as tags.
    """
    if not found.may_read():
        return
    data = data.removeprefix(_JPEG_EXIF)
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return
    values = _directory(data, struct.unpack_from(order + "I", data, 4)[0], order)
    if len(pointer := values.get(_EXIF_IFD, b"")) == 4:
        values = {**_directory(data, struct.unpack(order + "I", pointer)[0], order), **values}
    for tag, name in EXIF_TEXTS.items():
        if tag in values and (text := _exif_text(tag, values[tag])):
            found.exif.setdefault(name, text)
    if whole_file:
        _add_xmp(values.get(_TIFF_XMP, b""), found)
        _read_iptc(values.get(_TIFF_IPTC, b""), found)
        _add_c2pa(values.get(_TIFF_C2PA, b""), found)


def _directory(data: bytes, offset: int, order: str) -> dict[int, bytes]:
    """Return the values of the wanted tags of a TIFF directory, as they are stored."""
    values: dict[int, bytes] = {}
    if offset + 2 > len(data):
        return values
    (count,) = struct.unpack_from(order + "H", data, offset)
    for place in range(offset + 2, offset + 2 + 12 * min(count, _MAX_IFD_ENTRIES), 12):
        if place + 12 > len(data):
            break
        tag, kind, length = struct.unpack_from(order + "HHI", data, place)
        if tag not in _WANTED_TAGS or tag in values:
            continue
        size = length * _BYTES_OF_TYPE.get(kind, 0)
        start = place + 8 if size <= 4 else struct.unpack_from(order + "I", data, place + 8)[0]
        values[tag] = data[start : start + min(size, _WANTED_TAGS[tag])]
    return values


def _read_iptc(data: bytes, found: EmbeddedMetadata) -> None:
    """Read the IPTC-IIM datasets (record 2) that name programs and people."""
    for place in islice(_IPTC_DATASET.finditer(data), MAX_READ):
        _add_text(_IPTC_TEXTS[place[1][0]], data[place.end() : place.end() + int.from_bytes(place[2])], found)


def _exif_text(tag: int, value: bytes) -> str:
    if EXIF_TEXTS[tag].startswith("XP"):
        text = value.decode("utf-16-le", "replace")
    elif tag == 0x9286:
        text = _user_comment(value)
    else:
        text = _decoded(value)
    return text.replace("\0", " ").strip()


def _user_comment(value: bytes) -> str:
    """Return the text of an EXIF UserComment, whose first 8 bytes name its encoding."""
    code, text = value[:8], value[8:]
    if not code.startswith(b"UNICODE"):
        return _decoded(text if code.rstrip(b"\0 ") in (b"ASCII", b"JIS", b"") else value)
    # Its byte order may differ from that of the EXIF block; the zero bytes of Latin text reveal it.
    big = text[0:512:2].count(0) >= text[1:512:2].count(0)
    return text.decode("utf-16-be" if big else "utf-16-le", "replace")


def _decoded(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _add_text(keyword: str, text: bytes, found: EmbeddedMetadata) -> None:
    if text and found.may_read():
        text = text[: min(MAX_TEXT_BYTES, found.text_bytes_left)]
        found.text_bytes_left -= len(text)
        found.texts.append((keyword, _decoded(text)))


def _add_xmp(packet: bytes, found: EmbeddedMetadata) -> None:
    if packet and not found.xmp:
        found.xmp = packet[:MAX_TEXT_BYTES].decode("utf-8", "replace")


def _add_c2pa(data: bytes, found: EmbeddedMetadata) -> None:
    found.c2pa += data[: max(0, MAX_C2PA_BYTES - len(found.c2pa))]


_WANTED_TAGS: Mapping[int, int] = {
    **dict.fromkeys(EXIF_TEXTS, MAX_TEXT_BYTES),
    **dict.fromkeys((_TIFF_XMP, _TIFF_IPTC), MAX_TEXT_BYTES),
    _EXIF_IFD: 4,
    _TIFF_C2PA: MAX_C2PA_BYTES,
}
"""Bytes read at most of each tag."""

_PNG_CHUNKS = {
    b"tEXt": _add_png_text,
    b"zTXt": _add_png_compressed_text,
    b"iTXt": _add_png_international_text,
    b"eXIf": _read_exif,
    b"caBX": _add_c2pa,
}
_WEBP_CHUNKS = {b"EXIF": _read_exif, b"XMP ": lambda chunk, found: _add_xmp(chunk, found), b"C2PA": _add_c2pa}
_READERS = (
    ("image/jpeg", re.compile(rb"\xff\xd8\xff"), _read_jpeg),
    ("image/png", re.compile(rb"\x89PNG\r\n\x1a\n"), _read_png),
    ("image/webp", re.compile(rb"RIFF....WEBP", re.DOTALL), _read_webp),
    ("image/tiff", re.compile(rb"II\*\0|MM\0\*"), _read_tiff),
    ("image/heic", re.compile(rb"....ftyp(?:he[iv]|m[is]f1(?:....){1,16}?heic)", re.DOTALL), _read_boxes),
    ("image/avif", re.compile(rb"....ftyp(?:avif|avis|mif1)", re.DOTALL), _read_boxes),
    ("image/gif", re.compile(rb"GIF8[79]a"), _read_gif),
)
