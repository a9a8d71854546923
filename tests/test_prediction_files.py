import argparse
import json
from pathlib import Path

import pytest

from fakereal.errors import DataError
from fakereal.predict.results import write_details
from fakereal.prediction_files import Rules, add_options, read, rules_of
from fakereal.predictions_json import Prediction


def written(tmp_path: Path, content: object, name: str = "preds.json") -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def read_labels(path: Path, rules: Rules | None = None) -> dict[int | str, int | None]:
    """Return label by key, and make sure that every entry was understood."""
    document = read(path, rules)
    assert document.problems == ()
    return {item.key: item.label for item in document.predictions}


def refusal(path: Path, rules: Rules | None = None) -> str:
    """Return the one line with which a file is refused."""
    with pytest.raises(DataError) as refused:
        read(path, rules)
    assert "\n" not in str(refused.value)
    return str(refused.value).removeprefix(f"{path}: ")


# One entry


def test_any_case_of_fake_and_real_is_read(tmp_path):
    path = written(tmp_path, [{"index": 1, "prediction": "FAKE"}, {"index": 2, "prediction": " Real "}])
    assert read_labels(path) == {1: 0, 2: 1}


@pytest.mark.parametrize("index", ["7", " 7 ", "007", 7.0, "7.0"])
def test_a_number_in_another_spelling_is_read_as_a_number(tmp_path, index):
    assert read_labels(written(tmp_path, [{"index": index, "prediction": "real"}])) == {7: 1}


def test_a_null_prediction_carries_its_reason(tmp_path):
    path = written(tmp_path, [{"index": 1, "prediction": None, "error": "cut"}, {"index": 2, "prediction": None}])
    assert [item.error for item in read(path).predictions] == ["cut", "no prediction"]


@pytest.mark.parametrize("word", ["uncertain", "Unknown"])
def test_an_undecided_verdict_is_no_label(tmp_path, word):
    path = written(tmp_path, [{"index": 1, "verdict": word}, {"index": 2, "verdict": "fake"}])
    assert read(path).predictions == (Prediction(None, index=1, error=word.lower()), Prediction(0, index=2))


@pytest.mark.parametrize(
    "entry",
    [
        "fake",
        None,
        [],
        ["1.png", "fake", 0.9],
        {},
        {"index": 1},
        {"prediction": "fake"},
        {"index": 1, "prediction": "maybe"},
        {"index": 1, "prediction": ""},
        {"index": 1, "prediction": ["fake"]},
        {"index": True, "prediction": "fake"},
        {"index": -1, "prediction": "fake"},
        {"index": 1.5, "prediction": "fake"},
        {"index": None, "prediction": "fake"},
        {"image": "", "prediction": "fake"},
    ],
)
def test_an_entry_that_cannot_be_used_is_named_and_the_next_one_is_used(tmp_path, entry):
    document = read(written(tmp_path, [entry, {"index": 2, "prediction": "real"}]))
    assert document.predictions == (Prediction(1, index=2),)
    assert len(document.problems) == 1
    assert "entry 1: expected" in document.problems[0].text


def test_an_entry_with_a_key_twice_is_not_used(tmp_path):
    text = '[{"index": 1, "prediction": "fake", "prediction": "real"}, {"index": 2, "prediction": "real"}]'
    document = read(written(tmp_path, text))
    assert [item.key for item in document.predictions] == [2]
    assert document.problems[0].text.endswith("entry 1: expected one value for 'prediction', got two")


def test_a_name_outranks_a_number_of_the_same_entry(tmp_path):
    path = written(tmp_path, [{"index": 0, "image": "7.png", "prediction": "fake"}])
    assert read_labels(path) == {"7.png": 0}


def test_a_number_under_a_better_key_outranks_one_that_may_count_rows(tmp_path):
    path = written(tmp_path, [{"index": 0, "image": 7, "prediction": "fake"}])
    assert read_labels(path) == {7: 0}
    path = written(tmp_path, [{"id": "a1f3", "index": 7, "prediction": "fake"}])
    assert read_labels(path) == {7: 0}


def test_two_numbers_that_may_both_be_the_images_are_refused_until_one_is_chosen(tmp_path):
    path = written(tmp_path, [{"id": 3, "index": 7, "label": "fake"}, {"id": 8, "index": 8, "label": "real"}])
    assert refusal(path) == (
        "the values of index and id differ in 1 of 2 entries: pass --columns index,label or --columns id,label"
    )
    assert read_labels(path, Rules(columns=("id", "label"))) == {3: 0, 8: 1}


