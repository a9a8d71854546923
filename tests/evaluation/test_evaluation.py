import base64
import csv
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import ROOT, make_labeled_images
from matplotlib.figure import Figure
from PIL import Image
from sklearn import metrics as sklearn_metrics
from small_networks import brightness_network

import predict_and_save_json
from fakereal import __main__ as door
from fakereal import html
from fakereal.cli import run_cli
from fakereal.config import Config, ReportConfig
from fakereal.dataset.scan import labels_of, scan
from fakereal.dataset.split import Split, fingerprint
from fakereal.engines import engine as engines_engine
from fakereal.engines.export import export_beside
from fakereal.errors import DataError, ModelFileError
from fakereal.evaluation import plots, report, summary
from fakereal.evaluation.evaluate import (
    EvaluateConfig,
    EvaluatedImages,
    EvaluationResult,
    KnownOutputs,
    Subject,
    metrics_tree,
    predict_records,
)
from fakereal.evaluation.report import evaluate_and_report
from fakereal.files import cache_folder
from fakereal.labels import FAKE, REAL
from fakereal.model import metrics as model_metrics
from fakereal.model import model_file, unseen
from fakereal.model.calibration import DecisionRule
from fakereal.model.foreign import ForeignModel
from fakereal.model.model_file import Detector, Metadata
from fakereal.model.resaves import REPORT_RESAVES
from fakereal.predict.inputs import list_images
from fakereal.predict.pipeline import predict_batches
from fakereal.preprocessing import Preprocessing

HISTORY = ({"phase": 1, "epoch": 1, "loss": 0.7, "val_loss": 0.6, "seconds": 3.0},
           {"phase": 2, "epoch": 1, "loss": 0.5, "val_loss": 0.55, "seconds": 3.0})  # fmt: skip


def brightness_detector(decision=None):
    """A network of low confidence that calls dark images fake: its outputs are predictable."""
    model, network = brightness_network()
    decision = decision or DecisionRule(0.45, 1.3, (0.4, 0.6))
    metadata = Metadata(Config(image_size=32, network=network), Preprocessing(32), decision, "random weights",
                        {"train": {"fake": 3, "real": 4}}, history=HISTORY, versions=model_file.versions())  # fmt: skip
    return Detector(model, metadata)


@pytest.fixture(scope="module")
def detector():
    keras.utils.set_random_seed(0)
    return brightness_detector()


