"""No image that a user put there is missing from predictions.json, whatever its name and its format."""

import json

import pytest
from heic_images import PLAIN
from prediction_sets import Brightness, png, predict, tarred, write, zipped

from fakereal.errors import DataError
from fakereal.model.calibration import DecisionRule
from fakereal.predict.inputs import list_images
from fakereal.predict.results import details_of, save
from fakereal.predict.run import report_listing
from fakereal.preprocessing import Preprocessing

HTML = b"<!doctype html><title>403 Forbidden</title>"
JXL = b"\xff\x0a\xfa\x7f\x01\x90\x08\x06"
TEXT = b"how these were made"
FILES = {
    "1.heic": PLAIN,
    "2.HEIF": PLAIN,
    "3.jpg": PLAIN,  # HEIC, as phones send it under the wrong name
    "4": png(),  # no extension
    "5.download": png(),
    "6.txt": png(),
    "7.jxl": JXL,
    "8.bin": JXL,  # an image by its content, of a format that is not read
    "9.jpg": HTML,
    "10.psd": TEXT,  # an image by its name
    "readme.txt": TEXT,
    "labels.json": b"[]",
    "page.html": HTML,
}
OTHERS = ("labels.json", "page.html", "readme.txt")
REASONS = {
    7: "JPEG XL image, a format that is not read: convert it to PNG or JPEG",
    8: "JPEG XL image, a format that is not read: convert it to PNG or JPEG",
    9: "HTML page, not an image: the download probably failed",
    10: "text, not an image",
}


def entries_of(listing, output):
    results = predict(listing, Brightness(), Preprocessing(32), DecisionRule(), 4)
    save(results, output)
    return json.loads(output.read_text()), results


@pytest.mark.parametrize("kind", ["folder", "x.zip", "x.tar", "x.tar.gz"])
def test_every_image_by_name_or_by_content_has_its_place_and_the_others_are_listed(tmp_path, kind):
    if kind == "folder":
        for name, data in FILES.items():
            write(tmp_path / "folder" / name, data)
    else:
        (zipped if kind == "x.zip" else tarred)(tmp_path / kind, FILES)
    listing = list_images(tmp_path / kind)
    assert listing.other_files == OTHERS
    entries, results = entries_of(listing, tmp_path / "p.json")
    assert [entry["index"] for entry in entries] == list(range(1, 11))
    assert {entry["index"]: entry["error"] for entry in entries if "error" in entry} == REASONS
    formats = [details_of(result)["format"] for result in results]
    assert formats[:6] == ["HEIF", "HEIF", "HEIF", "PNG", "PNG", "PNG"]


def test_an_image_without_a_known_name_can_be_named_by_itself(tmp_path):
    listing = list_images([write(tmp_path / "photo", png()), write(tmp_path / ".hidden.png", png())])
    assert [item.name for item in listing.items] == [".hidden.png", "photo"]


def test_another_file_that_is_named_by_itself_is_refused_by_what_it_is(tmp_path):
    video = write(tmp_path / "holiday.mp4", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom")
    with pytest.raises(DataError, match=r"expected a folder of images, an image .* got another file \(MP4 video\)"):
        list_images(video)


def test_a_zip_with_backslashes_gives_the_names_of_one_with_slashes(tmp_path):
    members = {"photos/": b"", "photos/1.png": png(), "photos/sub/2.png": png(10)}
    zipped(tmp_path / "slashes.zip", members)
    zipped(tmp_path / "backslashes.zip", {name.replace("/", "\\"): data for name, data in members.items()})
    found = [list_images(tmp_path / f"{name}.zip") for name in ("slashes", "backslashes")]
    assert [item.name for item in found[1].items] == ["1.png", "sub/2.png"]
    assert found[1].other_files == ()
    assert entries_of(found[0], tmp_path / "a.json")[0] == entries_of(found[1], tmp_path / "b.json")[0]


def test_folders_nested_in_an_archive_and_what_systems_add_to_it_change_no_name(tmp_path, capsys):
    rubbish = {
        "__MACOSX/set-main/set/._1.png": b"\0\x05\x16\x07",
        "set-main/.DS_Store": b"",
        "set-main/set/Thumbs.db": b"",
    }
    zipped(tmp_path / "x.zip", {"set-main/set/1.png": png(), "set-main/set/2.png": png(), **rubbish})
    listing = list_images(tmp_path / "x.zip")
    assert [item.key for item in listing.items] == [1, 2]
    assert set(listing.hidden) == set(rubbish)
    assert listing.other_files == ()


def test_hidden_files_and_folders_are_passed_over_and_counted_in_one_line(tmp_path, capsys):
    for name in ("1.png", "._1.png", ".ipynb_checkpoints/1.png", "__MACOSX/1.png", "sub/2.png", "sub/desktop.ini"):
        write(tmp_path / "in" / name, png())
    write(tmp_path / "in" / "more.zip", b"PK\x03\x04")
    listing = list_images(tmp_path / "in", recursive=True)
    assert [item.name for item in listing.items] == ["1.png", "sub/2.png"]
    report_listing(listing)
    assert capsys.readouterr().err.splitlines() == [
        "skipped archives inside a folder; name them with --input (1): more.zip",
        "hidden files and folders passed over (4), such as ._1.png",
    ]
