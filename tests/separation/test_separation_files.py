"""Prediction files as people have them: where they lie, what they are called, and which entry means which image."""

import json
import os
import shutil

import pytest
from separation_sets import folder_of_three, journal_in, predictions, separate, separated, tree, write_image

ALL_THREE = {"fake_images/x__1.png", "real_images/x__2.png", "fake_images/x__3.png"}


def run(source, output, *more):
    return separate(source, "--output", output, *more)


def images(folder, numbers, suffix=".png"):
    for number in numbers:
        write_image(folder / f"{number}{suffix}", number)


def error_of(capsys) -> str:
    """Return the one line that a command failed with."""
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error.removeprefix("error: ").rstrip()


def refused(source, output, capsys, *more) -> str:
    """Run, make sure that nothing changed, and return the line."""
    before = tree(source)
    assert run(source, output, *more) == 2
    assert tree(source) == before
    assert not output.exists()
    return error_of(capsys)


# Where the file lies and what it is called


@pytest.mark.parametrize(
    "place",
    [
        "x.json",
        "x_preds.JSON",
        "X_Preds.json",
        "x_preds (1).json",
        "x_preds(2).json",
        "x_preds - Copy.json",
        "x.csv",
        "x_preds.tsv",
        "x_predictions.jsonl",
        "../x_preds.json",
        "x/x.json",
        "x/predictions.json",
        "x/preds (1).json",
    ],
)
def test_a_prediction_file_is_found_wherever_it_lies(source, output, place):
    folder_of_three(source)
    (source / "x_preds.json").unlink()
    labels = {1: "fake", 2: "real", 3: "fake"}
    if place.endswith(".json") or place.endswith(".JSON"):
        text = json.dumps([{"index": index, "prediction": label} for index, label in labels.items()])
    elif place.endswith(".jsonl"):
        text = "\n".join(json.dumps({"index": index, "prediction": label}) for index, label in labels.items())
    else:
        comma = "\t" if place.endswith(".tsv") else ","
        text = "\n".join(comma.join(map(str, row)) for row in [("index", "prediction"), *labels.items()])
    (source / place).write_text(text)
    assert run(source, output) == 0
    assert separated(output) == ALL_THREE


def test_a_file_that_does_not_lie_beside_its_folder_is_named(source, output, capsys):
    folder_of_three(source)
    shutil.move(source / "x_preds.json", source.parent / "x_preds.json")
    assert run(source, output) == 0
    assert f"read      {source.parent}/x_preds.json: used for x/" in capsys.readouterr().out


def test_a_file_beside_the_folder_comes_before_one_inside_and_one_above(source, output):
    folder_of_three(source)
    predictions(source / "x" / "x.json", "real", "real", "real")
    predictions(source.parent / "x.json", "real", "real", "real")
    assert run(source, output) == 0
    assert separated(output) == ALL_THREE


def test_two_copies_of_one_content_are_one_file(source, output):
    folder_of_three(source)
    shutil.copy(source / "x_preds.json", source / "x_preds (1).json")
    assert run(source, output, "--min-agreement", "1") == 0
    assert separated(output) == ALL_THREE


def test_two_copies_that_differ_are_refused_until_one_is_named(source, output, capsys):
    folder_of_three(source)
    predictions(source / "x_preds (1).json", "real", "real", "real")
    message = refused(source, output, capsys)
    assert message == (
        f"{source}/x_preds.json and {source}/x_preds (1).json differ, and both fit x/:"
        f" name the right one, such as --pair x={source}/x_preds.json"
    )
    assert run(source, output, "--pair", f"x={source}/x_preds.json") == 0
    assert separated(output) == ALL_THREE


def test_a_table_beside_a_json_is_no_second_experiment(source, output):
    folder_of_three(source)
    (source / "x_preds.csv").write_text("index,prediction\n1,real\n")
    assert run(source, output) == 0
    assert separated(output) == ALL_THREE


@pytest.mark.parametrize("json_place", ["x_preds.json", "x-2025-11-26/x_preds.json", "x-2025-11-26/x/x_preds.json"])
def test_the_doubled_folder_of_an_unpacked_archive_is_looked_into(source, output, json_place):
    folder_of_three(source / "x-2025-11-26")
    shutil.move(source / "x-2025-11-26" / "x_preds.json", source / "kept")
    shutil.move(source / "kept", source / json_place)
    assert run(source, output) == 0
    assert separated(output) == ALL_THREE