@pytest.fixture(scope="module")
def model(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "dark.h5"
    model_file.save(path, detector)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    counts = {"alpha/fake": 12, "alpha/real": 14, "beta/fake": 9}
    return make_labeled_images(tmp_path_factory.mktemp("set") / "holiday", counts)


@pytest.fixture(scope="module")
def outcome(model, data, tmp_path_factory):
    output = tmp_path_factory.mktemp("report")
    return evaluate_and_report(EvaluateConfig(model, data, output, command="python -m fakereal evaluate ..."))


def calibrated(row):
    """The calibrated p_fake of a row of predictions.csv."""
    return float(row["confidence"]) if row["prediction"] == "fake" else 1 - float(row["confidence"])


def test_the_figures_are_those_of_scikit_learn(outcome):
    rows = list(csv.DictReader((outcome.folder / "predictions.csv").open()))
    labels = [row["label"] == "fake" for row in rows]
    predicted = [row["prediction"] == "fake" for row in rows]
    p_fake = [calibrated(row) for row in rows]
    metrics = outcome.tree["metrics"]
    assert metrics["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, predicted), abs=1e-6)
    assert metrics["f1_fake"] == pytest.approx(sklearn_metrics.f1_score(labels, predicted), abs=1e-6)
    assert metrics["roc_auc"] == pytest.approx(sklearn_metrics.roc_auc_score(labels, p_fake), abs=1e-6)
    assert metrics["average_precision"] == pytest.approx(
        sklearn_metrics.average_precision_score(labels, p_fake), abs=1e-6
    )
    assert 0.5 < metrics["accuracy"] < 1.0


def test_an_exported_network_gets_the_same_figures_without_heatmaps(model, data, outcome, tmp_path, capsys):
    exported = shutil.copy(model, tmp_path / "dark.h5")
    export_beside(Path(exported), model_file.load(model))
    command = ["evaluate", str(tmp_path / "dark.tflite"), "--data", str(data), "--output", str(tmp_path / "report")]
    assert run_cli(door.main, command) == 0
    tree = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert (tree["metrics"], tree["resaves"]) == (outcome.tree["metrics"], outcome.tree["resaves"])
    assert (tree["model"]["parameters"], tree["model"]["network"]) == (None, "cnn")
    assert "report.html has no heatmaps" in capsys.readouterr().err
    assert "None" not in (tmp_path / "report" / "report.html").read_text()


def test_every_figure_lies_in_its_interval(outcome):
    metrics = outcome.tree["metrics"]
    assert set(summary.METRIC_NAMES) == set(metrics["intervals"])
    for key, (low, high) in metrics["intervals"].items():
        assert low <= metrics[key] <= high
        assert low < high


def test_the_threshold_of_validation_stands_beside_one_half(outcome):
    rows = list(csv.DictReader((outcome.folder / "predictions.csv").open()))
    at_half = np.mean([(calibrated(row) >= 0.5) == (row["label"] == "fake") for row in rows])
    assert outcome.tree["metrics_at_0.5"]["accuracy"] == pytest.approx(at_half, abs=1e-6)
    assert outcome.tree["decision"]["threshold"] == 0.45


def test_the_band_covers_what_has_a_verdict(outcome):
    rows = list(csv.DictReader((outcome.folder / "predictions.csv").open()))
    sure = [row for row in rows if row["verdict"] != "uncertain"]
    assert 0 < len(sure) < len(rows)
    assert outcome.tree["band"]["coverage"] == pytest.approx(len(sure) / len(rows), abs=1e-6)
    right = np.mean([row["verdict"] == row["label"] for row in sure])
    assert outcome.tree["band"]["accuracy_outside"] == pytest.approx(right, abs=1e-6)


def test_a_png_resave_flips_nothing_and_every_resave_is_counted(outcome):
    table = outcome.tree["resaves"]
    assert table["images"] == 35
    assert tuple(table["saved_again"]) == REPORT_RESAVES
    png = table["saved_again"]["png"]
    assert (png["flipped"], png["accuracy"]) == (0, table["as_is"]["accuracy"])
    for row in table["saved_again"].values():
        assert row["flipped"] == row["flipped_to_fake"] + row["flipped_to_real"]
        gained = row["flipped"] - 2 * row["flipped_to_wrong"]
        assert row["accuracy"] * 35 == pytest.approx(table["as_is"]["accuracy"] * 35 + gained, abs=1e-3)


def test_the_table_of_sources_says_where_there_is_one_class_only(outcome):
    sources = outcome.tree["by_source"]
    assert sources["alpha"]["images"] == 26
    beta = sources["beta"]
    assert beta["only"] == "fake"
    rows = [row for row in csv.DictReader((outcome.folder / "predictions.csv").open()) if row["source"] == "beta"]
    assert beta["recall_fake"] == pytest.approx(np.mean([row["prediction"] == "fake" for row in rows]), abs=1e-6)
    low, high = beta["intervals"]["recall_fake"]
    assert low <= beta["recall_fake"] <= high


def test_recall_of_each_generator_and_false_alarms_of_each_real_source_are_printed_the_worst_first(outcome):
    lines = summary.source_lines(outcome.tree["by_source"])
    at = lines.index(f"{'false alarms, by source':34} {'images':>7}")
    assert lines[0].startswith("recall of fake, by source")
    assert sorted(line.split()[0] for line in lines[1:at]) == ["alpha", "beta"]
    shares = [float(line.split()[2]) for line in lines[1:at]]
    assert shares == sorted(shares)
    alpha = outcome.tree["by_source"]["alpha"]
    alarms = alpha["confusion"][REAL][FAKE] / sum(alpha["confusion"][REAL])
    assert lines[at + 1].split()[:3] == ["alpha", "14", f"{100 * alarms:.1f}"]
    assert len(lines) == at + 2
    page = (outcome.folder / "report.html").read_text(encoding="utf-8")
    assert "Mistakes by source" in page
    assert f"<td>{100 * alarms:.1f} %</td>" in page


def test_the_report_begins_with_one_sentence_and_shows_sample_images_with_verdicts(outcome):
    rows = list(csv.DictReader((outcome.folder / "predictions.csv").open()))
    right = sum(row["label"] == row["prediction"] for row in rows)
    page = (outcome.folder / "report.html").read_text(encoding="utf-8")
    assert f"Right on {right} of 35 images; expect less on images from elsewhere" in page
    samples = page.partition("<h2>Sample images</h2>")[2].partition("<h2>")[0]
    shown = re.findall(r'called <b class="(fake|real)">', samples)
    assert len(shown) == samples.count("<img ") == 12
    assert samples.count('is <b class="fake">') == 6
    assert samples.count('class="wrong"') == len(
        re.findall(r'is <b class="(\w+)">\1</b>, called <b class="(?!\1)', samples)
    )


@pytest.mark.parametrize(
    ("auc", "interval", "begin"),
    [
        (0.52, [0.45, 0.6], "Hardly better than guessing"),
        (0.2, [0.1, 0.3], "Worse than chance"),
        (0.9, [0.85, 0.95], ""),
    ],
)
def test_a_detector_near_chance_or_below_it_is_called_one(auc, interval, begin):
    assert summary.doubt({"roc_auc": auc, "intervals": {"roc_auc": interval}}).startswith(begin)
    assert bool(summary.doubt({"roc_auc": auc, "intervals": {"roc_auc": interval}})) == bool(begin)
    assert summary.doubt({"only": "fake", "intervals": {}}) == ""


@pytest.mark.parametrize(
    ("unseen", "end"),
    [
        ({"test": {"accuracy": 0.714}}, "; expect less on images from elsewhere: 71 % on sources it never saw."),
        ({"test": {"accuracy": 0.95}}, "; on sources it never saw, 95 %."),  # no less than on the test images
        (
            {"test": {"accuracy": 0.95}, "backbone_saw_them": True},
            " images from elsewhere: at most 95 % on new sources.",
        ),
        ({"balanced_accuracy": 0.714}, " images from elsewhere: 71 % on sources it never saw."),  # left out of the data
        (None, "only images from other sources can show how much less."),
    ],
)
def test_the_headline_says_what_is_expected_on_sources_that_were_never_seen(unseen, end):
    tree = {
        "metrics": {"confusion": [[8, 2], [1, 9]]},
        "subject": {"pictures": "the test split"},
        "data": {"images": 20},
        "unseen_sources": unseen,
    }
    assert summary.headline(tree).startswith("Right on 17 of 20 test images; ")
    assert summary.headline(tree).endswith(end)
    if unseen is None:  # the next sentence says how much less
        assert summary.headline(tree, "On 50 sources ...") == "Right on 17 of 20 test images."


@pytest.mark.parametrize(("images", "scale"), [(12, "linear"), (400, "symlog")])
def test_a_histogram_of_few_images_has_a_linear_scale(images, scale):
    axes = Figure().add_subplot()
    labels = np.arange(images) % 2
    plots.histogram(axes, labels, np.where(labels == 0, 0.9, 0.1), {"band": (0.5, 0.5), "threshold": 0.5})
    assert axes.get_yscale() == scale
    assert axes.get_ylim()[1] > images / 2


def test_of_many_sources_the_worst_ten_are_printed():
    outputs = np.repeat(np.linspace(0.05, 0.95, 15), 4)
    names = [f"generator {n // 4}" for n in range(60)]
    found = model_metrics.measure_by_source(np.zeros(60, int), outputs, names, DecisionRule())
    lines = summary.source_lines(found)
    assert len(lines) == 12
    assert "and 5 more with fewer mistakes" in lines[-1]
    assert model_metrics.measure_by_source(np.zeros(4, int), outputs[:4], ["one"] * 4, DecisionRule()) == {}


def test_mistakes_are_wrong_labels_most_confident_first(outcome):
    mistakes = outcome.tree["mistakes"]
    assert mistakes
    assert all(row["label"] != row["prediction"] for row in mistakes)
    sure = [row["confidence"] for row in mistakes]
    assert sure == sorted(sure, reverse=True)


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "link", "img", "br", "path", "use", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()


def test_the_page_stands_alone_and_is_whole(outcome):
    text = (outcome.folder / "report.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert links.open == []
    assert {link[:5] for link in links.found if not link.startswith("#")} == {"data:"}
    assert not re.search(r"url\((?!#)", text)
    for name in ("histogram", "roc", "precision recall", "reliability", "resaves", "history"):
        assert f'aria-label="{name}"' in text
    assert "nan" not in re.sub(r"<svg.*?</svg>|data:[^\"]*", "", text, flags=re.DOTALL).lower().split()


def test_the_page_shows_each_mistake_with_a_heatmap_for_its_predicted_label(outcome):
    text = (outcome.folder / "report.html").read_text(encoding="utf-8").partition("Most confident mistakes")[2]
    found = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]*)"', text)
    assert [words for _, words in found[1::2]] == [
        f"evidence for {row['prediction']}" for row in outcome.tree["mistakes"]
    ]
    for (plain, _), (explained, _) in zip(found[::2], found[1::2], strict=True):
        plain, explained = (Image.open(io.BytesIO(base64.b64decode(image))) for image in (plain, explained))
        assert plain.size == explained.size == (40, 40)
    # The network calls dark images fake and bright ones real, so its mistakes have evidence too
    assert any(plain != explained for (plain, _), (explained, _) in zip(found[::2], found[1::2], strict=True))


def test_a_network_without_maps_is_reported_without_heatmaps(detector, data, tmp_path, capsys):
    inputs = keras.Input((32, 32, 3))
    flat = keras.layers.Dense(1, activation="sigmoid")(keras.layers.Flatten()(inputs))
    keras.Model(inputs, flat).save(tmp_path / "flat.keras")
    config = EvaluateConfig(tmp_path / "flat.keras", data, resave_images=0, foreign=ForeignModel())
    done = evaluate_and_report(config)
    assert "report.html has no heatmaps: the network has no convolutional layers" in capsys.readouterr().err
    text = (done.folder / "report.html").read_text(encoding="utf-8")
    assert text.partition("Most confident mistakes")[2].count("<img ") == len(done.tree["mistakes"])
    assert "Grad-CAM" not in text


def test_a_file_name_is_text_in_the_page_not_markup(detector, tmp_path):
    record_folder = make_labeled_images(tmp_path / "set", {"real": 4, "fake": 4})
    (record_folder / "fake" / "0.png").rename(record_folder / "fake" / "<script>alert(1)<&.png")
    Image.new("RGB", (40, 40), "white").save(record_folder / "fake" / "<script>alert(1)<&.png")
    model_file.save(tmp_path / "m.h5", detector)
    done = evaluate_and_report(EvaluateConfig(tmp_path / "m.h5", record_folder, resave_images=0))
    text = (done.folder / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;&amp;.png" in text


def test_two_evaluations_give_the_same_bytes(model, data, outcome, tmp_path):
    evaluate_and_report(EvaluateConfig(model, data, tmp_path, command="python -m fakereal evaluate ..."))
    for name in ("report.html", "metrics.json", "predictions.csv"):
        assert (tmp_path / name).read_bytes() == (outcome.folder / name).read_bytes()


def test_the_report_says_where_the_training_images_are_unknown(outcome):
    assert any("Unknown whether" in note for note in outcome.tree["subject"]["notes"])


@pytest.fixture
def seen_model(model, data, tmp_path):
    """The model with the record of a training on every second image."""
    path = tmp_path / "dark.h5"
    path.write_bytes(model.read_bytes())
    (tmp_path / "dark_run").mkdir()
    rows = list(csv.DictReader((evaluation_rows(model, data, tmp_path)).open()))
    with (tmp_path / "dark_run" / "split.csv").open("w") as file:
        file.write("path,sha256,label,source,split,reason\n")
        for number, row in enumerate(rows):
            split = ("train", "test", "val", "test")[number % 4]
            file.write(f"{row['path']},{row['sha256']},{row['label']},{row['source']},{split},\n")
    return path


def evaluation_rows(model, data, tmp_path):
    done = evaluate_and_report(EvaluateConfig(model, data, tmp_path / "first", resave_images=0))
    return done.folder / "predictions.csv"


def test_training_images_are_left_out_unless_asked_for(seen_model, data, tmp_path):
    done = evaluate_and_report(EvaluateConfig(seen_model, data, resave_images=0))
    assert done.folder == tmp_path / "dark_on_holiday"
    assert done.tree["data"]["images"] == 17
    assert "18 images that the model was trained or tuned on" in done.tree["subject"]["notes"][0]
    again = evaluate_and_report(EvaluateConfig(seen_model, data, seen=True, resave_images=0))
    assert again.tree["data"]["images"] == 35
    assert "Optimistic" in again.tree["subject"]["notes"][0]


def test_another_file_of_a_training_image_is_left_out_too(seen_model, data, tmp_path):
    shutil.copytree(data, tmp_path / "more")
    rows = csv.DictReader((tmp_path / "dark_run" / "split.csv").open())
    seen = next(row["path"] for row in rows if row["split"] == "train")
    with Image.open(tmp_path / "more" / seen) as image:
        image.save(tmp_path / "more" / Path(seen).with_name("again.png"), compress_level=1)
    done = evaluate_and_report(EvaluateConfig(seen_model, tmp_path / "more", resave_images=0))
    assert done.tree["data"]["images"] == 17
    assert "19 images that the model was trained or tuned on" in done.tree["subject"]["notes"][0]


def test_a_neutralized_copy_is_reported_as_possibly_seen(seen_model, data, tmp_path, capsys):
    copy = make_labeled_images(tmp_path / "neutral", {"fake": 3, "real": 3}, seed=1)
    (copy / "neutralize.json").write_text("{}")
    done = evaluate_and_report(EvaluateConfig(seen_model, copy, resave_images=0))
    assert any("a neutralized copy has files of its own" in note for note in done.tree["subject"]["notes"])
    assert "warning: The model may have been trained on some of these images" in capsys.readouterr().err


def test_options_about_folders_are_taken(model, tmp_path, capsys):
    data = make_labeled_images(tmp_path / "digits", {"0": 5, "1": 4})
    arguments = ["evaluate", str(model), "--data", str(data), "--output", str(tmp_path / "r"), "--resave-images", "0"]
    with pytest.raises(DataError, match=r"whether 0 .*, 1 .* are fake or real"):
        door.main(arguments)
    assert door.main([*arguments, "--class", "0=real", "--class", "1=fake"]) == 0
    tree = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert (tree["data"]["fake"], tree["data"]["real"]) == (4, 5)
    assert "Only 4 fake and 5 real images: too few to judge the detector." in tree["subject"]["notes"]
    assert ["1/", "fake", "-", "-", "4"] in [line.split() for line in capsys.readouterr().err.splitlines()]


def test_a_report_on_another_folder_is_not_replaced(model, data, tmp_path):
    own = tmp_path / "m.h5"
    shutil.copy(model, own)
    other = make_labeled_images(tmp_path / "other" / "holiday", {"fake": 3, "real": 3}, seed=2)
    first = evaluate_and_report(EvaluateConfig(own, data, resave_images=0))
    evaluate_and_report(EvaluateConfig(own, data, resave_images=0))
    with pytest.raises(DataError, match=r"m_on_holiday: already holds a report on .*: choose another"):
        evaluate_and_report(EvaluateConfig(own, other, resave_images=0))
    assert json.loads((first.folder / "metrics.json").read_text())["subject"]["data"] == str(data)


def test_the_record_of_another_training_is_not_trusted(seen_model, data, tmp_path, capsys):
    known = list(csv.DictReader((tmp_path / "dark_run" / "split.csv").open()))
    named = fingerprint((row["sha256"], row["label"], row["split"]) for row in known)
    for trained_on, doubts in ((named, 0), ("another", 1)):
        detector = brightness_detector()
        metadata = replace(detector.metadata, data={**detector.metadata.data, "fingerprint": trained_on})
        model_file.save(seen_model, Detector(detector.model, metadata))
        done = evaluate_and_report(EvaluateConfig(seen_model, data, resave_images=0, engine="keras"))
        assert done.tree["data"]["images"] == 17
        assert len([note for note in done.tree["subject"]["notes"] if "record of another training" in note]) == doubts
        assert capsys.readouterr().err.count("record of another training") == doubts


def test_no_unseen_images_is_one_clear_line(seen_model, data, tmp_path):
    manifest = tmp_path / "dark_run" / "split.csv"
    manifest.write_text(manifest.read_text().replace(",test,", ",train,"))
    with pytest.raises(DataError, match="no images that the model was not trained on: add images"):
        evaluate_and_report(EvaluateConfig(seen_model, data))


def test_only_test_folders_count_where_there_are_any(model, tmp_path):
    data = make_labeled_images(tmp_path / "set", {"train/fake": 5, "train/real": 5, "test/fake": 4, "test/real": 4})
    sizes = [evaluate_and_report(EvaluateConfig(model, data, tmp_path / "r", split=split, resave_images=0)).tree["data"]
             for split in ("test", "all")]  # fmt: skip
    assert [size["images"] for size in sizes] == [8, 18]


def test_damaged_and_ambiguous_images_are_left_out_and_count_under_strict(model, tmp_path, capsys):
    data = make_labeled_images(tmp_path / "set", {"fake": 5, "real": 5})
    (data / "fake" / "broken.png").write_bytes(b"no image")
    (data / "fake" / "both.png").write_bytes((data / "real" / "0.png").read_bytes())
    arguments = ["evaluate", str(model), "--data", str(data), "--output", str(tmp_path / "r"), "--resave-images", "0"]
    assert [door.main([*arguments, *strict]) for strict in (["--strict"], [])] == [1, 0]
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "9 images: 5 fake, 4 real"
    assert "95 % interval" in out.splitlines()[-1]
    assert "both.png" in err
    assert "broken.png" in err


@pytest.mark.parametrize(("given", "engine"), [([], "litert "), (["--engine", "keras"], "keras ")])
def test_evaluation_and_prediction_give_the_same_digits(model, data, tmp_path, given, engine):
    folder = tmp_path / "report"
    asked = ["evaluate", str(model), "--data", str(data), "--output", str(folder), "--resave-images", "0", *given]
    assert door.main(asked) == 0
    assert json.loads((folder / "metrics.json").read_text())["model"]["engine"].startswith(engine)
    details = tmp_path / "details.csv"
    asked = ["--input", str(data), "--recursive", "--model", str(model), "--details", str(details), *given]
    assert predict_and_save_json.main([*asked, "--output", str(tmp_path / "p.json")]) == 0
    columns = ("prediction", "verdict", "confidence", "p_fake", "p_real")
    evaluated, predicted = (
        {row[name]: [row[column] for column in columns] for row in csv.DictReader(path.open())}
        for path, name in ((folder / "predictions.csv", "path"), (details, "image"))
    )
    assert evaluated == predicted
    assert len(evaluated) == 35


@pytest.mark.parametrize(("worth", "engine"), [(1, "litert"), (35 * 7, "litert"), (35 * 7 + 1, "keras")])
def test_a_training_is_evaluated_by_a_converted_network_only_where_that_pays_off(
    model, data, tmp_path, monkeypatch, worth, engine
):
    monkeypatch.setattr(engines_engine, "MIN_IMAGES_TO_CONVERT", worth)
    records = scan(data, Preprocessing()).records
    split = Split((), (), records, ())
    known = KnownOutputs(np.linspace(0.1, 0.9, len(records)))
    result = report.report_training(model_file.load(model), model, tmp_path, data, split, cache_folder(), known)
    assert result.tree["model"]["engine"].startswith(engine)
    assert result.images.p_real == pytest.approx(known.p_real, abs=1e-6)


def test_a_training_that_knows_its_outputs_predicts_only_what_is_resaved(model, data, tmp_path):
    records = scan(data, Preprocessing()).records
    detector = model_file.load(model)
    resaving = replace(detector.metadata.config, report=ReportConfig(resave_images=5))
    detector = replace(detector, metadata=replace(detector.metadata, config=resaving))
    network = Brightness()
    known = KnownOutputs(np.linspace(0.1, 0.9, len(records)), network, "brightness 1.0")
    result = report.report_training(detector, model, tmp_path, data, Split((), (), records, ()), None, known)
    assert result.tree["model"]["engine"] == "brightness 1.0"
    assert result.tree["data"]["images"] == len(records)
    assert network.images == 2 * 32  # five images with six re-saves each, in full batches
    assert (result.images.p_real == np.round(known.p_real, 6)).all()


def test_only_a_sample_is_resaved_where_a_limit_is_given(detector, data):
    records = scan(data, Preprocessing()).records
    images = predict_records(detector, Preprocessing(32), data, records, "Keras", resave_images=7, seed=3)
    assert len(images.resaved_of) == len(images.resaved["png"]) == 7
    assert np.allclose(images.resaved["png"], images.p_real[images.resaved_of], atol=1e-6)


class Brightness:
    """A network in one line, without Keras: p_real is the mean brightness."""

    images = 0  # that it has seen

    def p_real(self, images):
        self.images += len(images)
        return images.mean(axis=(1, 2, 3)) / 255


def test_outputs_and_resaves_are_those_of_the_prediction_pipeline(data):
    records = scan(data, Preprocessing()).records
    images = predict_records(Brightness(), Preprocessing(32), data, records, "test", batch_size=8, resave_images=5)
    items = list_images(data, recursive=True).items
    predicted = {
        prediction.item.name: prediction
        for prediction in predict_batches(items, Brightness(), Preprocessing(32), 16, REPORT_RESAVES)
    }
    names = [record.path.relative_to(data).as_posix() for record in records]
    assert images.p_real.tolist() == [predicted[name].p_real for name in names]
    for column, outputs in enumerate(images.resaved.values()):
        expected = [predicted[names[number]].variants_p_real[column] for number in images.resaved_of]
        assert outputs.tolist() == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (Path.unlink, "does not exist"),
        (lambda path: Image.new("RGB", (9, 9)).save(path), "has changed since it was scanned"),
    ],
)
def test_an_image_that_vanished_or_changed_since_the_scan_is_one_clear_line(data, tmp_path, change, expected):
    shutil.copytree(data, tmp_path / "copy")
    records = scan(tmp_path / "copy", Preprocessing()).records
    change(records[3].path)
    with pytest.raises(DataError, match=f"{records[3].path}: .*{expected}.*: restore it"):
        predict_records(Brightness(), Preprocessing(32), tmp_path / "copy", records, "test", resave_images=0)


