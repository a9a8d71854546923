"""Labels from a CSV or text file, in the forms in which public sets have them."""

from __future__ import annotations

import pytest

from fakereal.dataset.label_file import read_labels
from fakereal.dataset.layout import LabelRules, Place
from fakereal.errors import DataError, FakeRealError
from fakereal.labels import FAKE, NAMES, REAL

IMAGES = ("images/1.png", "images/2.jpg", "images/3.png")


@pytest.fixture
def read(tmp_path):
    """A function that writes a file of labels, and returns what it says of the images, in order."""

    def read(text, images=IMAGES, name="labels.csv", **rules):
        (tmp_path / name).write_text(text)
        root = tmp_path / "data"
        found = read_labels(tmp_path / name, root, [root / image for image in images], LabelRules(**rules))
        texts = []
        for place in found.values():
            label = NAMES[place.label] if isinstance(place, Place) else "-"
            more = (place.split, place.source) if isinstance(place, Place) else ()
            texts.append(" ".join([label, *(word for word in more if word)]))
        return " | ".join(texts)

    return read


DIGITS = {"classes": ("0=real", "1=fake")}

FILES = {
    "path and label": ("path,label\nimages/1.png,fake\nimages/2.jpg,real\n", {}, "fake | real | -"),
    "Kaggle's id": ("id,label\n1,0\n2,1\n3,1\n", DIGITS, "real | fake | fake"),
    "Kaggle's image": ("image,label\n1.png,FAKE\n2.jpg,REAL\n3.png,Real\n", {}, "fake | real | real"),
    "Kaggle's filename": ("filename,class\n1.png,ai\n2.jpg,human\n", {}, "fake | real | -"),
    "an index column and other folders": (
        ",file_name,label\n0,train_data/images/1.png,1\n1,train_data/images/2.jpg,0\n",
        DIGITS,
        "fake | real | -",
    ),
    "digits and words": (
        ",original_path,id,label,label_str,path\n0,/x/1.jpg,1,1,real,images/1.png\n1,/x/2.jpg,2,0,fake,images/2.jpg\n",
        {},
        "real | fake | -",
    ),
    "a yes or no for fakes": ("image,is_fake\n1.png,1\n2.jpg,0\n3.png,True\n", {}, "fake | real | fake"),
    "a yes or no for reals": ("image,real\n1.png,1\n2.jpg,0\n", {}, "real | fake | -"),
    "split and source": (
        "path,label,split,generator\n1.png,fake,Training,sdxl\n2.jpg,real,validation,\n3.png,real,test,coco\n",
        {},
        "fake train sdxl | real val | real test coco",
    ),
    "a split mapped": (
        "path,label,split\n1.png,fake,a\n2.jpg,real,b\n3.png,real,c\n",
        {"split_folders": ("a=train", "b=test", "c=skip")},
        "fake train | real test | -",
    ),
    "a column that is no yes or no": ("path,label,generated\n1.png,fake,2024\n2.jpg,real,\n", {}, "fake | real | -"),
    "semicolons": ("path;label\n1.png;fake\n2.jpg;real\n", {}, "fake | real | -"),
    "tabs": ("path\tlabel\n1.png\tfake\n2.jpg\treal\n", {}, "fake | real | -"),
    "text without a header": ("images/1.png fake\nimages/2.jpg real\n", {}, "fake | real | -"),
    "text with digits": ("images/1.png 1\nimages/2.jpg 0\n", DIGITS, "fake | real | -"),
    "CSV without a header": ("1.png,fake\n2.jpg,real\n", {}, "fake | real | -"),
    "backslashes and case": ("path,label\nIMAGES\\1.PNG,fake\nimages\\2.jpg,real\n", {}, "fake | real | -"),
    "a byte order mark": ("\ufeffpath,label\n1.png,fake\n2.jpg,real\n", {}, "fake | real | -"),
    "a third class left out": (
        "path,label\n1.png,fake\n2.jpg,real\n3.png,edited\n",
        {"classes": ("edited=skip",)},
        "fake | real | -",
    ),
    "a row without a label": ("path,label\n1.png,fake\n2.jpg,real\n3.png,\n", {}, "fake | real | -"),
    "the same row twice": ("path,label\n1.png,fake\n1.png,FAKE\n2.jpg,real\n", {}, "fake | real | -"),
}