def test_a_whole_set_in_a_doubled_folder_gives_the_same_names_and_comes_back(source, output):
    inner = source / "set-main" / "set"
    folder_of_three(inner)
    folder_of_three(inner, "y")
    before = tree(source)
    assert run(source, output) == 0
    assert separated(output) == ALL_THREE | {name.replace("x__", "y__") for name in ALL_THREE}
    assert separate("--undo", journal_in(output)) == 0
    assert tree(source) == before


def test_folders_of_one_name_in_several_folders_keep_their_paths(source, output):
    folder_of_three(source / "train")
    folder_of_three(source / "test")
    assert run(source, output) == 0
    assert len(separated(output)) == 6
    assert "fake_images/train__x__1.png" in separated(output)


def test_one_file_that_fits_two_folders_is_refused_until_it_is_paired(source, output, capsys):
    for parent in ("a", "b"):
        folder_of_three(source / parent)
        (source / parent / "x_preds.json").unlink()
    file = predictions(source / "x.json", "fake", "real", "fake")
    assert (
        refused(source, output, capsys) == f"{file}: fits a/x/ and b/x/: name the right one, such as --pair a/x={file}"
    )
    assert run(source, output, "--pair", f"a/x={file}", "--pair", f"b/x={file}") == 0
    assert len(separated(output)) == 6


def test_the_source_may_be_the_folder_of_images_itself(source, output):
    images(source, (1, 2, 3))
    predictions(source / "predictions.json", "fake", "real", "fake")
    assert run(source, output) == 0
    assert separated(output) == {name.replace("x__", "raw__") for name in ALL_THREE}


def test_predictions_json_is_not_taken_for_the_predictions_of_a_folder_beside_it(source, output, capsys):
    folder_of_three(source)
    shutil.move(source / "x_preds.json", source / "predictions.json")  # prediction's default name, for any images
    assert "(found without a folder: predictions.json)" in refused(source, output, capsys)


def test_a_file_that_is_used_with_pair_is_not_called_unusable(source, output, capsys):
    folder_of_three(source / "train", "fake")
    file = source / "train_fake_preds.json"
    shutil.move(source / "train" / "fake_preds.json", file)
    assert run(source, output, "--pair", f"train/fake={file}") == 0
    assert "unusable" not in capsys.readouterr().out
    assert len(separated(output)) == 3


def test_files_without_a_folder_are_named_where_nothing_is_paired(source, output, capsys):
    write_image(source / "x" / "1.png")
    predictions(source / "labels.json", "fake")
    assert "(found without a folder: labels.json)" in refused(source, output, capsys)


def test_a_folder_that_cannot_be_searched_stops_nothing(source, output):
    folder_of_three(source)
    (source / "closed").mkdir(mode=0o000)
    try:
        assert run(source, output) in (0, 1)  # 1: root may look into it, others can't
        assert separated(output) == ALL_THREE
    finally:
        (source / "closed").chmod(0o755)


# Which entry means which image


@pytest.mark.parametrize(
    "names",
    [
        ("1.PNG", "2.PNG", "3.PNG"),
        ("1.jpg", "2.jpeg", "3.webp"),
        ("x/1.png", "x/2.png", "x/3.png"),
        ("data/all/1.png", "data/all/2.png", "data/all/3.png"),
        ("C:\\data\\X\\1.png", "C:\\data\\X\\2.png", "C:\\data\\X\\3.png"),
        ("./1.png", "./2.png", "./3.png"),
        ("001.png", "002.png", "003.png"),
        ("/content/drive/MyDrive/x/1.JPG", "/content/drive/MyDrive/x/2.JPG", "/content/drive/MyDrive/x/3.JPG"),
    ],
)
def test_names_match_without_case_extension_and_leading_folder(source, output, names):
    folder_of_three(source)
    (source / "x_preds.json").write_text(json.dumps(dict(zip(names, ("FAKE", "REAL", "FAKE"), strict=True))))
    assert run(source, output) == 0
    assert separated(output) == ALL_THREE