def test_a_network_without_a_finite_output_is_refused_by_name(data):
    class Broken:
        def p_real(self, images):
            return np.full(len(images), np.nan)

    records = scan(data, Preprocessing()).records
    with pytest.raises(ModelFileError, match=r"alpha/fake/0\.png: .*NaN"):
        predict_records(Broken(), Preprocessing(32), data, records, "test", resave_images=0)


def test_the_calibration_error_is_the_gap_between_promise_and_truth():
    labels = np.array([FAKE] * 9 + [REAL] * 1 + [FAKE] * 2 + [REAL] * 8)
    p_fake = np.array([0.95] * 10 + [0.25] * 10)
    bins = model_metrics.reliability(labels, p_fake)
    assert [(each.share_fake, each.images) for each in bins] == [(0.2, 10), (0.9, 10)]
    assert model_metrics.calibration_error(bins) == pytest.approx(0.05)


def test_curves_go_through_the_points_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    p_fake = np.round(np.clip(rng.normal(0.6 - 0.2 * labels, 0.2), 0, 1), 2)  # with ties
    x, y, _ = sklearn_metrics.roc_curve(labels == FAKE, p_fake)
    found = np.array(model_metrics.roc(labels, p_fake))
    assert np.interp(x, *found.T).mean() == pytest.approx(y.mean(), abs=0.02)
    assert found[0].tolist() == [0, 0]
    assert found[-1].tolist() == [1, 1]
    assert sklearn_metrics.auc(*found.T) == pytest.approx(sklearn_metrics.auc(x, y), abs=1e-4)
    recall, precision = np.array(model_metrics.precision_recall(labels, p_fake)).T
    assert recall[-1] == 1
    assert precision[-1] == pytest.approx(np.mean(labels == FAKE), abs=1e-5)


