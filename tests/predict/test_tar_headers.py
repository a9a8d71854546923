"""The quick reader of tar headers finds what tarfile finds, and leaves to it what it does not know."""

import io
import random
import tarfile

import pytest

from fakereal.predict.tar_headers import files_in_tar

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
KINDS = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CONTTYPE)


def archive(format, global_header=False):
    """A tar of everything that a header can say: kinds, long names, names of other alphabets, sizes around a block."""
    content = io.BytesIO()
    pax = {"pax_headers": {"comment": "for all files"}} if global_header else {}
    with tarfile.open(fileobj=content, mode="w", format=format, **pax) as tar:
        for number, size in enumerate((0, 1, 511, 512, 513, 1500)):
            for name in ("a.png", "folder/ä.jpg", "x" * 99, "y" * 100, "deep/" * 30 + "z.png", "like a folder/"):
                info = tarfile.TarInfo(f"{number}{name}"[:100] if len(name) < 101 else f"{number}{name}")
                info.size, info.mtime = size, 1_600_000_000.5 if number == 3 else 0
                tar.addfile(info, io.BytesIO(bytes(size)))
            for kind in KINDS:
                info = tarfile.TarInfo(f"{number} of kind {kind.decode()}")
                info.type, info.linkname = kind, "0a.png"
                tar.addfile(info)
    return content.getvalue()


def listed(content, quick):
    """Return what is found, in order, and the error at its end."""
    found = []
    try:
        for each in files_in_tar(io.BytesIO(content), sequential=not quick):
            found.append(each)
    except Exception as error:  # noqa: BLE001 - whatever it is, both must raise it
        return found, f"{type(error).__name__}: {error}"
    return found, None


@pytest.mark.parametrize("global_header", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_all_that_headers_say_is_read_as_by_tarfile(format, global_header):
    content = archive(format, global_header)
    quick, slow = listed(content, quick=True), listed(content, quick=False)
    assert quick == slow
    assert quick[1] is None
    assert len(quick[0]) == 6 * (6 + len(KINDS) - 1)


@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_tar_is_read_as_by_tarfile(format):
    content, rng = archive(format), random.Random(0)
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(content[: rng.randrange(1024, len(content))] if rng.random() < 0.3 else content)
        header = 512 * rng.randrange(1, len(damaged) // 512)
        for _ in range(rng.choice((1, 1, 2))):
            damaged[header + rng.choice((*range(10), *range(120, 160), 257, 345, 400))] = rng.randrange(256)
        quick = listed(bytes(damaged), quick=True)
        assert quick == listed(bytes(damaged), quick=False)
        outcomes.add(quick[1])
    assert len(outcomes) > 2, "some must be damaged, others not"


def test_plain_headers_are_not_left_to_tarfile(monkeypatch):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for number in range(100):
            tar.addfile(tarfile.TarInfo(f"{number}.png"))
    asked = []
    read_header = tarfile.TarInfo.fromtarfile.__func__
    count = classmethod(lambda cls, tar: (asked.append(tar.offset), read_header(cls, tar))[1])
    monkeypatch.setattr(tarfile.TarInfo, "fromtarfile", count)
    assert len(listed(content.getvalue(), quick=True)[0]) == 100
    assert len(asked) <= 3, "the first, and the end"
