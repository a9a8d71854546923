import json
from pathlib import Path

import pytest

from fakereal.prediction_files import read
from fakereal.predictions_json import Prediction, dumps, key_of_file, prediction_for, sort_key, write


def test_the_text_is_a_list_with_four_spaces_in_numeric_order_and_lower_case():
    predictions = [Prediction(1, index=10), Prediction(0, index=2)]
    assert dumps(predictions) == (
        '[\n    {\n        "index": 2,\n        "prediction": "fake"\n    },\n'
        '    {\n        "index": 10,\n        "prediction": "real"\n    }\n]\n'
    )


def test_numbers_come_before_names_and_names_in_their_order():
    predictions = [Prediction(0, image="b.png"), Prediction(0, image="a.png"), Prediction(0, index=100)]
    assert [item.key for item in sorted(predictions, key=sort_key)] == [100, "a.png", "b.png"]


def test_a_file_that_could_not_be_read_keeps_its_place_with_its_reason():
    entries = json.loads(dumps([Prediction(1, index=8), Prediction(None, index=7, error="truncated")]))
    assert entries[0] == {"index": 7, "prediction": None, "error": "truncated"}


def test_no_prediction_without_a_reason_says_at_least_that():
    assert json.loads(dumps([Prediction(None, index=7)]))[0]["error"] == "no prediction"


def test_what_is_written_is_read_back_the_same(tmp_path):
    predictions = [
        Prediction(0, index=0),
        Prediction(1, index=12),
        Prediction(None, index=13, error="an empty file"),
        Prediction(1, image="deep/Übermut \udcff\n.png"),
    ]
    path = tmp_path / "made" / "predictions.json"
    write(path, predictions)
    document = read(path)
    assert list(document.predictions) == predictions
    assert document.problems == ()


def test_the_same_predictions_in_another_order_give_the_same_bytes(tmp_path):
    predictions = [Prediction(0, index=1), Prediction(1, index=2), Prediction(1, image="x.png")]
    write(tmp_path / "a.json", predictions)
    write(tmp_path / "b.json", predictions[::-1])
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_document_replaces_another_whole_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "preds.json"
    path.write_text("x" * 10_000)
    write(path, [Prediction(0, index=1)])
    assert len(read(path).predictions) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("7.png", 7),
        ("007.jpg", 7),
        ("0.png", 0),
        ("7.", 7),
        ("a/7.png", "a/7.png"),
        pytest.param("7" * 5000 + ".png", "7" * 5000 + ".png", id="5,000 digits, which int() refuses"),
        ("cat.png", "cat.png"),
        ("-7.png", "-7.png"),
        ("1.5.png", "1.5.png"),
        ("٣.png", "٣.png"),
        ("².png", "².png"),
    ],
)
def test_a_file_is_found_by_its_number_or_else_by_its_path(file, key):
    assert key_of_file(Path(file)) == key
    assert prediction_for(key, 1).key == key