def test_names_that_match_loosely_are_counted_with_an_example(source, output, capsys):
    folder_of_three(source)
    (source / "x_preds.json").write_text(json.dumps({"data/1.PNG": "fake", "data/2.PNG": "real", "data/3.PNG": "fake"}))
    assert run(source, output) == 0
    assert (
        "x_preds.json: 3 names matched without case, extension and leading folder ('data/1.PNG' is 1.png)"
        in capsys.readouterr().out
    )


def test_indices_find_images_that_all_lie_one_folder_deeper(source, output):
    folder_of_three(source / "x", "images")
    shutil.move(source / "x" / "images_preds.json", source / "x.json")
    assert run(source, output) == 0
    assert separated(output) == {name.replace("x__", "x__images__") for name in ALL_THREE}


def test_a_name_that_could_mean_two_images_moves_neither(source, output, capsys):
    for name in ("Cat.png", "cat.jpg", "dog.png"):
        write_image(source / "x" / name)
    (source / "x.json").write_text(json.dumps({"CAT.png": "fake", "DOG.png": "real"}))
    assert run(source, output) == 1
    assert separated(output) == {"real_images/x__dog.png"}
    assert "image 'CAT.png': 2 images match (Cat.png, cat.jpg)" in capsys.readouterr().out


def test_two_names_that_could_mean_one_image_move_it_only_by_an_exact_one(source, output):
    images(source / "x", (1, 2), ".jpg")
    labels = {"1.png": "fake", "1.jpg": "real", "2.png": "fake", "2.bmp": "real"}
    (source / "x.json").write_text(json.dumps(labels))
    assert run(source, output) == 1
    assert separated(output) == {"real_images/x__1.jpg"}


def test_names_of_another_folder_are_not_taken_for_this_one(source, output):
    folder_of_three(source)
    labels = {f"{folder}/{n}.png": label for folder, label in (("x", "fake"), ("y", "real")) for n in (1, 2, 3)}
    (source / "x_preds.json").write_text(json.dumps(labels))
    assert run(source, output) == 1
    assert separated(output) == {f"fake_images/x__{number}.png" for number in (1, 2, 3)}


def test_names_that_all_lead_to_the_folder_beside_are_not_taken_for_this_one(source, output, capsys):
    folder_of_three(source)
    write_image(source / "Y" / "1.png")
    (source / "x_preds.json").write_text(json.dumps({f"data/y/{number}.png": "fake" for number in (1, 2, 3)}))
    assert run(source, output) == 2
    assert "image 'data/y/1.png': the folder has no such image" in capsys.readouterr().out
    assert separated(output) == set()


def test_a_decision_of_a_person_means_the_image_of_that_very_name(source, output, tmp_path):
    images(source / "x", (1, 2), ".jpg")
    decisions = predictions(tmp_path / "decisions.json", **{"x/1.png": "fake", "x/2.jpg": "real", "x/0.jpg": "fake"})
    assert run(source, output, "--decisions", decisions) == 1
    assert separated(output) == {"real_images/x__2.jpg"}


# Indices that count from another number than the files


def indexed(path, indices, named=False):
    entries = [(f"{index}.png" if named else index, ("fake", "real")[index % 2]) for index in indices]
    path.write_text(json.dumps(dict(entries) if named else [{"index": i, "prediction": label} for i, label in entries]))


def labels_by_number(output) -> dict[int, str]:
    return {int(name.split("__")[1].split(".")[0]): name.split("_")[0] for name in separated(output)}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("indices", "files", "shift"),
    [
        (range(20), range(1, 21), 1),
        (range(20), range(1, 20), 1),
        (range(20), [n for n in range(1, 21) if n != 7], 1),
        ([0, 5, 9], range(1, 21), 1),
        (range(1, 21), range(20), -1),
        (range(1, 21), range(19), -1),
        (range(100, 120), range(101, 121), 1),
        (range(20), range(10, 30), 10),
    ],
)
def test_shifted_indices_are_refused_until_the_shift_is_given(source, output, capsys, indices, files, shift, named):
    images(source / "x", files)
    indexed(source / "x.json", indices, named)
    message = refused(source, output, capsys)
    assert (
        f"its indices run from {indices[0]} to {indices[-1]}, but the files in x/ are numbered from {files[0]}"
        in message
    )
    assert f"pass --index-shift x.json={shift} if index {indices[0]} means file {indices[0] + shift}, or" in message
    run(source, output, "--index-shift", f"x.json={shift}")
    expected = {i + shift: ("fake", "real")[i % 2] for i in indices if i + shift in files}
    assert labels_by_number(output) == expected