# Forms of a file


NAMED = {"1.png": 0, "2.png": 1}


@pytest.mark.parametrize(
    "content",
    [
        {"1.png": "fake", "2.png": "real"},
        {"1.png": {"label": "FAKE", "score": 0.9}, "2.png": {"label": "REAL", "score": 0.8}},
        {"predictions": {"1.png": "fake", "2.png": "real"}},
        {"model": "net", "predictions": [{"image": "1.png", "label": "fake"}, {"image": "2.png", "label": "real"}]},
        {"data": {"results": [{"file": "1.png", "class": "fake"}, {"file": "2.png", "class": "real"}]}},
        [{"1.png": "fake"}, {"2.png": "real"}],
        [["1.png", "fake"], ["2.png", "real"]],
        [{"index": "1.png", "prediction": "fake"}, {"index": "2.png", "prediction": "real"}],
        [{"File Name": "1.png", "Verdict": "Fake"}, {"File Name": "2.png", "Verdict": "Real"}],
        [{"id": "1.png", "predicted_label": "fake"}, {"id": "2.png", "predicted_label": "real"}],
        {"fake": ["1.png"], "real": ["2.png"]},
        {"filename": ["1.png", "2.png"], "label": ["fake", "real"]},
        {"path": {"0": "1.png", "1": "2.png"}, "pred": {"0": "fake", "1": "real"}},
        '{"image": "1.png", "prediction": "fake"}\n{"image": "2.png", "prediction": "real"}\n',
        '{"1.png": "fake", "2.png": "real", "2.png": "real"}',
    ],
)
def test_each_form_of_json_that_people_have_is_read(tmp_path, content):
    assert read_labels(written(tmp_path, content)) == NAMED


def test_a_single_entry_may_stand_without_a_list(tmp_path):
    assert read_labels(written(tmp_path, {"index": 3, "prediction": "real"})) == {3: 1}


def test_numbers_as_keys_are_indices(tmp_path):
    assert read_labels(written(tmp_path, {"1": "fake", "2": "real"})) == {1: 0, 2: 1}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "image,label\n1.png,fake\n2.png,real\n"),
        ("x.csv", '"Image";"Label"\r\n"1.png";"Fake"\r\n\r\n"2.png";"Real"\r\n'),
        ("x.tsv", "filename\tprediction\n1.png\tFAKE\n2.png\tREAL\n"),
        ("x.csv", ",image,label\n0,1.png,fake\n1,2.png,real\n"),
        ("x.csv", 'note,image,label\n"two\nlines",1.png,fake\nsep\u2028arated,2.png,real\n'),
        ("x.txt", "id,class\n1.png,fake\n2.png,real\n"),
        ("x.jsonl", '{"image": "1.png", "label": "fake"}\n\n{"image": "2.png", "label": "real"}\n'),
    ],
)
def test_tables_with_a_header_and_json_lines_are_read(tmp_path, name, text):
    assert read_labels(written(tmp_path, text, name)) == NAMED


def test_an_empty_cell_is_no_label_and_a_row_with_too_many_cells_is_not_used(tmp_path):
    document = read(written(tmp_path, "image,label\n1.png,\n2.png,real,x\n3.png,real\n", "x.csv"))
    assert document.predictions == (
        Prediction(None, image="1.png", error="no prediction"),
        Prediction(1, image="3.png"),
    )
    assert document.problems[0].text.endswith("entry 2: expected 2 cells as in the header, got 3")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_obstacle(tmp_path, encoding):
    path = tmp_path / "preds.json"
    path.write_bytes('{"Übermut.png": "real"}'.encode(encoding))
    assert read_labels(path) == {"Übermut.png": 1}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_the_details_that_prediction_writes_are_read(tmp_path, suffix):
    rows = [
        {"index": 1, "image": "1.png", "prediction": "fake", "verdict": "uncertain", "p_fake": 0.55, "error": None},
        {"index": None, "image": "a.png", "prediction": "real", "verdict": "real", "p_fake": 0.1, "error": None},
        {"index": 3, "image": "3.png", "prediction": None, "verdict": None, "p_fake": None, "error": "truncated"},
    ]
    path = tmp_path / f"details{suffix}"
    write_details(path, rows)
    assert read(path).predictions == (
        Prediction(0, image="1.png"),
        Prediction(1, image="a.png"),
        Prediction(None, image="3.png", error="truncated"),
    )