@pytest.mark.parametrize(("text", "rules", "expected"), FILES.values(), ids=FILES)
def test_a_file_of_labels_is_read(read, text, rules, expected):
    assert read(text, **rules) == expected


REFUSED = {
    "digits": ("id,label\n1,0\n2,1\n", {}, "whether 0 (1 row), 1 (1 row) are fake or real: say it with --class 0="),
    "a mapping of nothing": (
        "id,label\n1,0\n2,1\n",
        {"classes": ("cats=fake",)},
        "--class cats=fake: no label of this name; there are 0, 1",
    ),
    "three classes": ("id,label\n1,fake\n2,real\n3,edited\n", {}, "can't tell whether edited (1 row) is fake or real"),
    "no label": ("id,score\n1,0.3\n", {}, "expected columns with a path (path, image, filename, id ...) and a label"),
    "a header in other words": ("pic,answer\n1,0\n2,1\n", DIGITS, "got pic, answer: name them in the first line"),
    "no header": ("1,0\n2,1\n", {}, "whether 0 (1 row), 1 (1 row) are fake or real"),
    "nothing": ("", {}, "got an empty file"),
    "two labels": ("id,label\n1,fake\n1,real\n", {}, "lines 2 and 3 label 1 differently"),
    "columns that disagree": ("id,label,is_fake\n1,fake,0\n", {}, "line 2: the columns label, isfake contradict"),
    "no yes or no": ("id,is_fake\n1,0.7\n", {}, "expected 0 or 1 in each row of the column isfake"),
    "no image": ("id,label\n7,fake\n8,real\n", {}, "no path in it names an image"),
    "no text": ("PK\0\0,\0", {}, "expected CSV or text, got a binary file: save it as CSV"),
    "no CSV": ("id,label\n1," + "x" * 200_000, {}, "expected CSV, got a file that can't be read as such"),
    "a split": ("id,label,split\n1,fake,a\n2,real,b\n", {}, "line 2: expected the split train, val or test, got 'a'"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "rules", "expected"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_is_unclear_is_one_line(read, text, rules, expected):
    with pytest.raises(FakeRealError) as caught:
        read(text, **rules)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_several_images_have_is_refused(read):
    with pytest.raises(DataError, match=r"line 2: 1\.png may be a/1\.png, b/1\.png: write its path .* with --data"):
        read("path,label\n1.png,fake\nb/1.png,real\n", images=("a/1.png", "b/1.png"))
    assert read("path,label\na/1.png,fake\nb/1.png,real\n", images=("a/1.png", "b/1.png")) == "fake | real"


def test_a_spreadsheet_s_unicode_text_is_read(tmp_path):
    (tmp_path / "labels.txt").write_bytes("id\tlabel\r\n1\tfake\r\n2\treal\r\n".encode("utf-16"))
    images = [tmp_path / "data" / name for name in IMAGES]
    found = read_labels(tmp_path / "labels.txt", tmp_path / "data", images, LabelRules())
    assert [place.label if isinstance(place, Place) else None for place in found.values()] == [FAKE, REAL, None]


def test_rows_without_an_image_are_counted(read, capsys):
    assert read("path,label\n1.png,fake\n2.jpg,real\n7.png,real\n") == "fake | real | -"
    assert "1 of 3 rows name no image" in capsys.readouterr().err


def test_folders_of_the_other_class_are_a_warning_and_the_file_decides(read, capsys):
    text = "path,label\nfake/1.png,real\nfake/2.png,fake\nreal/3.png,real\n"
    assert read(text, images=("fake/1.png", "fake/2.png", "real/3.png")) == "real | fake | real"
    warning = capsys.readouterr().err
    assert "1 labels contradict the image's folder (such as fake/1.png): " in warning
    assert "labels.csv decides" in warning


def test_the_folders_give_the_split_where_the_file_has_none(read):
    images = ("train_set/1.png", "train_set/2.png", "test_set/3.png")
    text = "id,label\n1,fake\n2,real\n3,real\n"
    assert read(text, images=images) == "fake train | real train | real test"
    with pytest.raises(DataError, match=r"which split holdout .* is: say it with --split-folder holdout"):
        read(text, images=("train/1.png", "train/2.png", "holdout/3.png"))
