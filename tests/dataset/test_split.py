from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import pytest
from PIL import Image

from fakereal.config import as_dict, load
from fakereal.dataset.scan import Dataset, Record, scan
from fakereal.dataset.split import (
    SPLITS,
    read_manifest,
    scan_and_split,
    split_dataset,
    summary,
    warnings,
    write_manifest,
)
from fakereal.errors import ConfigError, DataError
from fakereal.labels import FAKE, REAL
from fakereal.preprocessing import Preprocessing

SMALL = Preprocessing(32)


def record(root, name, label, content, split=None, source=""):
    return Record(root / name, label, source, f"sha of {name}", content, split)


@pytest.fixture
def dataset(tmp_path):
    """1,000 images, of which no file needs to exist."""
    records = [record(tmp_path, f"{number:04}", number % 2, f"content {number}") for number in range(1000)]
    return Dataset(tmp_path, tuple(records), ())


def where(split):
    return {item.path.name: name for name in SPLITS for item in getattr(split, name)}


def with_more(dataset, *records):
    return Dataset(dataset.root, (*dataset.records, *records), ())


def test_the_shares_hold_in_expectation_for_each_class(dataset):
    split = split_dataset(dataset, seed=0)
    for name, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        for label in (FAKE, REAL):
            count = sum(item.label == label for item in getattr(split, name))
            assert abs(count / 500 - share) < 0.07  # over three standard deviations of a binomial


def test_other_shares_are_kept_too(dataset):
    split = split_dataset(dataset, seed=0, shares=(0.8, 0.1, 0.1))
    assert abs(len(split.train) - 800) < 50
    assert abs(len(split.val) - 100) < 40


def test_adding_a_file_moves_no_other(dataset):
    before = where(split_dataset(dataset, seed=0))
    after = where(split_dataset(with_more(dataset, record(dataset.root, "new", REAL, "new")), seed=0))
    after.pop("new")
    assert after == before


def test_order_and_names_do_not_matter(dataset):
    renamed = [
        Record(dataset.root / f"moved {item.path.name}", item.label, "elsewhere", item.sha256, item.content, None)
        for item in reversed(dataset.records)
    ]
    before = where(split_dataset(dataset, seed=0))
    after = where(split_dataset(Dataset(dataset.root, tuple(renamed), ()), seed=0))
    assert after == {f"moved {name}": split for name, split in before.items()}


def test_the_same_seed_gives_the_same_split_and_another_a_different_one(dataset):
    assert split_dataset(dataset, seed=1) == split_dataset(dataset, seed=1)
    assert where(split_dataset(dataset, seed=1)) != where(split_dataset(dataset, seed=2))


def test_identical_images_stay_together(dataset):
    copies = [record(dataset.root, f"copy {number}", number % 2, f"content {number}") for number in range(1000)]
    split = where(split_dataset(with_more(dataset, *copies), seed=0))
    assert all(split[f"{number:04}"] == split[f"copy {number}"] for number in range(1000))


def test_an_image_in_both_classes_is_left_out_every_time(dataset):
    split = split_dataset(with_more(dataset, record(dataset.root, "doubtful", REAL, "content 0")), seed=0)
    assert {(item.record.path.name, item.reason) for item in split.left_out} == {
        ("0000", "the same image is labeled fake and real"),
        ("doubtful", "the same image is labeled fake and real"),
    }
    assert not {"0000", "doubtful"} & set(where(split))


def given(dataset, name_of):
    records = [
        Record(item.path, item.label, "", item.sha256, item.content, name_of(number))
        for number, item in enumerate(dataset.records)
    ]
    return Dataset(dataset.root, tuple(records), ())