# What is refused as a whole


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("{", "invalid JSON (Expecting property name"),
        ("nonsense", "invalid JSON (Expecting value"),
        ("[" * 100_000, "invalid JSON (maximum recursion depth"),
        ("{}", "it holds no predictions"),
        ("7", "expected a list like"),
        ("null", "expected a list like"),
        ('["fake", "real"]', "expected entries that name their images"),
        ('{"index": 1}', "expected a key or column for the label"),
        ('[{"pic": 1, "prediction": "fake"}]', "expected a key or column for the image"),
        ('{"images": [], "annotations": []}', "several keys may hold the predictions (images, annotations)"),
        ('{"image": ["1.png"], "label": ["fake", "real"]}', "expected as many values for each key"),
    ],
)
def test_content_of_another_form_is_refused_in_one_sentence(tmp_path, text, reason):
    assert refusal(written(tmp_path, text)).startswith(reason)


def test_bytes_that_are_not_text_are_refused(tmp_path):
    path = tmp_path / "preds.json"
    path.write_bytes(b"\xff\xfe\x00")
    assert refusal(path) == "expected text in UTF-8, got other bytes: save it as UTF-8"


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "missing.json", tmp_path):
        assert refusal(path).startswith("can't read the prediction file")


def test_a_table_without_a_header_is_refused(tmp_path):
    assert refusal(written(tmp_path, "1.png,fake\n2.png,real\n", "x.csv")) == (
        "expected a header line such as image,label, got '1.png,fake': add one"
    )


@pytest.mark.parametrize("values", [(0, 1), ("0", "1"), (0.0, 1.0)])
def test_zeros_and_ones_are_refused_until_their_meaning_is_given(tmp_path, values):
    path = written(tmp_path, dict(zip(("1.png", "2.png"), values, strict=True)))
    assert refusal(path) == (
        "the labels are 0 and 1, and the file doesn't say what they mean:"
        " pass --labels-as 0=fake,1=real or --labels-as 0=real,1=fake"
    )
    document = read(path, Rules(labels={"0": 1, "1": 0}))
    assert [item.label for item in document.predictions] == [1, 0]
    assert document.notes == ("labels by --labels-as",)


def test_truth_values_and_unknown_words_are_refused_until_their_meaning_is_given(tmp_path):
    path = written(tmp_path, {"1.png": True, "2.png": False})
    assert refusal(path) == (
        "expected the labels fake and real, got true, false: say what they mean with --labels-as,"
        " such as --labels-as true=fake,false=real"
    )
    assert read_labels(path, Rules(labels={"true": 0, "false": 1})) == NAMED
    path = written(tmp_path, {"1.png": "Class A", "2.png": "Class B"})
    assert "--labels-as 'class a=fake,class b=real'" in refusal(path)


def test_one_other_word_for_each_label_is_read_and_a_third_one_is_not(tmp_path):
    path = written(tmp_path, {"1.png": "AI-generated", "2.png": "Authentic"})
    assert read_labels(path) == NAMED
    assert read(path).notes == ("labels: ai-generated is fake, authentic is real",)
    assert "got deepfake, tampered, authentic: say what they mean" in refusal(
        written(tmp_path, {"1.png": "deepfake", "2.png": "tampered", "3.png": "authentic"})
    )


def test_a_third_value_may_be_skipped(tmp_path):
    path = written(tmp_path, {"1.png": 0, "2.png": 1, "3.png": 2})
    assert "the labels are 0, 1, 2" in refusal(path)
    assert "--labels-as doesn't say what 2 means" in refusal(path, Rules(labels={"0": 0, "1": 1}))
    document = read(path, Rules(labels={"0": 0, "1": 1, "2": None}))
    assert [item.label for item in document.predictions] == [0, 1, None]


