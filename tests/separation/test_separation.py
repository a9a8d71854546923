import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from heic_images import ROTATED
from separation_sets import folder_of_three, journal_in, names_in, predictions, separate, separated, tree, write_image

import image_separate
from fakereal.separation.pairing import prediction_file_names
from fakereal.separation.voting import Ballot, Vote, majority_vote

SCRIPT = Path(image_separate.__file__)
HACKATHON = SCRIPT.parent.parent / "shared" / "data" / "hackathon.tar.xz"


# Pairing


def test_a_folder_is_paired_with_its_three_names_and_an_images_folder_also_with_the_short_ones():
    assert prediction_file_names("x") == ("x.json", "x_preds.json", "x_predictions.json")
    assert prediction_file_names("x_images")[3:] == ("x_preds.json", "x_predictions.json")


@pytest.mark.parametrize("name", ["x.json", "x_preds.json", "x_predictions.json"])
def test_each_name_of_the_predictions_is_found(source, output, name):
    write_image(source / "x" / "1.png")
    predictions(source / name, "real")
    assert separate(source, "--output", output) == 0
    assert separated(output) == {"real_images/x__1.png"}


def test_heic_is_separated_and_what_is_no_image_stays_with_the_reason(source, output, capsys):
    for name, data in (
        ("1.heic", ROTATED),
        ("2", ROTATED),
        ("3.jpg", b"<!doctype html>"),
        ("4.jxl", b"\xff\x0a\xfa\x7f"),
    ):
        write_image(source / "x" / name).write_bytes(data)
    predictions(source / "x.json", "real", "fake", "real", "real")
    assert separate(source, "--output", output) == 1
    assert separated(output) == {"real_images/x__1.heic", "fake_images/x__2"}
    said = capsys.readouterr().out
    assert "HTML page, not an image: the download probably failed" in said
    assert "JPEG XL image, a format that is not read: convert it to PNG or JPEG" in said


def test_what_systems_leave_behind_is_passed_over_and_counted(source, output, capsys):
    folder_of_three(source)
    for name in ("__MACOSX/x/._1.png", "x/._1.png", "x/.ipynb_checkpoints/1.png"):
        write_image(source / name)
    assert separate(source, "--output", output) == 0
    assert len(separated(output)) == 3
    assert "hidden files and folders passed over (3), such as __MACOSX" in capsys.readouterr().err


def test_the_predictions_of_x_are_never_taken_for_those_of_x_images_too(source, output, capsys):
    folder_of_three(source, "x")
    write_image(source / "x_images" / "1.png")
    assert separate(source, "--output", output) == 1
    assert (source / "x_images" / "1.png").exists()
    assert "x_images/ (1 image): no prediction file" in capsys.readouterr().out


def test_predictions_lie_elsewhere_in_a_folder_or_are_named_one_by_one(source, output, tmp_path):
    folder_of_three(source)
    elsewhere = tmp_path / "runs"
    elsewhere.mkdir()
    predictions(elsewhere / "x.json", "real", "real", "real")
    assert separate(source, "--output", output, "--mode", "copy", "--predictions", elsewhere) == 0
    assert len(separated(output)) == 3
    assert all(name.startswith("real_images/") for name in separated(output))
    assert separate(source, "--output", tmp_path / "other", "--predictions", elsewhere / "x.json") == 0


def test_a_given_pair_overrides_what_the_names_say(source, output, tmp_path):
    folder_of_three(source)
    odd = predictions(tmp_path / "a=b.json", "real", "real", "real")
    assert separate(source, "--output", output, "--pair", f"x={odd}") == 0
    assert separated(output) == {f"real_images/x__{number}.png" for number in (1, 2, 3)}


