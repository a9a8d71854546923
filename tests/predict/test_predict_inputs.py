import bz2
import gzip
import io
import json
import os
import pickle
import random
import stat
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from prediction_sets import Brightness, png, predict, tarred, write, zipped

from fakereal.errors import DataError, ImageRefused
from fakereal.model.calibration import DecisionRule
from fakereal.predict import containers, pipeline
from fakereal.predict.inputs import list_images
from fakereal.predict.results import save
from fakereal.predict.run import report_listing
from fakereal.predictions_json import key_of_file
from fakereal.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(32)
COMPRESSIONS = ("tar", "tar.gz", "tar.bz2", "tar.xz")


def names_in(*inputs, **options) -> list[str]:
    return [item.name for item in list_images(inputs, **options).items]


def entries_of(output: Path, *inputs) -> dict[int | str, dict]:
    results = predict(list_images(inputs), Brightness(), PREPROCESSING, DecisionRule(), 4)
    save(results, output)
    return {entry.get("index", entry.get("image")): entry for entry in json.loads(output.read_text())}


# names


def test_one_folder_gives_its_own_names_and_several_those_from_the_folder_that_holds_them(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        write(tmp_path / name, png())
    assert [item.key for item in list_images(tmp_path / "a").items] == [1, 2]
    assert [item.key for item in list_images([tmp_path / "a", tmp_path / "b"]).items] == [
        "a/1.png",
        "a/2.png",
        "b/1.png",
    ]


def test_images_that_a_shell_lists_keep_their_numbers(tmp_path):
    paths = [write(tmp_path / f"test/{number}.png", png()) for number in (10, 2, 1)]
    assert [item.key for item in list_images(paths).items] == [1, 2, 10]


def test_what_is_named_twice_has_one_place(tmp_path):
    for name in ("1.png", "sub/2.png"):
        write(tmp_path / name, png())
    listing = list_images([tmp_path, tmp_path / "sub", tmp_path / "1.png"], recursive=True)
    assert [item.name for item in listing.items] == ["1.png", "sub/2.png"]
    assert listing.items.duplicates == 2


def test_an_archive_of_one_folder_counts_as_that_folder(tmp_path):
    for archive in (
        zipped(
            tmp_path / "x.zip",
            {"test/2.png": png(), "test/10.png": png(), "test/notes.txt": b"", "__MACOSX/._1.png": b""},
        ),
        tarred(tmp_path / "y.tar.gz", {"./test/10.png": png(), "./test/2.png": png()}),
    ):
        listing = list_images(archive)
        assert [item.key for item in listing.items] == [2, 10]
        assert listing.archive_folders == (f"test/ in {archive.name}",)
    assert list_images(tmp_path / "x.zip").other_files == ("test/notes.txt",)
    assert list_images(tmp_path / "x.zip").hidden == ("__MACOSX/._1.png",)


def test_several_archives_and_folders_keep_apart_what_they_hold(tmp_path):
    zipped(tmp_path / "x.zip", {"1.png": png(), "sub/1.png": png()})
    zipped(tmp_path / "y.zip", {"only/1.png": png()})
    write(tmp_path / "z/1.png", png())
    found = names_in(tmp_path / "x.zip", tmp_path / "y.zip", tmp_path / "z")
    assert found == ["x.zip/1.png", "x.zip/sub/1.png", "y.zip/only/1.png", "z/1.png"]
    assert all(
        entry["prediction"] == "real" for entry in entries_of(tmp_path / "p.json", *tmp_path.glob("*.zip")).values()
    )


# patterns and lists


def test_a_pattern_finds_files_and_names_them_from_its_fixed_part(tmp_path):
    for name in ("photos/a/1.png", "photos/a/b/2.png", "photos/3.jpg", "photos/a/notes.txt", "photos/a/._1.png"):
        write(tmp_path / name, b"notes" if "notes" in name else png())
    assert names_in(tmp_path / "photos/**/*.png") == ["a/1.png", "a/b/2.png"]
    assert names_in(tmp_path / "photos/*/*.png") == ["a/1.png"]
    listing = list_images([str(tmp_path / "photos/**/*.*")])
    assert [item.key for item in listing.items] == [3, "a/1.png", "a/b/2.png"]
    assert (listing.other_files, listing.hidden) == (("a/notes.txt",), ("a/._1.png",))


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    assert names_in(write(tmp_path / "[1].png", png())) == ["[1].png"]


def test_a_pattern_follows_no_ring_of_links(tmp_path):
    write(tmp_path / "in/1.png", png())
    (tmp_path / "in/ring").symlink_to(tmp_path / "in")
    assert names_in(tmp_path / "in/**/*.png") == ["1.png"]


def test_of_several_inputs_those_that_gave_no_image_are_named(tmp_path, capsys):
    write(tmp_path / "a/1.png", png())
    write(tmp_path / "b/notes.txt", b"")
    zipped(tmp_path / "c.zip", {"notes.txt": b""})
    listing = list_images([tmp_path / name for name in ("a", "b", "c.zip")])
    report_listing(listing)
    said = capsys.readouterr().err.splitlines()
    assert f"inputs without images (2): {tmp_path / 'b'}, {tmp_path / 'c.zip'}" in said


def test_a_link_to_an_image_keeps_its_own_name_also_behind_two_dots(tmp_path, monkeypatch):
    store = write(tmp_path / "store/abcdefgh.png", png())
    for name in ("photos/1.png", "photos/a/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).symlink_to(store)
    (tmp_path / "linked").symlink_to(tmp_path / "photos")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in ("photos", "linked"):
        assert [item.key for item in list_images([f"../{folder}/*.png"]).items] == [1]
        assert [item.key for item in list_images([f"../{folder}/1.png"]).items] == [1]
        assert names_in(f"../{folder}/**/*.png") == ["1.png", "a/2.png"]
        assert names_in(f"../{folder}/*/../*.png") == ["1.png"]
        assert names_in(f"../{folder}/*/../../store/*.png") == ["abcdefgh.png"]
        listed = write(tmp_path / "list", f"../{folder}/1.png\n../{folder}/a/2.png\n../{folder}/none/".encode())
        assert names_in(list_file=listed) == ["1.png", "a/2.png", "none"]
    (tmp_path / "x.zip").symlink_to(zipped(tmp_path / "store/y.zip", {"1.png": png()}))
    assert names_in("../x.zip", "../photos/1.png") == ["photos/1.png", "x.zip/1.png"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"])
def test_a_list_holds_paths_by_lines_or_nuls(tmp_path, end):
    names = ["1.png", "odd name.png", "sub/2.png"] + (["new\nline.png"] if end == b"\0" else [])
    paths = [os.fsencode(write(tmp_path / "in" / name, png())) for name in names]
    listed = write(tmp_path / "list.txt", end.join(paths) + end)
    assert sorted(names_in(list_file=listed)) == sorted(names)


def test_a_long_list_is_read_in_pieces(tmp_path):
    path = write(tmp_path / "in/1.png", png())
    missing = [f"{tmp_path}/in/{'x' * 100}{number}.png" for number in range(2000)]
    listing = list_images([], list_file=write(tmp_path / "list", "\n".join([str(path), *missing]).encode()))
    assert len(listing.items) == 2001
    assert "nothing there" in listing.items[5].problem
    assert listing.items[0].problem is None


def test_the_paths_of_find_are_read_from_standard_input(tmp_path, monkeypatch):
    for name in ("1.png", "sub/2.png", "notes.txt"):
        write(tmp_path / "in" / name, b"notes" if "notes" in name else png())
    found = [tmp_path / "in", *(tmp_path / "in").rglob("*")]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\0".join(map(os.fsencode, found)) + b"\0")))
    listing = list_images([], list_file=Path("-"))
    assert [item.key for item in listing.items] == [1, "sub/2.png"]
    assert (listing.other_files, listing.skipped_folders) == (("notes.txt",), ())


def test_an_empty_list_is_refused(tmp_path):
    with pytest.raises(DataError, match="no paths in"):
        list_images([], list_file=write(tmp_path / "list", b"\n\n"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_list_in_utf16_is_refused_in_one_line(tmp_path, encoding):
    with pytest.raises(DataError, match="expected paths in UTF-8, got UTF-16") as caught:
        list_images([], list_file=write(tmp_path / "list", "\ufeffa/1.png\r\n".encode(encoding)))
    assert "\n" not in str(caught.value)


def test_addresses_in_a_list_are_refused_with_the_place_where_they_belong(tmp_path):
    with pytest.raises(DataError, match=r"expected paths, got s3://bucket/1.png in .*: name addresses with --input"):
        list_images([], list_file=write(tmp_path / "list", b"a/1.png\ns3://bucket/1.png\n"))


# archives


OPEN_MANY = """
import resource, sys
from test_predict_inputs import PREPROCESSING, Brightness, list_images, pipeline
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
listing = list_images(sys.argv[1:])
outcomes = list(pipeline.predict_batches(listing.items, Brightness(), PREPROCESSING, 4))
print(len(outcomes), [outcome.error for outcome in outcomes if outcome.error])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_there_may_be_more_archives_than_files_that_a_process_may_open(tmp_path, kind):
    pack = zipped if kind == "zip" else tarred
    for number in range(90):
        pack(tmp_path / f"{number}.{kind}", {"1.png": png(), "2.png": png()})
    done = subprocess.run(
        [sys.executable, "-c", OPEN_MANY, str(tmp_path / f"*.{kind}")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "180 []\n", done.stderr


def test_threads_read_the_right_images_from_more_archives_than_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "MAX_OPEN_ARCHIVES", 2)
    for number in range(4):
        members = {f"{each}.png": png(30 * number + each) for each in range(10)}
        zipped(tmp_path / f"{number}.zip", members)
        tarred(tmp_path / f"{number}.tar", members)
    items = list_images(list(tmp_path.iterdir())).items
    order = random.Random(0).choices(range(len(items)), k=2000)
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda number: items[number].open(), order))
    wanted = {item.name: png(30 * int(item.name[0]) + int(Path(item.name).stem)) for item in items}
    assert contents == [wanted[items[number].name] for number in order]
    assert sum(item._file is not None for item in {ref() for ref in containers._opened} - {None}) <= 2


@pytest.mark.parametrize("kind", ["zip", *COMPRESSIONS])
def test_an_archive_gives_what_its_unpacked_folder_gives(tmp_path, kind):
    order = [7, 3, 10, 1, 9, 2, 8, 4, 6, 5]
    members = {f"{number}.png": png(25 * number) for number in order} | {"a/x.png": png(3), "a/broken.png": b"no"}
    for name, content in members.items():
        write(tmp_path / "in" / name, content)
    pack = zipped if kind == "zip" else tarred
    pack(tmp_path / f"in.{kind}", members)
    before = sorted(tmp_path.rglob("*"))
    packed = list_images(tmp_path / f"in.{kind}")
    unpacked = list_images(tmp_path / "in", recursive=True)
    answers = []
    for listing in (packed, unpacked):
        results = predict(listing, Brightness(), PREPROCESSING, DecisionRule(), 4)
        answers.append([result.prediction for result in results])
    assert answers[0] == answers[1]
    assert len(set(answers[0])) == 12
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", COMPRESSIONS[1:])
def test_a_compressed_tar_is_read_once_from_its_start_to_its_end(tmp_path, kind):
    order = [7, 3, 10, 1, 9, 2, 8, 4, 6, 5]
    listing = list_images(tarred(tmp_path / f"in.{kind}", {f"{number}.png": png(20 * number) for number in order}))
    numbers = list(listing.items.reading_order())
    assert [listing.items[number].key for number in numbers] == order
    archive, asked, threads = listing.items[0].root, [], set()
    read = archive.read

    def noted(place):
        asked.append(place)
        threads.add(threading.current_thread())
        return read(place)

    archive.read = noted
    found = list(pipeline.predict_batches((listing.items[n] for n in numbers), Brightness(), PREPROCESSING, 4))
    assert [round(255 * outcome.p_real) for outcome in found] == [20 * number for number in order]
    assert asked == sorted(asked)
    assert len(threads) == 1


@pytest.mark.parametrize("kind", ["zip", *COMPRESSIONS])
def test_an_archive_can_be_sent_to_another_process(tmp_path, kind):
    pack = zipped if kind == "zip" else tarred
    item = list_images(pack(tmp_path / f"x.{kind}", {"1.png": png(7), "2.png": png(8)})).items[1]
    assert item.open() == png(8)
    assert pickle.loads(pickle.dumps(item)).open() == png(8)


def hostile_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in (
            "../up.png",
            "/etc/absolute.png",
            "a/../../up2.png",
            "C:\\windows.png",
            "..\\back.png",
            "good.png",
        ):
            file.writestr(name, png())
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
        file.writestr("twice.png", png(1))
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("twice.png", png(2))
        file.writestr("bomb.png", bytes(containers.MAX_FILE_BYTES + 1))
        file.writestr("large.png", bytes(2**19))
        file.writestr("encrypted.png", png())
        file.writestr("cut.png", os.urandom(500))
        file.writestr("9" * 5000 + ".png", png())
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\1\2", 0, content.rindex(b"encrypted.png"))
    content[place + 8] |= 1  # the flag of encryption, in the directory
    damaged = content.index(b"cut.png") + 100
    content[damaged] ^= 255
    path.write_bytes(content)
    return path


ZIP_REASONS = {
    "../up.png": "leads out of it",
    "/etc/absolute.png": "leads out of it",
    "a/../../up2.png": "leads out of it",
    "C:\\windows.png": "leads out of it",
    "..\\back.png": "leads out of it",
    "link.png": "got a link",
    "twice.png": "got several",
    "bomb.png": "expected at most 1 MB",
    "large.png": "not an image",
    "encrypted.png": "without a password",
    "cut.png": "CRC",
}


def test_every_hostile_member_of_a_zip_is_named_with_a_reason_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "MAX_FILE_BYTES", 2**20)
    hostile_zip(tmp_path / "x.zip")
    before = sorted(tmp_path.rglob("*"))
    entries = entries_of(tmp_path.parent / f"{tmp_path.name}.json", tmp_path / "x.zip")
    for name, reason in ZIP_REASONS.items():
        assert reason in entries.pop(name)["error"], name
    assert {str(name)[:8]: entry["prediction"] for name, entry in entries.items()} == {
        "good.png": "real",
        "99999999": "real",
    }
    assert sorted(tmp_path.rglob("*")) == before


def hostile_tar(path: Path) -> Path:
    with tarfile.open(path, "w:" + (path.suffix[1:] if path.suffix != ".tar" else "")) as file:
        for name, kind in (
            ("../up.png", tarfile.REGTYPE),
            ("/etc/absolute.png", tarfile.REGTYPE),
            ("symlink.png", tarfile.SYMTYPE),
            ("hardlink.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
            ("device.png", tarfile.CHRTYPE),
            ("good.png", tarfile.REGTYPE),
            ("twice.png", tarfile.REGTYPE),
            ("twice.png", tarfile.REGTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd" if "link" in name else ""
            info.size = len(png()) if kind == tarfile.REGTYPE else 0
            file.addfile(info, io.BytesIO(png()) if info.size else None)
    return path


def test_a_name_that_two_members_have_is_reported_as_refused_only(tmp_path, capsys):
    listing = list_images(hostile_tar(tmp_path / "x.tar"))
    assert [item.problem is None for item in listing.items if item.name == "twice.png"] == [False]
    report_listing(listing)
    assert "named more than once" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_every_hostile_member_of_a_tar_is_named_with_a_reason_and_nothing_is_written(tmp_path, kind):
    hostile_tar(tmp_path / f"x.{kind}")
    before = sorted(tmp_path.rglob("*"))
    entries = entries_of(tmp_path.parent / f"{tmp_path.name}.json", tmp_path / f"x.{kind}")
    reasons = {
        "../up.png": "leads out of it",
        "/etc/absolute.png": "leads out of it",
        "symlink.png": "got a link",
        "hardlink.png": "got a link",
        "pipe.png": "pipe or device",
        "device.png": "pipe or device",
        "twice.png": "got several",
    }
    for name, reason in reasons.items():
        assert reason in entries.pop(name)["error"], name
    assert list(entries) == ["good.png"]
    assert entries["good.png"]["prediction"] == "real"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_of_a_cut_off_tar_the_start_is_predicted_and_the_damage_has_a_place(tmp_path, kind):
    members = {f"{number}.png": png() for number in range(30)} | {"noise.png": os.urandom(1_000_000), "last.png": png()}
    path = tarred(tmp_path / f"x.{kind}", members)
    path.write_bytes(path.read_bytes()[:-60_000])
    listing = list_images(path)
    assert listing.items[len(listing.items) - 1].name == path.name
    results = predict(listing, Brightness(), PREPROCESSING, DecisionRule(), 4)
    assert "damaged" in results[-1].raw.error
    assert "last.png" not in [result.raw.item.name for result in results]
    if kind in ("tar", "tar.gz"):  # the others come in large blocks
        assert [result.label for result in results[:30]] == [1] * 30


def test_a_tar_whose_middle_is_overwritten_loses_nothing_silently(tmp_path):
    path = tarred(tmp_path / "x.tar", {f"{number}.png": png() for number in range(6)})
    content = bytearray(path.read_bytes())
    place = content.index(b"3.png")
    content[place : place + 512] = b"\xaa" * 512
    path.write_bytes(content)
    listing = list_images(path)
    assert [item.name for item in listing.items] == ["0.png", "1.png", "2.png", "x.tar"]
    assert "damaged" in listing.items[3].problem


def claimed_header(kind: bytes, size: int) -> bytes:
    """A tar header that announces `size` bytes of an extended header."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_tar_header_of_gigabytes_is_not_read(tmp_path, kind):
    start = tarred(tmp_path / "ok.tar", {"1.png": png()}).read_bytes()[:1024]
    with gzip.open(tmp_path / "x.tar.gz", "wb") as file:
        file.write(start + claimed_header(kind, 2**33) + bytes(2**22))
    listing = list_images(tmp_path / "x.tar.gz")
    assert [item.name for item in listing.items] == ["1.png", "x.tar.gz"]
    assert "header of 8,589,934,592 bytes" in listing.items[1].problem


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, b"Z", tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_tar_whose_file_has_less_than_no_bytes_is_not_read_for_ever(tmp_path, kind, first):
    info = tarfile.TarInfo("a.png")
    info.type = kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" + (256**11 - 512).to_bytes(11, "big")  # -512
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    start = b"" if first else tarfile.TarInfo("0.png").tobuf(tarfile.GNU_FORMAT)
    write(tmp_path / "in/x.tar", start + bytes(header) + bytes(2**20))
    write(tmp_path / "in/1.png", png())
    problems = [item.problem for item in list_images([tmp_path / "in/*"]).items if item.problem]
    assert "damaged" in problems[-1]


def test_an_archive_that_grows_without_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "FREE_BYTES", 2**16)
    bomb = {"1.png": png(), "2.bmp": bytes(2**23), "3.png": png()}
    zipped(tmp_path / "x.zip", bomb)
    tarred(tmp_path / "x.tar.bz2", bomb)
    assert "grows" in list_images(tmp_path / "x.zip").items[2].problem
    listing = list_images(tmp_path / "x.tar.bz2")
    assert "grows" in listing.items[len(listing.items) - 1].problem
    assert listing.items[0].problem is None


def test_a_zip_whose_header_lies_about_a_size_gives_no_more_than_that(tmp_path):
    path = zipped(tmp_path / "x.zip", {"1.png": bytes(2**20)})
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<I", content, content.index(mark) + place, 1000)
    path.write_bytes(content)
    with pytest.raises(ImageRefused, match="CRC"):
        list_images(path).items[0].open()


@pytest.mark.parametrize("content", [b"", b"PK", b"\x1f\x8b broken", bz2.compress(b"no tar" * 200), b"x" * 2000])
@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz"])
def test_what_is_no_archive_is_an_error_alone_and_has_a_place_in_a_list(tmp_path, name, content):
    path = write(tmp_path / "in" / name, content)
    with pytest.raises(DataError, match=f"{name}: expected a"):
        list_images(path)
    write(tmp_path / "in/1.png", png())
    listing = list_images([], list_file=write(tmp_path / "list", f"{path}\n{tmp_path / 'in/1.png'}".encode()))
    assert [item.name for item in listing.items] == ["1.png", name]
    assert listing.items[1].problem.startswith("expected a")


def test_random_damage_to_archives_raises_nothing_else(tmp_path):
    chance = np.random.default_rng(0)
    members = {f"{number}.png": png(number) for number in range(8)}
    for kind in ("zip", *COMPRESSIONS):
        sound = (zipped if kind == "zip" else tarred)(tmp_path / f"sound.{kind}", members).read_bytes()
        for number in range(40):
            content = bytearray(sound)
            for place in chance.integers(0, len(content), 3):
                content[place] = chance.integers(0, 256)
            path = write(tmp_path / f"{number}.{kind}", bytes(content[: chance.integers(1, len(content) + 1)]))
            try:
                listing = list_images(path)
            except DataError:
                continue
            for result in predict(listing, Brightness(), PREPROCESSING, DecisionRule(), 4):
                assert (result.label is None) == (result.raw.error is not None)


@pytest.mark.parametrize(
    "name",
    ["7.png", "007.JPG", "7.5.png", "a/7.png", "x7.png", "٣.png", "7", "7.", "-1.png", "1e3.png", " 7.png", "7 .png"],
)
def test_a_place_has_the_key_that_the_prediction_json_gives_its_file(tmp_path, name):
    write(tmp_path / name, png())
    write(tmp_path / "x.jpg", png())
    assert key_of_file(Path(name)) in [item.key for item in list_images(tmp_path, recursive=True).items]