def test_a_shift_of_0_says_that_the_indices_are_the_numbers_of_the_files(source, output):
    images(source / "x", range(1, 20))
    indexed(source / "x.json", range(20))
    assert run(source, output, "--index-shift", "x=0") == 1
    assert labels_by_number(output) == {n: ("fake", "real")[n % 2] for n in range(1, 20)}


def test_an_index_whose_label_is_unknown_counts_as_well(source, output, capsys):
    images(source / "x", range(1, 21))
    indexed(source / "x.json", range(20))
    entries = json.loads((source / "x.json").read_text())
    entries[0]["prediction"] = "maybe"
    (source / "x.json").write_text(json.dumps(entries))
    assert "--index-shift x.json=1" in refused(source, output, capsys)


@pytest.mark.parametrize(
    ("indices", "files"),
    [
        (range(1, 21), range(1, 21)),
        (range(20), range(20)),
        (range(1, 21), range(2, 21)),
        (range(1, 21), range(1, 20)),
        (range(1, 20), range(1, 21)),
        (range(1, 21), [n for n in range(1, 31) if n not in (5, 17)]),
        (range(1, 101), [3, 50, 99]),
        ([3, 50, 99], range(1, 101)),
    ],
)
def test_indices_that_are_the_numbers_of_the_files_are_used_as_they_are(source, output, indices, files):
    images(source / "x", files)
    indexed(source / "x.json", indices)
    run(source, output)
    assert labels_by_number(output) == {n: ("fake", "real")[n % 2] for n in set(indices) & set(files)}


def test_a_shift_that_fits_worse_than_none_is_refused(source, output, capsys):
    folder_of_three(source)
    assert "--index-shift x_preds.json=1 doesn't fit" in refused(source, output, capsys, "--index-shift", "x_preds=1")


@pytest.mark.parametrize("shift", ["1", "x_preds=", "x_preds=one", "=1"])
def test_an_invalid_shift_is_one_line(source, output, capsys, shift):
    folder_of_three(source)
    assert refused(source, output, capsys, f"--index-shift={shift}").startswith("--index-shift")


# Files that can be read in two ways


def test_a_file_that_is_refused_leaves_its_folder_alone_and_the_others_are_separated(source, output, capsys):
    folder_of_three(source)
    folder = folder_of_three(source, "y")
    (source / "y_preds.json").write_text(json.dumps({"1.png": 0, "2.png": 1, "3.png": 0}))
    assert run(source, output) == 1
    assert separated(output) == ALL_THREE
    assert len(list(folder.iterdir())) == 3
    assert "y_preds.json: the labels are 0 and 1" in capsys.readouterr().out
    assert run(source, output, "--labels-as", "0=fake,1=real") == 0
    assert separated(output) == ALL_THREE | {name.replace("x__", "y__") for name in ALL_THREE}


def test_several_refused_files_are_still_one_line(source, output, capsys):
    for name in ("x", "y"):
        folder_of_three(source, name)
        (source / f"{name}_preds.json").write_text(json.dumps({"1.png": 0.9, "2.png": 0.1}))
    message = refused(source, output, capsys)
    assert message.startswith(f"{source}/x_preds.json: label holds numbers from 0.1 to 0.9, not labels")
    assert message.endswith("(1 other prediction file is refused, too)")


def test_probabilities_are_used_with_a_threshold(source, output, capsys):
    folder_of_three(source)
    (source / "x_preds.json").unlink()
    (source / "x.csv").write_text("file,p_fake\n1.png,0.9\n2.png,0.2\n3.png,0.5\n")
    assert "--threshold p_fake=0.5" in refused(source, output, capsys)
    assert run(source, output, "--threshold", "p_fake=0.5") == 0
    assert separated(output) == ALL_THREE
    note = f"{source}/x.csv: labels by --threshold p_fake=0.5"
    assert f"read      {note}\n" in capsys.readouterr().out
    assert json.loads((output / "separation_report.json").read_text())["read"] == [note]