def test_a_pair_of_missing_names_is_one_line_and_exit_code_2(source, output, capsys):
    folder_of_three(source)
    assert separate(source, "--output", output, "--pair", "x=missing.json") == 2
    assert capsys.readouterr().err == (
        f"error: --pair 'x=missing.json': there is no file missing.json, in {source} or as a path: check the name\n"
    )
    assert separate(source, "--output", output, "--pair", "y=missing.json") == 2
    assert "there is no folder y, in" in capsys.readouterr().err
    assert not output.exists()


def test_folders_without_any_predictions_are_exit_code_2_and_nothing_is_made(source, output, capsys):
    write_image(source / "x" / "1.png")
    assert separate(source, "--output", output) == 2
    assert "expected sub-folders with prediction files" in capsys.readouterr().err
    assert not output.exists()


def test_the_source_itself_may_be_paired_and_each_file_is_counted_once(source, output, tmp_path, capsys):
    folder_of_three(source)
    write_image(source / "1.png")
    write_image(source / "test" / "1.png")
    own = predictions(tmp_path / "own.json", "real")
    assert separate(source, "--output", output, "--pair", f".={own}") == 1
    assert separated(output) == {
        "real_images/raw__1.png",
        *(
            f"{folder}/x__{number}.png"
            for folder, number in (("fake_images", 1), ("real_images", 2), ("fake_images", 3))
        ),
    }
    assert capsys.readouterr().out.count("skipped ") == 1


def test_a_folder_given_to_skip_is_left_alone_and_not_listed(source, output, capsys):
    folder_of_three(source)
    write_image(source / "test" / "1.png")
    assert separate(source, "--output", output, "--skip", "test") == 0
    assert "test" not in capsys.readouterr().out.replace(str(output), "")
    assert separate(source, "--output", output, "--skip", "tset") == 2


def test_a_json_that_matches_no_folder_is_listed(source, output, capsys):
    folder_of_three(source)
    predictions(source / "typo_preds.json", "real")
    assert separate(source, "--output", output) == 1
    assert "typo_preds.json: matches no folder" in capsys.readouterr().out


def test_files_without_a_number_and_in_folders_within_are_found_by_their_path(source, output):
    write_image(source / "x" / "cat.png")
    write_image(source / "x" / "deep" / "7.png")
    predictions(source / "x.json", **{"cat.png": "fake", "deep/7.png": "real"})
    assert separate(source, "--output", output) == 0
    assert separated(output) == {"fake_images/x__cat.png", "real_images/x__deep__7.png"}


# Bad predictions


@pytest.mark.parametrize("text", ["", "{", '{"index": 1}', "\x00\x01", "[" * 100_000])
def test_a_json_that_cannot_be_read_is_listed_and_its_folder_is_left_alone(source, output, capsys, text):
    folder_of_three(source, "x")
    folder_of_three(source, "y")
    (source / "x_preds.json").write_text(text)
    assert separate(source, "--output", output) == 1
    assert len(names_in(source / "x")) == 3
    assert len(separated(output)) == 3
    out = capsys.readouterr().out
    assert out.count("unusable ") == 1
    assert re.search(r"unusable  \S*/x_preds.json: (expected|invalid JSON|it is empty)", out)
    assert "skipped   x/2.png: its prediction file can't be used (x_preds.json)" in out


def test_every_entry_that_cannot_be_used_is_counted_and_reported_and_the_others_are_used(source, output, capsys):
    folder = folder_of_three(source)
    entries = [
        {"index": 1, "prediction": "fake"},
        {"index": 2, "prediction": "maybe"},
        {"index": 77, "prediction": "real"},
        {"prediction": "real"},
        "nonsense",
        {"image": "../../secret.png", "prediction": "real"},
    ]
    (source / "x_preds.json").write_text(json.dumps(entries))
    assert separate(source, "--output", output) == 1
    unusable = [line for line in capsys.readouterr().out.splitlines() if line.startswith("unusable ")]
    assert separated(output) == {"fake_images/x__1.png"}
    assert names_in(folder) == ["2.png", "3.png"]
    assert len(unusable) == 1
    for each in ("entry 2", "entry 4", "entry 5", "index 77", "image '../../secret.png'"):
        assert each in unusable[0]
    problems = json.loads((output / "separation_report.json").read_text())["problems"]
    assert len(problems) == 5
    assert '"maybe"' in problems[0]