def test_probabilities_are_refused_until_a_threshold_is_given(tmp_path):
    path = written(tmp_path, {"1.png": 0.7, "2.png": 0.2})
    assert refusal(path) == (
        "label holds numbers from 0.2 to 0.7, not labels: if they are probabilities,"
        " pass --threshold p_fake=0.5 (an image is fake at 0.5 or more)"
        " or --threshold p_real=0.5 (an image is real at 0.5 or more)"
    )
    assert read_labels(path, Rules(threshold=(0, 0.5))) == NAMED
    assert read_labels(path, Rules(threshold=(1, 0.2))) == {"1.png": 1, "2.png": 1}
    path = written(tmp_path, {"1.png": 97, "2.png": 12})
    assert "expected probabilities from 0 to 1 for --threshold p_fake=0.5, got 97, 12" in refusal(
        path, Rules(threshold=(0, 0.5))
    )


def test_a_column_of_p_fake_or_p_real_says_itself_what_it_holds(tmp_path):
    path = written(tmp_path, "file,p_fake\n1.png,0.9\n2.png,0.5\n", "x.csv")
    assert refusal(path) == (
        "p_fake holds numbers from 0.5 to 0.9, not labels: if they are probabilities,"
        " pass --threshold p_fake=0.5 (an image is fake at 0.5 or more)"
    )
    assert read_labels(path, Rules(threshold=(0, 0.6))) == NAMED
    assert refusal(path, Rules(threshold=(1, 0.4))) == (
        "expected p_real for --threshold p_real=0.4, got p_fake: pass --threshold p_fake=0.6"
    )
    both = written(tmp_path, "file,p_fake,p_real\n1.png,0.9,0.1\n2.png,0.5,0.5\n", "both.csv")
    assert read_labels(both, Rules(threshold=(1, 0.4))) == NAMED


def test_a_column_for_each_class_is_read_with_a_threshold(tmp_path):
    path = written(tmp_path, "image,real,fake\n1.png,0,1\n2.png,1,0\n", "x.csv")
    assert "pass --threshold p_fake=0.5 (an image is fake at 0.5 or more)" in refusal(path)
    assert read_labels(path, Rules(threshold=(0, 0.5))) == NAMED
    assert read_labels(path, Rules(threshold=(1, 0.5))) == NAMED


def test_words_and_numbers_as_labels_are_refused_until_the_numbers_have_a_meaning(tmp_path):
    path = written(tmp_path, [{"index": 1, "prediction": "fake"}, {"index": 2, "prediction": 1}])
    assert refusal(path) == (
        "some labels are words (fake), others numbers (1): say what the numbers mean with --labels-as,"
        " such as --labels-as 1=fake"
    )
    assert read_labels(path, Rules(labels={"1": 1})) == {1: 0, 2: 1}


def test_two_columns_of_labels_that_differ_are_refused_until_one_is_chosen(tmp_path):
    path = written(tmp_path, "image,label,prediction\n1.png,real,fake\n2.png,real,real\n", "x.csv")
    assert refusal(path) == (
        "the values of prediction and label differ in 1 of 2 entries: pass --columns image,prediction"
        " or --columns image,label"
    )
    assert read_labels(path, Rules(columns=("Image", "prediction"))) == NAMED


def test_columns_with_other_names_are_given(tmp_path):
    path = written(tmp_path, "pic,answer\n1.png,fake\n2.png,real\n", "x.csv")
    assert refusal(path).endswith("such as --columns pic,answer")
    assert "got pic, answer: pass --columns" in refusal(path)
    assert read_labels(path, Rules(columns=("pic", "answer"))) == NAMED


# Options


def parsed(*arguments: str) -> Rules:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return rules_of(parser.parse_args(arguments))


def test_options_become_rules():
    assert parsed() == Rules()
    assert parsed("--labels-as", "0=fake, 1.0=REAL,Class A=skip").labels == {"0": 0, "1": 1, "class a": None}
    assert parsed("--threshold", "p_real=0.3").threshold == (1, 0.3)
    assert parsed("--columns", "pic, answer").columns == ("pic", "answer")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--labels-as", "0"),
        ("--labels-as", "=fake"),
        ("--labels-as", "0=fake,1=maybe"),
        ("--threshold", "0.5"),
        ("--threshold", "p_fake=0"),
        ("--threshold", "p_fake=1.5"),
        ("--threshold", "p_fake=nan"),
        ("--columns", "image"),
        ("--columns", "a,b,c"),
        ("--columns", "image,"),
    ],
)
def test_an_option_in_another_form_is_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        parsed(*arguments)
    assert "expected" in capsys.readouterr().err
