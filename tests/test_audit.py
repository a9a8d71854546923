from __future__ import annotations

import json
import os
import re

import damaged_copies
import numpy as np
import pytest
from PIL import Image

from fakereal.__main__ import main
from fakereal.audit import audit, report, shortcuts
from fakereal.dataset import image_metadata
from fakereal.dataset.scan import scan
from fakereal.errors import DataError
from fakereal.labels import FAKE, REAL
from fakereal.preprocessing import Preprocessing

LABELS = np.array([FAKE, REAL] * 40)


def category(name, words):
    values = np.array(words, dtype=object)
    return shortcuts.Feature(name, {name: values}, values)


def judged(*features, labels=LABELS, groups=None):
    return shortcuts.probe(features, labels, range(len(labels)) if groups is None else groups)


@pytest.fixture
def leaky(make_image, tmp_path):
    """Twelve pictures a class; the fakes are PNG, the reals JPEG and larger."""
    for number in range(12):
        make_image(tmp_path / "leaky" / "fake" / f"{number}.png", number)
        make_image(tmp_path / "leaky" / "real" / f"{number}.jpg", 100 + number, size=(48, 40), quality=80)
    return tmp_path / "leaky"


@pytest.fixture
def sound(make_image, tmp_path):
    """Twelve pictures a class, all encoded alike."""
    for number in range(24):
        folder = tmp_path / "sound" / ("fake", "real")[number % 2]
        make_image(folder / f"{number:02}.jpg", number, quality=90)
    return tmp_path / "sound"


def test_a_feature_that_decides_has_an_auc_of_1_and_an_interval_that_is_no_certainty():
    found = judged(category("format", np.where(LABELS == FAKE, "PNG", "JPEG").tolist()))
    assert found.auc == 1.0
    assert 0.9 < found.interval[0] < 1.0 == found.interval[1]
    assert found.separates
    assert found.features[0].values[0] == "PNG: 40 of 40 fakes, 0 of 40 reals"


def test_features_that_say_nothing_are_not_flagged():
    chance = np.random.default_rng(0)
    words = chance.choice(["a", "b", "c"], len(LABELS)).tolist()
    found = judged(category("word", words), shortcuts.Feature("number", {"number": chance.normal(size=len(LABELS))}))
    assert found.interval[0] <= 0.5 <= found.interval[1]
    assert not found.separates
    assert found.partial == ()


def test_two_features_that_tell_only_together_are_found():
    labels = np.tile(LABELS, 5)
    one = np.random.default_rng(0).integers(0, 2, len(labels))
    found = judged(category("one", one.astype(str)), category("other", (one ^ labels).astype(str)), labels=labels)
    assert found.auc > 0.95
    assert max(feature.auc for feature in found.features) < 0.65
    assert "together" in shortcuts.file_verdict(found)


def test_copies_are_not_learnt_and_judged_at_once():
    groups = np.arange(80) // 4  # four copies of each of 20 pictures, and labels that are dealt out at random
    labels = np.random.default_rng(1).permutation(np.repeat([FAKE, REAL], 10))[groups]
    own = shortcuts.Feature("own", {"own": groups.astype(float)})
    assert judged(own, labels=labels).separates
    grouped = judged(own, labels=labels, groups=groups)
    assert not grouped.separates
    assert grouped.interval[1] - grouped.interval[0] > 0.35  # of 20 pictures, not of 80


def test_part_of_a_class_that_gives_itself_away_is_named_though_the_auc_is_low():
    words = ["PNG" if label == FAKE and number % 10 == 0 else "JPEG" for number, label in enumerate(LABELS)]
    assert judged(category("format", words)).partial == ()  # 8 of 80, by chance perhaps
    words = ["PNG" if label == FAKE and number % 3 == 0 else "JPEG" for number, label in enumerate(LABELS)]
    found = judged(category("format", words))
    assert found.partial[0] in ("PNG: 14 of 40 fakes, 0 of 40 reals", "JPEG: 26 of 40 fakes, 40 of 40 reals")