def test_300_wrong_entries_are_one_line_and_their_images_another(source, output, capsys):
    for number in range(1, 301):
        write_image(source / "x" / f"{number}.png", number)
    predictions(source / "x.json", **{f"cat{number}.png": "fake" for number in range(300)})
    folder_of_three(source, "y")
    assert separate(source, "--output", output) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"unusable  {source}/x.json: 300 entries for no image in x/"
        " (image 'cat0.png', image 'cat1.png', image 'cat2.png', ...)",
        "skipped   x/ (300 images): no entry in any prediction file (1.png, 10.png, 100.png, ...)",
    ]
    assert len(lines) < 15
    report = json.loads((output / "separation_report.json").read_text())
    assert (len(report["problems"]), len(report["stayed"])) == (300, 300)


def test_a_file_that_calls_an_image_both_fake_and_real_is_refused_unless_told_to_skip_it(source, output, capsys):
    folder = folder_of_three(source)
    entries = [{"index": 1, "prediction": label} for label in ("fake", "real")]
    entries += [{"index": 2, "prediction": "real"}, {"index": 2, "prediction": "real"}]
    (source / "x_preds.json").write_text(json.dumps(entries))
    before = tree(source)
    assert separate(source, "--output", output) == 2
    assert capsys.readouterr().err == (
        f"error: {source}/x_preds.json: an image is called both fake and real (1.png): correct the file, or pass"
        " --skip-conflicts to leave them out\n"
    )
    assert tree(source) == before
    assert separate(source, "--output", output, "--skip-conflicts") == 1
    assert (folder / "1.png").exists()
    assert separated(output) == {"real_images/x__2.png"}
    assert "one prediction file says both fake and real" in capsys.readouterr().out


def test_two_files_with_one_number_are_skipped_unless_an_entry_names_them_by_their_path(source, output, capsys):
    folder = folder_of_three(source)
    shutil.copy(folder / "1.png", folder / "1.jpg")
    shutil.copy(folder / "2.png", folder / "002.png")
    (source / "x_preds.json").write_text(
        json.dumps(
            [
                {"index": 1, "prediction": "fake"},
                {"index": 2, "prediction": "real"},
                {"index": 3, "prediction": "fake"},
                {"image": "002.png", "prediction": "real"},
            ]
        )
    )
    assert separate(source, "--output", output) == 1
    assert separated(output) == {"fake_images/x__3.png", "real_images/x__002.png"}
    assert names_in(folder) == ["1.jpg", "1.png", "2.png"]
    assert "several files have the same number" in capsys.readouterr().out


def test_a_null_prediction_skips_the_file_with_the_reason_from_the_json(source, output, capsys):
    folder = folder_of_three(source)
    entries = [{"index": 1, "prediction": None, "error": "truncated"}, {"index": 2, "prediction": "real"}]
    (source / "x_preds.json").write_text(json.dumps(entries))
    assert separate(source, "--output", output) == 1
    assert (folder / "1.png").exists()
    assert "truncated" in capsys.readouterr().out


def test_every_skipped_file_is_in_the_report_with_its_reason(source, output):
    folder_of_three(source)
    write_image(source / "test" / "9.png")
    write_image(source / "loose.png")
    (source / "x/2.png").write_bytes(b"not an image")
    separate(source, "--output", output)
    report = json.loads((output / "separation_report.json").read_text())
    assert report["counts"] == {"fake": 2, "real": 0}
    reasons = {entry["path"]: entry["reason"] for entry in report["stayed"]}
    assert reasons == {"loose.png": "loose", "test/9.png": "no_predictions", "x/2.png": "unreadable"}


# Voting


