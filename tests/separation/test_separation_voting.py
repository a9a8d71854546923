import json
import os
import re

import pytest
from separation_sets import folder_of_three, journal_in, names_in, predictions, separate, separated, tree, write_image

from fakereal import predictions_json
from fakereal.separation.voting import Agreement


def run(source, output, *more):
    return separate(source, "--output", output, *more)


def experiments(folder, **labels):
    """Write `<name>/x.json` for each experiment, with labels for 1, 2, ..."""
    for name, said in labels.items():
        (folder / name).mkdir()
        predictions(folder / name / "x.json", *said)
    return [folder / name for name in labels]


@pytest.fixture
def two(source, tmp_path):
    """x/ with three images, and two experiments that disagree about the second."""
    folder_of_three(source)
    (source / "x_preds.json").unlink()
    return experiments(tmp_path, run1=("fake", "real", "fake"), run2=("fake", "fake", "fake"))


# Weights


@pytest.mark.parametrize("name", ["run2", "run2/x.json", "run2/*.json"])
def test_an_experiment_with_more_weight_wins_by_any_of_its_names(source, output, two, name, capsys):
    assert run(source, output, "--predictions", *two, "--weight", f"{name}=1.5") == 0
    assert "fake_images/x__2.png" in separated(output)
    assert "run2/*.json: weight 1.5" in capsys.readouterr().out


def test_a_weight_may_name_a_json_by_its_stem_or_path(source, output, tmp_path):
    folder_of_three(source)
    first = predictions(tmp_path / "first.json", "real", "real", "real")
    second = predictions(tmp_path / "second.json", "fake", "fake", "fake")
    pairs = ("--pair", f"x={first}", "--pair", f"x={second}", "--mode", "copy")
    assert run(source, output, *pairs, "--weight", "first=2") == 0
    assert {name.split("/")[0] for name in separated(output)} == {"real_images"}
    assert run(source, tmp_path / "other", *pairs, "--weight", f"{second}=2") == 0
    assert {name.split("/")[0] for name in separated(tmp_path / "other")} == {"fake_images"}


@pytest.mark.parametrize("weight", ["run1", "run1=", "run1=0", "run1=-1", "run1=nan", "run1=inf", "=2", "run3=2"])
def test_an_invalid_weight_is_one_line_and_exit_code_2(source, output, two, weight, capsys):
    before = tree(source)
    assert run(source, output, "--predictions", *two, f"--weight={weight}") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert tree(source) == before
    assert not output.exists()


def test_an_unknown_name_of_a_weight_is_refused_with_the_known_names(source, output, two, capsys):
    run(source, output, "--predictions", *two, "--weight", "run3=2")
    assert "expected one of run1/*.json, run2/*.json" in capsys.readouterr().err


# Agreement


def test_kappa_equals_worked_examples():
    # 20 and 15 of 50 agreed on, 5 and 10 not: Cohen's kappa is 0.4.
    assert Agreement("a", "b", ((20, 5), (10, 15))).kappa == pytest.approx(0.4)
    assert Agreement("a", "b", ((5, 0), (0, 5))).kappa == 1.0
    assert Agreement("a", "b", ((0, 5), (5, 0))).kappa == -1.0
    assert Agreement("a", "b", ((7, 0), (0, 0))).kappa is None


def test_the_agreement_of_experiments_is_printed_and_reported_over_all_folders(source, output, two, capsys):
    for number in (1, 2):
        write_image(source / "y_images" / f"{number}.png", 40 + number)
    predictions(two[0] / "y_preds.json", "real", "real")
    predictions(two[1] / "y_preds.json", "real", "fake")
    assert run(source, output, "--predictions", *two, "--dry-run") == 1
    assert run(source, output, "--predictions", *two) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    row = ["run1/*_preds.json,", "run2/*_preds.json", "2", "1", "50.0%", "0.000", "0", "0"]
    assert [line[:-2] for line in lines].count(row[:-2]) == 2
    report = json.loads((output / "separation_report.json").read_text())
    first = report["agreement"][0]
    assert first["experiments"] == ["run1/*.json", "run2/*.json"]
    assert (first["pictures"], first["agree"]) == (3, 2)
    assert first["counts"] == {"fake fake": 2, "fake real": 0, "real fake": 1, "real real": 0}