def test_columns_may_be_named(source, output):
    folder_of_three(source)
    (source / "x_preds.json").unlink()
    (source / "x.csv").write_text("pic,answer\n1.png,fake\n2.png,real\n3.png,fake\n")
    assert run(source, output, "--columns", "pic,answer") == 0
    assert separated(output) == ALL_THREE


# The hackathon set as it is, and as others might have it


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def as_mapping(path, entries):
    written(path, {f"{index}.png": label for index, label in entries})


def as_table(path, entries):
    path.unlink()
    rows = "".join(f"data/{index}.png,{label.title()}\n" for index, label in entries)
    written(path.with_suffix(".csv"), "Image,Label\n" + rows)


def as_upper_case(path, entries):
    path.unlink()
    written(path.with_suffix(".JSON"), [{"INDEX": str(i), "PREDICTION": label.upper()} for i, label in entries])


def as_wrapped(path, entries):
    written(path, {"model": "net", "predictions": [{"file": f"{i}.PNG", "class": label} for i, label in entries]})


def as_lines(path, entries):
    path.unlink()
    written(path.with_suffix(".jsonl"), "\n".join(json.dumps({"id": i, "verdict": label}) for i, label in entries))


def as_lists(path, entries):
    written(path, {label: [f"{i}.jpg" for i, other in entries if other == label] for label in ("fake", "real")})


def as_numbers(path, entries):
    written(path, {i: ("fake", "real").index(label) for i, label in entries})


def as_probabilities(path, entries):
    written(path, [{"index": i, "p_fake": 0.9 if label == "fake" else 0.2} for i, label in entries])


def from_zero(path, entries):
    written(path, [{"index": i - 1, "prediction": label} for i, label in entries])


def one_level_up(path, entries):
    shutil.move(path, path.parent.parent / path.name)


def inside(path, entries):
    shutil.move(path, path.parent / path.name.replace("_preds.json", "_images") / "predictions.json")


def as_second_copy(path, entries):
    shutil.move(path, path.with_name(f"{path.stem} (1).json"))


def in_a_doubled_folder(path, entries):
    folder = path.parent / path.name.replace("_preds.json", "_images")
    outer = folder.with_name(f"{folder.name}-2025")
    outer.mkdir()
    folder.rename(outer / folder.name)


LAYOUTS = {
    as_mapping: (),
    as_table: (),
    as_upper_case: (),
    as_wrapped: (),
    as_lines: (),
    as_lists: (),
    as_numbers: ("--labels-as", "0=fake,1=real"),
    as_probabilities: ("--threshold", "p_fake=0.5"),
    from_zero: ("--index-shift", "fake_cifake_preds=1", "--index-shift", "real_cifake_preds=1"),
    one_level_up: (),
    inside: (),
    as_second_copy: (),
    in_a_doubled_folder: (),
}
"""Each changes one prediction file of the set, and needs these options."""


@pytest.fixture
def hackathon(data_dir, tmp_path):
    """A copy of the set whose images are hard links, and the expected result."""
    source = tmp_path / "set" / "hackathon"
    shutil.copytree(data_dir("hackathon"), source, copy_function=os.link)
    expected = set()
    for name in ("fake_cifake", "real_cifake"):
        path = source / f"{name}_preds.json"
        content = json.loads(path.read_text())
        path.unlink()  # the link, not the original
        path.write_text(json.dumps(content))
        expected |= {f"{each['prediction']}_images/{name}_images__{each['index']}.png" for each in content}
    return source, expected


def separated_names(output) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for path in output.glob("*_images/*")}


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_the_hackathon_set_gives_the_same_result_in_every_layout(hackathon, output, layout):
    source, expected = hackathon
    for path in sorted(source.glob("*_preds.json")):
        layout(path, [(entry["index"], entry["prediction"]) for entry in json.loads(path.read_text())])
    if LAYOUTS[layout]:
        assert run(source, output, "--mode", "link", "--no-check") == 2
        assert not output.exists()
    run(source, output, "--mode", "link", "--no-check", *LAYOUTS[layout])
    assert separated_names(output) == expected
    assert len(expected) == 2000


@pytest.mark.data
@pytest.mark.slow
def test_the_hackathon_set_in_a_doubled_folder_gives_the_same_result(hackathon, output):
    source, expected = hackathon
    run(source.parent, output, "--mode", "link", "--no-check")
    assert separated_names(output) == expected