def test_too_few_pictures_give_no_verdict():
    found = judged(category("format", ["PNG", "JPEG"] * 9), labels=LABELS[:18])
    assert found.auc is None
    assert "too few" in shortcuts.file_verdict(found)


@pytest.mark.parametrize(("auc", "fakes", "reals"), [(1.0, 25, 40), (0.0, 25, 40), (0.5, 10, 10), (0.8, 2000, 30)])
def test_intervals_hold_the_auc_stay_within_0_and_1_and_shrink_with_more_pictures(auc, fakes, reals):
    low, high = shortcuts.auc_interval(auc, fakes, reals)
    assert 0 <= low <= auc <= high <= 1
    narrower = shortcuts.auc_interval(auc, fakes * 10, reals * 10)
    assert 0 < narrower[1] - narrower[0] < high - low


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


@pytest.mark.parametrize("quality", [5, 30, 50, 75, 90, 95, 100])
def test_the_quality_of_a_jpeg_is_read_from_its_table(make_image, tmp_path, quality):
    assert image_metadata.read_file_facts(make_image(tmp_path / "1.jpg", quality=quality)).jpeg_quality == quality


def test_a_leaky_set_is_flagged_with_the_command_that_helps_and_strict_makes_that_exit_code_1(leaky, capsys):
    assert main(["audit", str(leaky), "--strict"]) == 1
    shown = capsys.readouterr().out
    assert "shortcut found: file format alone separates fake from real (AUC 1.00" in shown
    assert "PNG: 12 of 12 fakes, 0 of 12 reals" in shown
    assert f"python train_model.py --data {leaky} --neutralize" in shown


def test_a_sound_set_passes_with_strict(sound, capsys):
    assert main(["audit", str(sound), "--strict"]) == 0
    assert "no shortcut found: " in capsys.readouterr().out


def test_the_neutral_copy_of_a_leaky_set_gives_nothing_away(leaky, tmp_path, capsys):
    assert main(["audit", str(leaky), "--neutralize", str(tmp_path / "neutral")]) == 0
    assert main(["audit", str(tmp_path / "neutral"), "--strict"]) == 0
    assert "no shortcut found: " in capsys.readouterr().out


def test_the_report_stands_alone_and_names_every_file(leaky, make_image, tmp_path, capsys):
    make_image(leaky / "fake" / "<img src=x onerror=alert(1)>.png", 7)  # also a copy of 7.png
    make_image(leaky / "real" / "0 again.jpg", 100, size=(48, 40), quality=80)
    (leaky / "fake" / "empty.png").touch()
    assert main(["audit", str(leaky), "--report", str(tmp_path / "report")]) == 1
    page = (tmp_path / "report" / "report.html").read_text()
    tree = json.loads((tmp_path / "report" / "audit.json").read_text())
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert page.count("data:image/") >= 4
    assert len(page) < 1_000_000
    assert tree["shortcut"]["auc"] == 1.0
    assert {"name", "auc", "interval", "values"} == set(tree["shortcut"]["features"][0])
    assert tree["duplicates"]["identical"] == 2
    assert [row["image"] for row in tree["files"]["unreadable"]] == ["fake/empty.png"]
    assert {"kind", "level", "what", "how_many", "what_to_do", "command"} == set(tree["findings"][0])


def test_a_picture_in_both_classes_is_a_finding(sound, make_image):
    make_image(sound / "real" / "copy.jpg", 0, quality=90)
    found = audit.findings(audit.audit_dataset(scan(sound, Preprocessing())))
    assert [finding.kind for finding in found if finding.serious] == ["identical_across_classes"]
    assert "fake/00.jpg and real/copy.jpg" in found[0].what


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_every_kind_of_broken_file_is_named_and_nothing_is_raised(sound, make_image, tmp_path, capsys):
    good = [make_image(tmp_path / "source" / f"1{suffix}", 5, (40, 30)) for suffix in damaged_copies.SUFFIXES]
    made = damaged_copies.make(good, sound / "real" / "damaged", 150, seed=4)
    assert set(made.values()) >= {
        "cut",
        "text",
        "empty",
        "pipe",
        "dead_link",
        "random_bytes",
        "flip_bits_of_the_header",
    }
    assert main(["audit", str(sound), "--report", str(tmp_path / "report")]) == 1
    tree = json.loads((tmp_path / "report" / "audit.json").read_text())
    refused = {row["image"]: row["detail"] for kind in ("unreadable", "truncated") for row in tree["files"][kind]}
    dataset = scan(sound, Preprocessing())
    assert set(refused) == {item.path.relative_to(sound).as_posix() for item in dataset.skipped if item.failed}
    assert all(refused.values())
    for name, damage in made.items():
        if damage in ("text", "empty", "pipe", "dead_link"):
            assert f"real/damaged/{name}" in refused


