from __future__ import annotations

import hashlib
import os
import shutil

import numpy as np
import pytest
from conftest import as_a_user_without_rights
from heic_images import PLAIN
from PIL import Image

from fakereal.dataset.layout import LabelRules
from fakereal.dataset.scan import THUMBNAIL_PX, scan, skipped_lines
from fakereal.errors import DataError
from fakereal.labels import FAKE, REAL
from fakereal.preprocessing import Preprocessing

SMALL = Preprocessing(32)


def by_name(dataset):
    return {record.path.relative_to(dataset.root).as_posix(): record for record in dataset.records}


def reasons(dataset):
    return {item.path.relative_to(dataset.root).as_posix(): item.reason for item in dataset.skipped}


def test_class_folders_give_the_label(make_folder):
    dataset = scan(make_folder({"fake_images": 2, "REAL": 3}), SMALL)
    assert [record.label for record in dataset.records] == [REAL] * 3 + [FAKE] * 2
    assert {(record.source, record.split) for record in dataset.records} == {("", None)}


@pytest.mark.parametrize(
    ("folder", "label", "source", "split"),
    [
        ("train/real", REAL, "", "train"),
        ("Validation/FAKE", FAKE, "", "val"),
        ("valid/ai", FAKE, "", "val"),
        ("Testing/0_real", REAL, "", "test"),
        ("midjourney/fake", FAKE, "midjourney", None),
        ("midjourney/v5/test/fake", FAKE, "midjourney/v5", "test"),
        ("training/club/genuine", REAL, "club", "train"),
        ("photos/fake", FAKE, "photos", None),
        ("real/2024/summer", REAL, "summer", None),
        ("fake/sdxl/test", FAKE, "sdxl", "test"),
    ],
)
def test_folders_say_label_source_and_split(make_folder, folder, label, source, split):
    root = make_folder({folder: 1, "fake": 1, "real": 1})
    record = by_name(scan(root, SMALL))[f"{folder}/1.png"]
    assert (record.label, record.source, record.split) == (label, source, split)


def test_records_are_sorted_by_path_and_name_the_file(make_folder):
    root = make_folder({"fake": 12, "real": 1})
    dataset = scan(root, SMALL)
    names = [record.path.relative_to(root).as_posix() for record in dataset.records]
    assert names == sorted(names)
    assert all(record.path.is_file() for record in dataset.records)
    assert dataset.records[0].sha256 == hashlib.sha256((root / "fake/1.png").read_bytes()).hexdigest()


def test_images_with_the_same_pixels_share_the_content_not_the_file_hash(make_folder, make_image):
    root = make_folder({"fake": 1, "real": 1})
    make_image(root / "fake/again.bmp", seed=0)
    records = by_name(scan(root, SMALL))
    assert records["fake/1.png"].content == records["fake/again.bmp"].content
    assert records["fake/1.png"].sha256 != records["fake/again.bmp"].sha256
    assert records["fake/1.png"].content != records["real/1.png"].content