def test_one_experiment_per_folder_has_no_agreement(source, output, capsys):
    folder_of_three(source)
    assert run(source, output) == 0
    assert "kappa" not in capsys.readouterr().out
    assert json.loads((output / "separation_report.json").read_text())["agreement"] == []
    assert not (output / "review").exists()


def test_the_names_of_a_folder_of_images_and_of_its_short_form_stay_apart(source, output, capsys):
    write_image(source / "x_images" / "1.png")
    predictions(source / "x_preds.json", "fake")
    predictions(source / "x_images_preds.json", "fake")
    assert run(source, output) == 0
    assert "*_images_preds.json, *_preds.json" in capsys.readouterr().out


# Review and decisions


def test_images_that_experiments_disagree_about_are_listed_for_review(source, output, two, capsys):
    assert run(source, output, "--predictions", *two) == 1
    listed = output / "review" / "review_001.json"
    assert json.loads(listed.read_text()) == [
        {
            "image": "x/2.png",
            "prediction": None,
            "error": "the experiments disagree: run1/x.json: real, run2/x.json: fake",
        }
    ]
    assert f"open {output}/review/review_001.html" in capsys.readouterr().out
    report = json.loads((output / "separation_report.json").read_text())
    assert report["review"] == "review/review_001.html"
    assert report["stayed"][0]["votes"] == {"run1/x.json": "real", "run2/x.json": "fake"}


def test_the_review_page_shows_each_image_with_its_votes_and_asks_for_a_label(source, output, two):
    write_image(source / "x" / "<b>&.png", 9)
    for folder, label in zip(two, ("real", "fake"), strict=True):
        predictions(folder / "x.json", "fake", label, "fake", **{"<b>&.png": label})
    run(source, output, "--predictions", *two)
    page = (output / "review" / "review_001.html").read_text()
    assert page.count('src="data:image/') == 2
    assert page.count("<figure>") == 2
    assert page.count('<button type="button" value="fake"') == 3  # one of them for the enlarged image
    assert '<button type="button" value="keep"' not in page  # an image in dispute has no label to keep
    assert "<b>&.png" not in page
    assert re.search(r"run1/x.json: <b class=.real.>real", page)
    assert "http" not in page.replace("http-equiv", "")


def test_a_review_with_labels_decides_and_a_second_review_overwrites_no_other(source, output, two):
    write_image(source / "x" / "4.png", 44)
    for folder, label in zip(two, ("real", "fake"), strict=True):
        predictions(folder / "x.json", "fake", label, "fake", label)
    assert run(source, output, "--predictions", *two) == 1
    listed = output / "review" / "review_001.json"
    filled = json.loads(listed.read_text())
    filled[0]["prediction"] = "real"
    listed.write_text(json.dumps(filled))
    kept = listed.read_bytes()
    assert run(source, output, "--predictions", *two, "--decisions", listed) == 1
    assert "real_images/x__2.png" in separated(output)
    assert names_in(source / "x") == ["4.png"]
    assert listed.read_bytes() == kept
    assert [entry["image"] for entry in json.loads((output / "review" / "review_002.json").read_text())] == ["x/4.png"]
    assert run(source, output, "--predictions", *two, "--decisions", listed) == 1
    assert names_in(output / "review") == [f"review_00{n}.{kind}" for n in (1, 2) for kind in ("html", "json")]


def decisions(path, **labels):
    predictions_json.write(
        path, [predictions_json.Prediction(label, image=image, error="open") for image, label in labels.items()]
    )
    return path


def test_a_persons_decision_outranks_all_votes(source, output, two, tmp_path, capsys):
    path = decisions(tmp_path / "decisions.json", **{"x/1.png": 1, "x/2.png": 0})
    assert run(source, output, "--predictions", *two, "--weight", "run1=100", "--decisions", path) == 0
    assert separated(output) == {"real_images/x__1.png", "fake_images/x__2.png", "fake_images/x__3.png"}
    assert "decided by people: 2" in capsys.readouterr().out