def test_odd_files_are_named_each_with_what_is_odd(sound, make_image, tmp_path):
    make_image(sound / "fake" / "tiny.png", 31, (16, 40))
    make_image(sound / "fake" / "long.png", 32, (200, 40))
    make_image(sound / "fake" / "lies.png", 33, format="JPEG")
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green")]
    frames[0].save(sound / "fake" / "film.gif", save_all=True, append_images=frames[1:])
    files = audit.audit_dataset(scan(sound, Preprocessing())).files
    found = {
        kind: [(problem.path.name, problem.detail) for problem in problems]
        for kind, problems in files.items()
        if problems
    }
    assert found == {
        "tiny": [("tiny.png", "16x40")],
        "odd_shaped": [("long.png", "200x40")],
        "wrong_extension": [("lies.png", "the content is JPEG")],
        "animated": [("film.gif", "2 frames; only the first is used")],
    }


def test_file_names_alone_are_a_note_and_no_shortcut(make_image, tmp_path):
    for number in range(12):
        make_image(tmp_path / "images" / "fake" / f"{number + 1}.png", number)
        make_image(tmp_path / "images" / "real" / f"IMG_{number:04}.png", 50 + number)
    audited = audit.audit_dataset(scan(tmp_path / "images", Preprocessing()))
    assert not audited.shortcut.separates
    assert audited.names.separates
    assert [(finding.kind, finding.serious) for finding in audit.findings(audited)] == [("file_names", False)]


def test_counts_say_class_split_and_source(make_folder):
    folders = {
        f"{source}/{split}/{name}": 6 for source in "ab" for split in ("train", "test") for name in ("fake", "real")
    }
    audited = audit.audit_dataset(scan(make_folder(folders), Preprocessing()))
    assert audited.counts["by_class"] == {"fake": 24, "real": 24}
    assert audited.counts["by_split"] == {"test": {"fake": 12, "real": 12}, "train": {"fake": 12, "real": 12}}
    assert audited.counts["by_source"]["a"] == {"fake": 12, "real": 12}
    assert audited.counts["formats"]["fake"] == {"PNG": 24}


def test_the_audit_does_not_depend_on_the_run(leaky):
    trees = []
    for _ in range(2):
        audited = audit.audit_dataset(scan(leaky, Preprocessing()))
        trees.append(json.dumps(report.as_json(audited, audit.findings(audited)), allow_nan=False))
    assert trees[0] == trees[1]


def test_before_training_the_shortcut_is_said_in_short(leaky):
    dataset = scan(leaky, Preprocessing())
    tree, lines = report.before_training(dataset.records, (), dataset.root, neutralized=False)
    assert lines[0].startswith("warning: shortcut found: ")
    assert tree["findings"][0]["level"] == "finding"
    tree, lines = report.before_training(dataset.records, (), dataset.root, neutralized=True)
    assert tree["findings"][0]["level"] == "note"
    assert "neutralizes" in lines[-1]


def test_label_errors_need_a_report_folder(sound, capsys):
    from fakereal.cli import run_cli

    assert run_cli(lambda argv: main(["audit", str(sound), "--label-errors"])) == 2
    assert "expected --report DIR too" in capsys.readouterr().err


def test_a_missing_folder_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        main(["audit", str(tmp_path / "nowhere")])