def test_a_record_holds_the_shorter_side_and_a_gray_thumbnail(make_folder):
    root = make_folder({"fake": 1, "real": 1})
    halves = Image.new("RGB", (200, 100), "white")
    halves.paste("black", (0, 0, 100, 100))
    halves.save(root / "fake/halves.png")
    record = by_name(scan(root, SMALL))["fake/halves.png"]
    thumbnail = np.frombuffer(record.thumbnail, np.uint8).reshape(THUMBNAIL_PX, THUMBNAIL_PX)
    assert record.shorter_px == 100
    assert np.all(thumbnail[:, : THUMBNAIL_PX // 2 - 1] < 5)
    assert np.all(thumbnail[:, THUMBNAIL_PX // 2 + 1 :] > 250)
    assert "thumbnail" not in repr(record)


def test_what_is_not_a_labeled_image_is_skipped_with_a_reason(make_folder, make_image):
    root = make_folder({"fake": 1, "real": 1})
    make_image(root / "1.png")
    make_image(root / "test" / "1.png")
    make_image(root / "fake" / ".hidden.png")
    (root / "fake/notes.txt").write_bytes(b"x")
    (root / "notes.json").write_text("[]")
    (root / "real/cut.png").write_bytes((root / "real/1.png").read_bytes()[:60])
    (root / "real/none.jpg").touch()
    found = reasons(scan(root, SMALL))
    assert found["1.png"] == "not in a class folder"
    assert found["test/1.png"] == "not in a class folder, but directly in test/"
    assert found["fake/.hidden.png"] == "hidden file"
    assert found["fake/notes.txt"] == "not an image file name (.txt)"
    assert found["notes.json"] == "not an image file name (.json)"
    assert "truncated" in found["real/cut.png"]
    assert found["real/none.jpg"] == "the file is empty"
    assert len(found) == 7


def test_hidden_folders_and_what_systems_leave_behind_are_passed_over(make_folder, make_image):
    root = make_folder({"fake": 1, "real": 1})
    for name in (".ipynb_checkpoints/1.png", "__MACOSX/fake/1.png", "fake/.thumbnails/1.png", "real/@eaDir/1.png"):
        make_image(root / name)
    for name in ("fake/._1.png", "real/Thumbs.db", ".DS_Store", "real/desktop.ini"):
        (root / name).write_bytes(b"x")
    dataset = scan(root, SMALL)
    assert set(by_name(dataset)) == {"fake/1.png", "real/1.png"}
    assert skipped_lines(dataset) == [
        "skipped 8: hidden, or left behind by a system (.DS_Store, .ipynb_checkpoints, __MACOSX, and 5 more)"
    ]


def test_the_class_table_is_logged_before_any_image_is_read(make_folder, capsys):
    root = make_folder({"fake": 2, "real": 1, "test": 3})
    (root / "real/1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="2 fake and 0 real"):
        scan(root, SMALL)
    table = capsys.readouterr().err.splitlines()[1:5]
    assert [line.split() for line in table] == [
        ["folder", "class", "split", "source", "images"],
        ["fake/", "fake", "-", "-", "2"],
        ["real/", "real", "-", "-", "1"],
        ["test/", "not", "used", "-", "-", "3"],
    ]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions work otherwise here")
def test_an_unreadable_folder_is_named_as_unreadable(open_folder, make_image, capsys):
    for name in ("fake/1.png", "real/1.png", "real/closed/2.png"):
        make_image(open_folder / name, len(name))
    with as_a_user_without_rights(open_folder):
        (open_folder / "real/closed").chmod(0)
        dataset = scan(open_folder, SMALL)
        (open_folder / "real/closed").chmod(0o755)
    assert [(item.path.name, item.reason) for item in dataset.skipped] == [
        ("closed", "unreadable folder: Permission denied")
    ]
    rows = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert ["real/closed/", "unreadable", "-", "-", "0"] in rows


def test_labels_of_a_file_take_the_place_of_class_folders(make_folder, capsys):
    root = make_folder({"images": 4, "test_set": 2})
    rows = ["image,label", "images/1.png,ai", "images/2.png,human", "images/3.png,ai", "test_set/1.png,human"]
    (root / "labels.csv").write_text("\n".join(rows))
    dataset = scan(root, SMALL, LabelRules(labels_file=root / "labels.csv"))
    found = {name: (record.label, record.split) for name, record in by_name(dataset).items()}
    assert found == {
        "images/1.png": (FAKE, None),
        "images/2.png": (REAL, None),
        "images/3.png": (FAKE, None),
        "test_set/1.png": (REAL, "test"),
    }
    assert reasons(dataset)["images/4.png"] == "no label in labels.csv"
    rows = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert ["images/", "fake", "-", "-", "2"] in rows


def test_an_unclear_folder_is_refused_before_any_image_is_read(make_folder):
    root = make_folder({"fake": 1, "real": 1, "midjourney/photos": 2})
    (root / "midjourney/photos/1.png").write_bytes(b"no image")
    with pytest.raises(
        DataError, match=r"whether midjourney/photos \(2 images\) is fake or real: say it with --class midj"
    ):
        scan(root, SMALL)
    dataset = scan(root, SMALL, LabelRules(classes=("midjourney/photos=fake",)))
    assert [record.source for record in dataset.records] == ["", "midjourney", ""]


def test_an_image_is_known_by_its_content_and_another_format_by_its_name(make_folder, make_image):
    root = make_folder({"fake": 1, "real": 1})
    (root / "fake" / "photo").write_bytes(PLAIN)  # HEIC
    make_image(root / "real" / "2.download", 7, format="PNG")
    (root / "real" / "3.jpg").write_bytes(b"<html>not found</html>")
    (root / "real" / "4.jxl").write_bytes(b"\xff\x0a\xfa\x7f\x01\x90\x08\x06")
    dataset = scan(root, SMALL)
    assert {record.path.name for record in dataset.records} == {"1.png", "photo", "2.download"}
    assert reasons(dataset) == {
        "real/3.jpg": "HTML page, not an image: the download probably failed",
        "real/4.jxl": "JPEG XL image, a format that is not read: convert it to PNG or JPEG",
    }
    assert all(skipped.failed for skipped in dataset.skipped)


def test_many_skipped_files_take_one_line_per_reason(make_folder):
    root = make_folder({"fake": 1, "real": 1})
    for number in range(2000):
        (root / f"{number}.json").touch()
    lines = skipped_lines(scan(root, SMALL))
    assert lines == ["skipped 2000: not an image file name (.json) (0.json, 1.json, 10.json, and 1997 more)"]


def test_links_to_files_and_folders_are_followed(make_folder, tmp_path):
    elsewhere = make_folder({"a": 1, "b": 1}, name="elsewhere")
    root = make_folder({"real": 1})
    (root / "fake").mkdir()
    (root / "fake/linked.png").symlink_to(elsewhere / "b/1.png")
    (root / "ai").symlink_to(elsewhere / "a")
    assert set(by_name(scan(root, SMALL))) == {"real/1.png", "fake/linked.png", "ai/1.png"}


def test_a_loop_of_links_ends_and_is_listed(make_folder):
    root = make_folder({"fake": 1, "real": 1})
    (root / "fake/loop").symlink_to(root)
    dataset = scan(root, SMALL)
    assert len(dataset.records) == 2
    assert reasons(dataset) == {"fake/loop": "folder already scanned under another name"}


def test_a_link_to_nothing_and_a_pipe_are_skipped(make_folder):
    root = make_folder({"fake": 1, "real": 1})
    (root / "fake/gone.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "fake/pipe.png")
    found = reasons(scan(root, SMALL))
    assert found["fake/gone.png"] == "the file does not exist"
    assert found["fake/pipe.png"] == "not a regular file, but a pipe, a device or the like"


@pytest.mark.parametrize(
    ("folders", "found"),
    [
        ({}, "no files: put images into class folders"),
        ({"real": 2}, "0 fake and 2 real images: add a folder of fake images"),
        ({"cats": 2}, "can't tell whether cats (2 images) is fake or real: say it with --class cats=fake|real|skip"),
    ],
)
def test_a_folder_without_both_classes_is_one_clear_line(make_folder, tmp_path, folders, found):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError) as caught:
        scan(make_folder(folders), SMALL)
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_and_a_file_are_one_clear_line(tmp_path, make_image):
    with pytest.raises(DataError, match="nowhere: does not exist; expected a folder with fake"):
        scan(tmp_path / "nowhere", SMALL)
    with pytest.raises(DataError, match="is a file; expected a folder"):
        scan(make_image(tmp_path / "1.png"), SMALL)


def test_odd_names_are_read(make_folder):
    root = make_folder({"fake": 1, "real": 1})
    for name in ("-1 &.png", "new\nline.png", "日本.PNG"):
        shutil.copy(root / "fake/1.png", root / "fake" / name)
    assert len(scan(root, SMALL).records) == 5


@pytest.mark.parametrize("name", ["fake_a_preds.json", "fake_a_images_predictions.json", "Fake_A_preds.CSV"])
def test_raw_folders_with_predictions_of_their_own_are_not_labeled_by_their_names(make_folder, name):
    root = make_folder({"fake_a_images": 1, "real_a_images": 1})
    (root / name).write_text("[]")
    with pytest.raises(DataError, match=rf"fake_a_images/ has predictions beside it \({name}\).*image_separate.py"):
        scan(root, SMALL)
    dataset = scan(root, SMALL, LabelRules(classes=("fake_a_images=fake",)))
    assert [record.label for record in dataset.records] == [FAKE, REAL]