def test_decisions_alone_are_enough_and_undecided_images_are_skipped(source, output, tmp_path):
    folder_of_three(source)
    (source / "x_preds.json").unlink()
    path = decisions(tmp_path / "decisions.json", **{"x/1.png": 1, "x/2.png": None})
    assert run(source, output, "--decisions", path) == 1
    assert separated(output) == {"real_images/x__1.png"}
    assert names_in(source / "x") == ["2.png", "3.png"]


def test_decisions_distinguish_images_of_one_number_and_contradictions_are_skipped(source, output, tmp_path, capsys):
    folder_of_three(source)
    write_image(source / "x" / "1.bmp", 77)
    entries = [("x/1.bmp", "real"), ("x/1.png", "fake"), ("x/2.png", "real"), ("x/2.png", "fake"), ("x/9.png", "fake")]
    path = tmp_path / "decisions.json"
    path.write_text(json.dumps([{"image": image, "prediction": label} for image, label in entries]))
    assert run(source, output, "--decisions", path) == 1
    out = capsys.readouterr().out
    assert separated(output) == {"real_images/x__1.bmp", "fake_images/x__1.png", "fake_images/x__3.png"}
    assert names_in(source / "x") == ["2.png"]
    assert "'x/9.png': the folder has no such image" in out
    assert "decisions.json has several entries that differ" in out


@pytest.mark.parametrize("content", [None, "{}", "["])
def test_decisions_that_cannot_be_read_are_one_line_and_nothing_moves(source, output, tmp_path, content, capsys):
    folder_of_three(source)
    before = tree(source)
    if content is not None:
        (tmp_path / "decisions.json").write_text(content)
    assert run(source, output, "--decisions", tmp_path / "decisions.json") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert tree(source) == before
    assert not output.exists()


def test_a_damaged_image_is_skipped_even_if_decided(source, output, tmp_path):
    folder_of_three(source)
    (source / "x" / "1.png").write_bytes(b"broken")
    assert run(source, output, "--decisions", decisions(tmp_path / "d.json", **{"x/1.png": 1})) == 1
    assert (source / "x" / "1.png").read_bytes() == b"broken"


def test_decisions_are_undone_and_a_later_change_of_mind_is_reported(source, output, two, tmp_path, capsys):
    before = tree(source)
    path = decisions(tmp_path / "decisions.json", **{"x/2.png": 0})
    assert run(source, output, "--predictions", *two, "--decisions", path) == 0
    decisions(path, **{"x/2.png": 1})
    assert run(source, output, "--predictions", *two, "--decisions", path) == 1
    assert "an earlier run put it into fake_images, the predictions now say real" in capsys.readouterr().out
    assert separate("--undo", journal_in(output)) == 0
    assert tree(source) == before


def test_images_outside_the_source_are_listed_and_decided_by_their_full_path(source, output, tmp_path):
    outside = tmp_path / "elsewhere"
    write_image(outside / "1.png")
    runs = [predictions(tmp_path / f"{name}.json", name) for name in ("fake", "real")]
    pairs = [argument for path in runs for argument in ("--pair", f"{outside}={path}")]
    assert run(source, output, *pairs) == 2
    listed = json.loads((output / "review" / "review_001.json").read_text())
    assert listed[0]["image"] == os.fspath(outside / "1.png")
    path = decisions(tmp_path / "decisions.json", **{listed[0]["image"]: 1})
    assert run(source, output, *pairs, "--decisions", path) == 0
    assert separated(output) == {"real_images/elsewhere__1.png"}


@pytest.mark.skipif(os.name == "nt", reason="file names there are text, not bytes")
def test_a_name_that_is_no_utf_8_is_listed_and_can_be_decided(source, output, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    write_image(source / "x" / name)
    runs = experiments(tmp_path, run1=(), run2=())
    for folder, label in zip(runs, ("real", "fake"), strict=True):
        predictions(folder / "x.json", **{name: label})
    assert run(source, output, "--predictions", *runs) == 2
    listed = output / "review" / "review_001.json"
    listed.write_text(listed.read_text().replace("null", '"real"'))
    assert (output / "review" / "review_001.html").is_file()
    assert run(source, output, "--predictions", *runs, "--decisions", listed) == 0
    assert separated(output) == {f"real_images/x__{name}"}