def test_long_curves_are_thinned_to_what_an_eye_can_see():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 20_000)
    found = model_metrics.roc(labels, np.clip(rng.normal(0.6 - 0.2 * labels, 0.2), 0, 1))
    assert len(found) <= model_metrics.MAX_POINTS
    assert found[-1] == [1, 1]


def test_the_findings_of_the_audit_are_shown(detector, data, tmp_path):
    finding = {"what": "all reals are JPEG", "what_to_do": "neutralize them", "command": "python train_model.py ..."}
    audits = {
        "all reals are JPEG: neutralize them": {"findings": [finding], "shortcut": {"verdict": "bad"}},
        "nothing gives the answer away": {"findings": [], "shortcut": {"verdict": "nothing gives the answer away"}},
    }
    records = scan(data, Preprocessing()).records
    images = EvaluatedImages(data, records, np.linspace(0.1, 0.9, len(records)), "Keras")
    for expected, audit in audits.items():
        audited = replace(detector, metadata=replace(detector.metadata, data={"audit": audit}))
        tree = metrics_tree(images, audited, Subject("m.h5", "0" * 64, "set", "all", "..."))
        report.write_html(tmp_path / "r.html", EvaluationResult(tree, images, audited, tmp_path))
        assert expected in (tmp_path / "r.html").read_text()
        assert "audit" not in tree["training"]["data"]