@pytest.mark.parametrize(
    ("votes", "min_agreement", "label"),
    [("f", 0.5, 0), ("ffr", 0.5, 0), ("frr", 0.6, 1), ("frr", 0.7, None), ("fr", 0.5, None), ("rrr", 1.0, 1)],
)
def test_the_majority_wins_where_it_is_large_enough(votes, min_agreement, label):
    ballot = Ballot([Vote(Path(f"{number}.json"), "fr".index(vote)) for number, vote in enumerate(votes)])
    assert majority_vote(ballot, min_agreement, []).label == label


def test_a_vote_counts_by_its_weight():
    ballot = Ballot([Vote(Path("a.json"), 0, weight=3.0), Vote(Path("b.json"), 1), Vote(Path("c.json"), 1)])
    assert majority_vote(ballot, 0.5, []).label == 0


def test_several_experiments_vote_and_a_tie_is_skipped_with_its_votes(source, output, tmp_path, capsys):
    folder = folder_of_three(source)
    first = predictions(tmp_path / "first.json", "fake", "real", "fake")
    second = predictions(tmp_path / "second.json", "fake", "fake", "fake")
    code = separate(source, "--output", output, "--pair", f"x={first}", "--pair", f"x={second}")
    assert code == 1
    assert separated(output) == {"fake_images/x__1.png", "fake_images/x__3.png"}
    assert (folder / "2.png").exists()
    assert "first.json: real, second.json: fake" in capsys.readouterr().out


def test_the_report_on_another_source_is_kept_and_that_on_the_same_one_is_not(source, output, tmp_path, capsys):
    folder_of_three(source, "x")
    folder_of_three(tmp_path / "other", "y")
    assert separate(source, "--output", output) == 0
    write_image(source / "x" / "9.png", 9)
    assert separate(source, "--output", output) == 1
    assert "replaced" not in capsys.readouterr().err
    before = (output / "separation_report.json").read_bytes()
    assert separate(tmp_path / "other", "--output", output) == 0
    assert "which are kept as " in capsys.readouterr().err
    assert (output / "separation_report.json.bak").read_bytes() == before
    assert separate(source, "--output", output, "--force") == 1
    assert not (output / "separation_report.json.bak2").exists()


def test_all_jsons_beside_a_folder_vote(source, output):
    folder_of_three(source, "x", "fake", "fake", "fake")
    predictions(source / "x.json", "real", "fake", "fake")
    predictions(source / "x_predictions.json", "real", "fake", "fake")
    assert separate(source, "--output", output, "--min-agreement", "0.6") == 0
    assert "real_images/x__1.png" in separated(output)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(not HACKATHON.is_file(), reason="the development image sets are not here")
def test_the_hackathon_set_gives_1012_fakes_and_988_reals_and_comes_back(tmp_path, output):
    with tarfile.open(HACKATHON) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / "hackathon"
    before = tree(source)
    assert separate(source, "--output", output) == 1  # test/ has no predictions
    assert len(names_in(output / "fake_images")) == 1012
    assert len(names_in(output / "real_images")) == 988
    assert separate("--undo", journal_in(output)) == 0
    assert tree(source) == before


# The script


def test_help_is_quick_and_loads_nothing_heavy():
    command = "import sys, image_separate\ntry: image_separate.main(['--help'])\nexcept SystemExit: pass\n"
    heavy = "sys.exit(bool({'numpy', 'PIL', 'tensorflow', 'rich'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", command + heavy], cwd=SCRIPT.parent, capture_output=True)
    assert run.returncode == 0


@pytest.mark.parametrize(
    "arguments", [[], ["raw", "--undo", "j"], ["--undo", "j", "--dry-run"], ["raw", "--mode", "x"]]
)
def test_arguments_that_do_not_fit_together_are_exit_code_2(arguments):
    with pytest.raises(SystemExit) as stopped:
        image_separate.main(arguments)
    assert stopped.value.code == 2
