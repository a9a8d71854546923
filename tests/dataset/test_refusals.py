"""Refusals of data sets: each names what was found, and what would help."""

import shutil

import pytest

from fakereal.dataset import scan as scans
from fakereal.dataset.scan import NO_RULES, LabelRules, scan
from fakereal.dataset.split import split_dataset
from fakereal.errors import DataError
from fakereal.labels import known_folder_names
from fakereal.preprocessing import Preprocessing


def refusal(root, rules=NO_RULES):
    """What is said when the folder is scanned and split."""
    with pytest.raises(DataError) as caught:
        split_dataset(scan(root, Preprocessing(32), rules), seed=0)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{root}: ")


def test_where_a_class_is_missing_the_folders_passed_over_are_named_with_their_images(make_folder):
    root = make_folder({"real": 8, ".": 1, "more": 3})
    (root / "fake").mkdir()
    for number in range(2):
        (root / "fake" / f"{number}.png").write_bytes(b"broken")
    found = refusal(root, LabelRules(classes=("more=skip",)))
    assert found == (
        "0 fake and 8 real images; passed over: 3 files in more/ (left out by --class), 2 files in fake/ (text, not an"
        " image), 1 file in ./ (not in a class folder): add a folder of fake images"
        f" ({known_folder_names()}), or say what a folder holds with --class NAME=fake|real"
    )


def test_a_class_folder_named_as_the_data_set_is_told_from_one(make_folder):
    root = make_folder({"fake": 3, "real": 3})
    assert refusal(root / "fake") == (
        "a folder of fake images by its name, without class folders in it: name the folder that holds both classes,"
        f" such as {root}"
    )


def test_an_unreadable_folder_is_named_first_and_as_unreadable(make_folder, monkeypatch):
    root = make_folder({"real": 8, "more": 3, "fake": 5})
    walk = scans.walk

    def without_fake(folder, refuse, **options):  # as for a user who may not read it, which root always may
        for entry, entered in walk(folder, refuse, **options):
            if entry.name == "fake":
                refuse(entry.path, PermissionError(13, "Permission denied"))
            elif not entry.path.startswith(str(root / "fake")):
                yield entry, entered

    monkeypatch.setattr(scans, "walk", without_fake)
    found = refusal(root, LabelRules(classes=("more=skip",)))
    assert found.startswith("0 fake and 8 real images; passed over: fake/ (unreadable folder: Permission denied), 3 ")


def test_copies_of_one_image_are_said_to_be_the_same(make_folder):
    root = make_folder({"real": 20, "fake": 1})
    for number in range(2, 41):
        shutil.copy(root / "fake" / "1.png", root / "fake" / f"{number}.png")
    found = refusal(root)
    assert found.endswith(
        "all 40 fake images are the same, or near-copies: add different ones, since copies share a split"
    )


def test_copies_of_two_images_are_counted(make_folder):
    root = make_folder({"real": 20, "fake": 2})
    for number in range(3, 21):
        shutil.copy(root / "fake" / f"{1 + number % 2}.png", root / "fake" / f"{number}.png")
    assert "all 20 fake images are copies of 2 images: add different ones" in refusal(root)


@pytest.mark.parametrize(("name", "only", "missing"), [("test", "fake", "real"), ("val", "real", "fake")])
def test_a_given_split_without_a_class_is_named_and_no_seed_advised(make_folder, name, only, missing):
    root = make_folder({"train/real": 20, "train/fake": 20, f"{name}/{only}": 6})
    found = refusal(root)
    assert f"the given {name} folders hold no {missing} images, which no seed changes: add some there" in found
    assert "--seed" not in found
