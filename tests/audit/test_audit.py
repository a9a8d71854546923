from __future__ import annotations

import json
import os
import re

import damaged_copies
import pytest
from PIL import Image

from fakereal.__main__ import main
from fakereal.audit import audit, report
from fakereal.dataset.scan import scan
from fakereal.errors import DataError
from fakereal.preprocessing import Preprocessing


@pytest.fixture
def leaky(make_image, tmp_path):
    """Twelve images per class; the fakes are PNG, the reals JPEG and larger."""
    for number in range(12):
        make_image(tmp_path / "leaky" / "fake" / f"{number}.png", number)
        make_image(tmp_path / "leaky" / "real" / f"{number}.jpg", 100 + number, size=(48, 40), quality=80)
    return tmp_path / "leaky"


@pytest.fixture
def sound(make_image, tmp_path):
    """Twelve images per class, all encoded alike."""
    for number in range(24):
        folder = tmp_path / "sound" / ("fake", "real")[number % 2]
        make_image(folder / f"{number:02}.jpg", number, quality=90)
    return tmp_path / "sound"


def test_a_leaky_set_is_reported_with_the_command_to_run_and_strict_exits_with_1(leaky, capsys):
    assert main(["audit", str(leaky), "--strict"]) == 1
    shown = capsys.readouterr().out
    assert "shortcut found: file format alone separates fake from real (AUC 1.00" in shown
    assert "PNG: 12 of 12 fakes, 0 of 12 reals" in shown
    assert f"python train_model.py --data {leaky} --neutralize" in shown


def test_the_command_to_run_next_repeats_the_options_about_folders(leaky, capsys):
    (leaky / "fake").rename(leaky / "cats 1")
    assert main(["audit", str(leaky), "--class", "cats 1=fake"]) == 0
    assert f"train_model.py --data {leaky} --class 'cats 1=fake' --neutralize" in capsys.readouterr().out


def test_a_sound_set_passes_with_strict(sound, capsys):
    assert main(["audit", str(sound), "--strict"]) == 0
    assert "no shortcut found: " in capsys.readouterr().out


def test_the_neutral_copy_of_a_leaky_set_has_no_shortcut(leaky, tmp_path, capsys):
    assert main(["audit", str(leaky), "--neutralize", str(tmp_path / "neutral")]) == 0
    assert main(["audit", str(tmp_path / "neutral"), "--strict"]) == 0
    assert "no shortcut found: " in capsys.readouterr().out


def test_the_report_needs_no_other_file_and_names_every_file(leaky, make_image, tmp_path, capsys):
    make_image(leaky / "fake" / "<img src=x onerror=alert(1)>.png", 7)  # also a copy of 7.png
    make_image(leaky / "real" / "0 again.jpg", 100, size=(48, 40), quality=80)
    (leaky / "fake" / "empty.png").touch()
    assert main(["audit", str(leaky), "--report", str(tmp_path / "report")]) == 0
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


def test_an_image_in_both_classes_is_a_finding(sound, make_image):
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
    assert main(["audit", str(sound), "--report", str(tmp_path / "report")]) == 0
    tree = json.loads((tmp_path / "report" / "audit.json").read_text())
    refused = {row["image"]: row["detail"] for kind in ("unreadable", "truncated") for row in tree["files"][kind]}
    dataset = scan(sound, Preprocessing())
    assert set(refused) == {item.path.relative_to(sound).as_posix() for item in dataset.skipped if item.failed}
    assert all(refused.values())
    for name, damage in made.items():
        if damage in ("text", "empty", "pipe", "dead_link"):
            assert f"real/damaged/{name}" in refused


def test_odd_files_are_listed_with_the_reason(sound, make_image, tmp_path):
    make_image(sound / "fake" / "tiny.png", 31, (16, 40))
    make_image(sound / "fake" / "long.png", 32, (200, 40))
    make_image(sound / "fake" / "lies.png", 33, format="JPEG")
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "green")]
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


def test_options_about_folders_are_taken(make_folder, tmp_path, capsys):
    root = make_folder({"0": 6, "1": 6, "masks": 1})
    assert main(["audit", str(root), "--class", "0=real", "--class", "1=fake", "--class", "masks=skip"]) == 0
    shown = capsys.readouterr()
    assert "12 images, 6 fake (50.0%), 6 real (50.0%)" in shown.out
    assert "6 fake and 6 real images are too few to judge anything by" in shown.out
    assert ["1/", "fake", "-", "-", "6"] in [line.split() for line in shown.err.splitlines()]
    labels = tmp_path / "labels.csv"
    labels.write_text("image,is_fake\n" + "".join(f"{a}/{n}.png,{a}\n" for a in (0, 1) for n in range(1, 7)))
    assert main(["audit", str(root), "--labels", str(labels)]) == 0
    assert "12 images, 6 fake (50.0%), 6 real (50.0%)" in capsys.readouterr().out


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


def test_the_check_before_training_names_the_shortcut(leaky):
    dataset = scan(leaky, Preprocessing())
    tree, lines = report.before_training(dataset.records, (), dataset, neutralized=False)
    assert lines[0].startswith("warning: shortcut found: ")
    assert tree["findings"][0]["level"] == "finding"
    tree, lines = report.before_training(dataset.records, (), dataset, neutralized=True)
    assert tree["findings"][0]["level"] == "note"
    assert "neutralizes" in lines[-1]


def test_label_errors_need_a_report_folder(sound, capsys):
    from fakereal.cli import run_cli

    assert run_cli(lambda argv: main(["audit", str(sound), "--label-errors"])) == 2
    assert "expected --report DIR too" in capsys.readouterr().err


def test_a_missing_folder_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        main(["audit", str(tmp_path / "nowhere")])