def test_a_given_split_is_kept(dataset):
    kept = given(dataset, lambda number: SPLITS[number // 10 % 3])
    assert where(split_dataset(kept, seed=0)) == {item.path.name: item.split for item in kept.records}


def test_a_missing_val_is_carved_out_of_train_and_test_is_kept(dataset):
    kept = given(dataset, lambda number: "test" if number >= 800 else "train")
    split = split_dataset(kept, seed=0)
    assert {item.path.name for item in split.test} == {f"{number:04}" for number in range(800, 1000)}
    assert abs(len(split.val) / 800 - 0.25) < 0.06


def test_a_missing_test_is_carved_out_of_train(dataset):
    split = split_dataset(given(dataset, lambda number: "val" if number >= 800 else "train"), seed=0)
    assert len(split.val) == 200
    assert abs(len(split.test) / 800 - 0.25) < 0.06


def test_train_alone_is_split_like_images_without_a_split(dataset):
    assert where(split_dataset(given(dataset, lambda number: "train"), seed=0)) == where(split_dataset(dataset, seed=0))


def test_given_test_images_that_also_train_are_left_out_of_the_test(dataset):
    kept = given(dataset, lambda number: SPLITS[number // 10 % 3])
    train = kept.records[0]
    copies = [record(kept.root, f"copy in {name}", train.label, train.content, name) for name in ("val", "test")]
    split = split_dataset(with_more(kept, *copies), seed=0)
    assert {(item.record.path.name, item.reason) for item in split.left_out} == {
        ("copy in val", "in val, but the same image is in train"),
        ("copy in test", "in test, but the same image is in train"),
    }
    assert where(split)[train.path.name] == "train"


def test_a_split_without_a_class_is_one_clear_line(tmp_path):
    few = Dataset(tmp_path, tuple(record(tmp_path, str(n), n % 2, str(n)) for n in range(4)), ())
    found = r"found train \d fake and \d real, val .* too few to judge a detector: collect at least 50 .*--split FILE"
    with pytest.raises(DataError, match=found):
        split_dataset(few, seed=0)


@pytest.mark.parametrize("shares", [(0.6, 0.2, 0.3), (1.0, 0.0, 0.0), (1.2, -0.1, -0.1)])
def test_shares_that_do_not_add_up_are_refused(dataset, shares):
    with pytest.raises(ConfigError, match="shares"):
        split_dataset(dataset, 0, shares)


@pytest.fixture
def images(make_folder):
    """Real files: 30 fake ones, 30 real ones of two sources, one image in both classes."""
    root = make_folder({"club/real": 15, "web/real": 15, "web/fake": 30})
    shutil.copy(root / "web/fake/1.png", root / "club/real/doubtful.png")
    return root


def test_a_manifest_gives_the_same_split_back(images, tmp_path):
    dataset = scan(images, SMALL)
    split = split_dataset(dataset, seed=0)
    write_manifest(tmp_path / "split.csv", split, images)
    assert read_manifest(tmp_path / "split.csv", dataset) == split
    with (tmp_path / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "sha256", "label", "source", "split", "reason"]
    assert len(rows) == 61
    doubtful = [row for row in rows if row["split"] == "left_out"]
    assert {row["path"] for row in doubtful} == {"club/real/doubtful.png", "web/fake/1.png"}
    assert {row["reason"] for row in doubtful} == {"the same image is labeled fake and real"}


def test_a_manifest_survives_odd_names(images, tmp_path):
    for number, name in enumerate(
        ["new\nline.png", 'a "quoted", name.png', "日本.png", b"\xff.png".decode(errors="surrogateescape")]
    ):
        (images / f"web/fake/{number + 2}.png").rename(images / "web/fake" / name)
    dataset = scan(images, SMALL)
    split = split_dataset(dataset, seed=0)
    write_manifest(tmp_path / "split.csv", split, images)
    assert read_manifest(tmp_path / "split.csv", dataset) == split


def test_a_manifest_finds_renamed_images_by_their_content(images, tmp_path):
    split = split_dataset(scan(images, SMALL), seed=0)
    write_manifest(tmp_path / "split.csv", split, images)
    (images / "moved").mkdir()
    (images / "web/real").rename(images / "moved/real")
    again = read_manifest(tmp_path / "split.csv", scan(images, SMALL))
    assert [{item.content for item in getattr(again, name)} for name in SPLITS] == [
        {item.content for item in getattr(split, name)} for name in SPLITS
    ]


def test_a_manifest_leaves_out_what_does_not_fit_and_says_why(images, make_image, tmp_path):
    write_manifest(tmp_path / "split.csv", split_dataset(scan(images, SMALL), seed=0), images)
    make_image(images / "web/fake/new.png", seed=1000)
    make_image(images / "web/fake/2.png", seed=1001)
    (images / "web/fake/3.png").rename(images / "web/real/relabeled.png")
    (images / "web/fake/4.png").unlink()
    split = read_manifest(tmp_path / "split.csv", scan(images, SMALL))
    reasons = {item.record.path.relative_to(images).as_posix(): item.reason for item in split.left_out}
    for name in ("club/real/doubtful.png", "web/fake/1.png"):
        assert reasons.pop(name) == "the same image is labeled fake and real"
    assert reasons == {
        "web/fake/new.png": "not in the split file",
        "web/fake/2.png": "its content changed since the split file was written",
        "web/real/relabeled.png": "fake in the split file, but in a folder of real images",
        "web/fake/4.png": "in the split file, but not among the readable images",
    }


def test_what_a_manifest_leaves_out_is_written_again(images, tmp_path):
    write_manifest(tmp_path / "split.csv", split_dataset(scan(images, SMALL), seed=0), images)
    (images / "web/fake/4.png").unlink()
    dataset = scan(images, SMALL)
    split = read_manifest(tmp_path / "split.csv", dataset)
    write_manifest(tmp_path / "again.csv", split, images)
    assert read_manifest(tmp_path / "again.csv", dataset).test == split.test


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the columns"),
        ("path,label\n1.png,fake\n", "missing: sha256, source, split, reason"),
        ("path,sha256,label,source,split,reason\n1.png,00,fake,,training,\n", "row 1: .*'training'"),
        ("path,sha256,label,source,split,reason\n1.png,00,cat,,train,\n", "row 1: .*'cat'"),
        ("path,sha256,label,source,split,reason\n1.png,00,fake,,train,\n", "check that .* belongs to"),
    ],
)
def test_a_file_that_is_not_a_manifest_of_these_images_is_one_clear_line(dataset, tmp_path, text, message):
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path / "split.csv", dataset)


def test_a_missing_manifest_is_one_clear_line(dataset, tmp_path):
    with pytest.raises(DataError, match="the split file can't be read: No such file"):
        read_manifest(tmp_path / "split.csv", dataset)


def test_the_summary_counts_splits_classes_sources_and_what_is_left_out(images):
    split = split_dataset(scan(images, SMALL), seed=0)
    lines = summary(split)
    assert [line.split()[0] for line in lines[:3]] == list(SPLITS)
    assert sum(int(line.split()[1]) for line in lines[:3]) == 59
    assert "club: train 0 fake" in lines[3]
    assert lines[-1].startswith("left out 2: the same image is labeled fake and real (")


def copied(original, *copies):
    """Save an image again, smaller, as a JPEG: near-copies, but not identical ones."""
    for number, copy in enumerate(copies):
        copy.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(original) as image:
            image.resize((30 - number, 30)).save(copy, quality=90 - number)


def by_path(split, root):
    return {item.path.relative_to(root).as_posix(): name for name in SPLITS for item in getattr(split, name)}


def test_near_copies_stay_together_and_move_no_other_image(images):
    before = by_path(split_dataset(scan(images, SMALL), seed=0), images)
    originals = [f"web/fake/{number}.png" for number in range(2, 21)]
    for name in originals:
        copied(images / name, *(images / f"{name} copy {number}.jpg" for number in range(3)))
    split = split_dataset(scan(images, SMALL), seed=0)
    after = by_path(split, images)
    assert len(split.near) == len(originals)
    assert {before[name] for name in originals} == set(SPLITS)
    assert all(len({after[path] for path in after if path.startswith(name)}) == 1 for name in originals)
    others = {path: name for path, name in before.items() if path not in originals}
    assert others.items() <= after.items()


def test_a_folder_without_near_copies_is_divided_by_the_contents_alone(images):
    dataset = scan(images, SMALL)
    bare = [replace(record, thumbnail=b"") for record in dataset.records]
    assert split_dataset(dataset, 0).near == ()
    assert where(split_dataset(dataset, 0)) == where(split_dataset(replace(dataset, records=tuple(bare)), 0))


def test_near_copies_in_given_splits_stay_there_with_a_warning(make_folder):
    root = make_folder({"train/real": 20, "train/fake": 20, "test/real": 5, "test/fake": 5})
    copied(root / "train/real/1.png", root / "test/real/copy.jpg", root / "test/fake/copy.jpg")
    split = split_dataset(scan(root, SMALL), seed=0)
    placed = by_path(split, root)
    assert placed["test/real/copy.jpg"] == placed["test/fake/copy.jpg"] == "test"
    assert placed["train/real/1.png"] != "test"
    (line,) = (line for line in summary(split) if "near-copies" in line)
    trained = placed["train/real/1.png"]
    assert line.startswith(
        f"warning: 2 of test are near-copies of images in {trained}, which makes its metrics too good ("
    )
    assert "copy.jpg" in line


def test_what_a_given_test_holds_moves_no_other_image(make_folder):
    root = make_folder({"train/real": 20, "train/fake": 20, "test/real": 5, "test/fake": 5})
    before = by_path(split_dataset(scan(root, SMALL), seed=0), root)
    for number in range(1, 21):
        copied(root / f"train/real/{number}.png", root / f"test/real/copy {number}.jpg")
    assert before.items() <= by_path(split_dataset(scan(root, SMALL), seed=0), root).items()


def test_the_summary_says_which_near_copies_stay_together(images):
    copied(images / "web/fake/2.png", images / "web/fake/copy.jpg")
    (line,) = (line for line in summary(split_dataset(scan(images, SMALL), seed=0)) if "near-copies" in line)
    assert line.startswith("near-copies kept together: 2 (")


def test_a_manifest_that_separates_near_copies_is_kept_with_a_warning(images, tmp_path):
    dataset = scan(images, SMALL)
    split = split_dataset(dataset, seed=0)
    copied(split.train[0].path, split.train[0].path.with_name("copy.jpg"))
    dataset = scan(images, SMALL)
    copy = next(record for record in dataset.records if record.path.name == "copy.jpg")
    write_manifest(tmp_path / "split.csv", replace(split, test=(*split.test, copy)), images)
    again = read_manifest(tmp_path / "split.csv", dataset)
    assert copy in again.test
    assert [line for line in summary(again) if "near-copies" in line] == [
        f"warning: 1 of test are near-copies of images in train, which makes its metrics too good ({copy.path})"
    ]


@pytest.mark.slow
@pytest.mark.data
def test_cifakes_378_test_fakes_that_also_train_are_left_out(data_dir):
    root = data_dir("cifake")
    listed = json.loads((data_dir.archives / "cifake_duplicates.json").read_text())
    split = split_dataset(scan(root, SMALL), seed=0)
    names = {item.record.path.relative_to(root).as_posix() for item in split.left_out}
    assert names == {f"test/FAKE/{name}" for name in listed["test_FAKE_pixel_identical_to_train_FAKE"]}
    assert len(names) == 378
    assert (len(split.train) + len(split.val), len(split.test)) == (100_000, 20_000 - 378)


def test_options_about_folders_decide_what_is_trained_on_and_are_kept_in_the_configuration(make_folder, capsys):
    root = make_folder({"train/0": 9, "train/1": 9, "dev/0": 3, "dev/1": 3, "unseen/0": 4, "unseen/1": 4})
    flags = {"data.path": str(root), "data.classes": ["0=real", "1=fake"], "data.split_folders": ["unseen=test"]}
    config = load(None, flags)
    _, split = scan_and_split(config)
    assert [len(getattr(split, name)) for name in SPLITS] == [18, 6, 8]
    assert {item.label for item in split.test if "/0/" in item.path.as_posix()} == {REAL}
    assert as_dict(config)["data"]["classes"] == ["0=real", "1=fake"]
    shown = capsys.readouterr().err
    assert shown.index("which folder counts as what") < shown.index("train ")
    with pytest.raises(DataError, match=r"whether 0 \(16 images\), 1 \(16 images\) are fake or real"):
        scan_and_split(load(None, {"data.path": str(root)}))


def unequal(root, fake, real):
    records = [record(root, f"{number:04}", int(number >= fake), f"content {number}") for number in range(fake + real)]
    return split_dataset(Dataset(root, tuple(records), ()), seed=0)


def test_classes_of_1_to_50_are_a_warning_that_names_the_weights(tmp_path):
    split = unequal(tmp_path, 100, 5000)
    (line,) = warnings(split, weighted=False)
    assert line.startswith("warning: 100 fake and 5,000 real images (1:50): the detector will hardly find the fake")
    assert "--class-weights" in line
    assert warnings(split, weighted=True) == warnings(unequal(tmp_path, 500, 500), weighted=False) == []


def test_twelve_images_are_said_to_be_too_few_to_judge(tmp_path):
    names = [(split, number) for split in SPLITS for number in range(4)]
    records = [record(tmp_path, f"{split}{number}", number % 2, f"{split} {number}", split) for split, number in names]
    split = split_dataset(Dataset(tmp_path, tuple(records), ()), seed=0)
    (line,) = warnings(split, weighted=False)
    assert line.startswith("warning: 2 fake and 2 real test images are too few to judge a detector")


def test_many_sources_take_few_lines(tmp_path):
    records = [
        record(tmp_path, f"{number:04}", number % 2, f"content {number}", source=f"source {number % 40:02}")
        for number in range(1000)
    ]
    lines = summary(split_dataset(Dataset(tmp_path, tuple(records), ()), seed=0))
    assert lines[-1] == "  25 more sources: 625 images"
    assert len(lines) == 3 + 15 + 1