def test_the_report_says_what_a_verdict_is_worth_where_the_model_file_knows(detector, data, tmp_path):
    records = scan(data, Preprocessing()).records
    p_real = np.linspace(0.1, 0.9, len(records))
    images = EvaluatedImages(data, records, p_real, "Keras")
    record = unseen.record(labels_of(records), p_real, ["a"] * len(records), DecisionRule())
    for metrics in ({}, {"unseen_sources": record}):
        known = replace(detector, metadata=replace(detector.metadata, metrics=metrics))
        tree = metrics_tree(images, known, Subject("m.h5", "0" * 64, "set", "all", "..."))
        report.write_html(tmp_path / "r.html", EvaluationResult(tree, images, known, tmp_path))
        text = (tmp_path / "r.html").read_text()
        assert ("What a verdict is worth:" in text) == bool(metrics)
        assert (unseen.sentence({"unseen_sources": record}) in text) == bool(metrics)


def test_a_perfect_detector_on_few_images_makes_a_report_too(detector, data, tmp_path):
    records = scan(data, Preprocessing()).records
    p_real = np.array([0.99 if record.label == REAL else 0.01 for record in records])
    images = EvaluatedImages(data, records, p_real, "Keras")
    tree = metrics_tree(images, detector, Subject("m.h5", "0" * 64, "set", "all", "..."))
    json.dumps(tree, allow_nan=False)
    report.write_html(tmp_path / "r.html", EvaluationResult(tree, images, detector, tmp_path))
    text = (tmp_path / "r.html").read_text()
    assert "confident mistakes" not in text
    assert tree["mistakes"] == []
    assert tree["resaves"] is None


def test_a_thumbnail_keeps_small_images_as_they_are(tmp_path):
    small = Image.effect_noise((20, 10), 50).convert("RGB")
    data = html.thumbnail(small)
    path = tmp_path / "small.png"
    path.write_bytes(base64.b64decode(data.removeprefix("data:image/png;base64,")))
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(small))
    assert html.thumbnail(Image.new("RGB", (900, 300))).startswith("data:image/jpeg;")


def test_templates_are_part_of_the_package():
    assert '"templates/*.html"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        (DecisionRule(), 'This model never answers "uncertain".'),
        (DecisionRule(shorter_side_px=(8, 4096)), '"Uncertain" only for images unlike the training images.'),
        (DecisionRule(band=(0.25, 0.75)), '"Uncertain" between 25 and 75 %: 12.5 % of the test images.'),
    ],
)
def test_a_training_tells_when_its_model_answers_uncertain(decision, said):
    line = summary.decision_line(decision, 0.125)
    assert line == f"Called fake at a fake probability of 50 % or more. {said}"
