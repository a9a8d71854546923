import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import make_labeled_images
from matplotlib.figure import Figure

from fakereal import __main__ as door
from fakereal import config
from fakereal.cli import parse_setting
from fakereal.config import Config, TrainingConfig
from fakereal.errors import ConfigError, DataError, FakeRealError
from fakereal.evaluation import plots
from fakereal.training import compare, comparison
from fakereal.training.comparison import _difference, _p_text, mcnemar

ROOT = Path(__file__).resolve().parents[2]


def right(answers):
    return {str(number): answer == "1" for number, answer in enumerate(answers)}


def test_mcnemar_counts_only_pictures_that_one_of_two_is_right_about():
    """Ten to two: 2 * P(at most 2 of 12 by a fair coin) = 158 / 4096."""
    one, other = right("1" * 10 + "00" + "1" * 50), right("0" * 10 + "11" + "1" * 50)
    assert mcnemar(one, other) == pytest.approx(158 / 4096)
    assert mcnemar(other, one) == mcnemar(one, other)


def test_the_table_says_what_a_run_changed_and_where_chance_explains_the_difference():
    other = Config(seed=3, training=TrainingConfig(optimizer="sgd"))
    assert _difference(Config(), other) == "seed=3, training.optimizer=sgd"
    assert _difference(other, other) == ""
    assert _p_text(0.2) == "0.2: no real difference"
    assert _p_text(0.01) == "0.01"


def test_mcnemar_of_equal_answers_is_1_and_of_other_pictures_nothing():
    assert mcnemar(right("1100"), right("1100")) == 1.0
    assert mcnemar(right("110"), right("1100")) is None


def test_the_five_experiments_are_written_and_load(tmp_path, capsys):
    assert door.main(["compare", "--write-configs", str(tmp_path / "new")]) == 0
    names = [Path(line).stem for line in capsys.readouterr().out.splitlines()]
    assert names == ["base", "epoch", "sgd", "sigmoid", "val"]
    loaded = {name: config.load(tmp_path / "new" / f"{name}.yaml") for name in names}
    base = loaded["base"].training
    assert (base.optimizer, base.epochs, base.validation_steps) == ("adam", 20, 23)
    assert loaded["base"].network.activation == "relu"
    assert loaded["epoch"].training.epochs == 10
    assert loaded["sgd"].training.optimizer == "sgd"
    assert loaded["sigmoid"].network.activation == "sigmoid"
    assert loaded["val"].training.validation_steps == 10


@pytest.mark.parametrize("name", compare.EXPERIMENTS)
def test_the_experiments_are_those_in_configs_and_change_one_thing_each(name, tmp_path):
    compare.write_experiments(tmp_path)
    first, *lines = (tmp_path / f"{name}.yaml").read_text().splitlines()
    assert lines == (ROOT / "configs" / f"{name}.yaml").read_text().splitlines()[1:]
    assert first == f"# python train_model.py --config {tmp_path}/{name}.yaml --data data/clean"
    base, changed = (yaml.safe_load((tmp_path / f"{each}.yaml").read_text()) for each in ("base", name))
    differing = [
        key for section in ("network", "augmentation", "training") for key in base[section]
        if base[section][key] != changed[section][key]
    ]  # fmt: skip
    assert len(differing) == (name != "base")
    assert base.keys() == changed.keys()


def test_a_config_of_ones_own_is_never_overwritten(tmp_path):
    (tmp_path / "sgd.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"sgd\.yaml: expected no file there"):
        compare.write_experiments(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sgd.yaml"]


def test_settings_are_read_as_yaml():
    assert parse_setting("training.epochs=5") == ("training.epochs", 5)
    assert parse_setting("network.filters=[4, 8]") == ("network.filters", [4, 8])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], "expected configurations, got none"),
        (["none.yaml"], "none.yaml: can't read the configuration: No such file or directory"),
        (["configs/base.yaml", "configs/base.yaml"], "found the same twice"),
        (["configs/base.yaml", "--set", "training.epoch=5"], "did you mean 'epochs'"),
    ],
)
def test_a_wrong_call_is_one_clear_line_before_anything_is_trained(more, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=expected):
        door.main(["compare", *more])


def test_options_about_folders_hold_for_all_configurations(make_folder, tmp_path):
    root = make_folder({"0": 2, "1": 2})
    options = ["compare", str(ROOT / "configs" / "cnn.yaml"), "--data", str(root), "--output", str(tmp_path / "out")]
    with pytest.raises(DataError, match=r"whether 1 \(2 images\) is fake or real"):
        door.main([*options, "--class", "0=real"])
    (tmp_path / "labels.csv").write_text("id,label\n7,fake\n")
    with pytest.raises(DataError, match="no path in it names an image"):
        door.main([*options, "--labels", str(tmp_path / "labels.csv")])


def test_recipes_on_other_pictures_are_refused(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(f"data: {{path: {name}}}\n")
    with pytest.raises(ConfigError, match=r"found other data\.path in two than in one: .* --data DIR"):
        compare.plan([tmp_path / "one.yaml", tmp_path / "two.yaml"], tmp_path / "out", {})


def test_recipes_that_divide_differently_are_refused_by_the_key_that_differs(tmp_path):
    (tmp_path / "one.yaml").write_text("seed: 1\n")
    (tmp_path / "two.yaml").write_text("data: {shares: [0.8, 0.1, 0.1]}\n")
    with pytest.raises(ConfigError, match=r"found other data\.shares in two .* --set data\.shares=\.\.\."):
        compare.plan([tmp_path / "one.yaml", tmp_path / "two.yaml"], tmp_path / "out", {})


def test_another_split_than_that_of_the_first_time_is_refused(tmp_path):
    header = "path,sha256,label,source,split,reason\n"
    kept, same, other = tmp_path / "out" / "split.csv", tmp_path / "same.csv", tmp_path / "other.csv"
    kept.parent.mkdir()
    kept.write_text(header + "a.png,AA,fake,,train,\nb.png,bb,real,,test,\nc.png,cc,real,,left_out,damaged\n")
    same.write_text(header + "x.png,aa,fake,,train,\nb.png,bb,real,,test,\nd.png,dd,fake,,test,\n")
    other.write_text(header + "a.png,aa,fake,,test,\nb.png,bb,real,,test,\n")
    (tmp_path / "one.yaml").write_text("seed: 1\n")
    run = compare.plan([tmp_path / "one.yaml"], kept.parent, {"data.split_file": str(same)})[0]
    assert run.config.data.split_file == str(kept)
    with pytest.raises(ConfigError, match=r"split\.csv: expected the split of .*other\.csv, found another"):
        compare.plan([tmp_path / "one.yaml"], kept.parent, {"data.split_file": str(other)})
    other.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"other\.csv: expected the columns path, sha256"):
        compare.plan([tmp_path / "one.yaml"], kept.parent, {"data.split_file": str(other)})


def test_a_recipe_that_lies_in_the_output_folder_stays_as_it_is(tmp_path):
    recipe = tmp_path / "one.yaml"
    recipe.write_text("seed: 1  # mine\n")
    (tmp_path / "split.csv").write_text("path,sha256,label,source,split,reason\n")
    (run,) = compare.plan([recipe], tmp_path, {})
    assert run.asked != recipe


def test_a_run_whose_loss_ran_away_is_said():
    metrics = {"f1_macro": 0.91, "accuracy": 0.9, "roc_auc": 0.95, "intervals": {"f1_macro": [0.9, 0.92]}}
    tree = {"metrics": metrics, "model": {"network": "cnn", "parameters": 1234},
            "training": {"data": {}},
            "cost": {"epochs": 2, "minutes": 1.234, "images_per_s": 123.4, "diverged": True}}  # fmt: skip
    assert comparison.comparison_markdown([comparison.Row("wild", tree, None)], {})[-1].startswith(
        "\nwild: its loss diverged"
    )


@pytest.mark.parametrize("text", [None, "path,label\na.png,fake\n"])
def test_damaged_answers_are_one_clear_line(tmp_path, text):
    run = compare.Run("one", config.Config(), tmp_path)
    run.records.mkdir()
    run.cost.write_text("{}")
    (run.records / "metrics.json").write_text('{"metrics": {"f1_macro": 0.9}}')
    if text:
        (run.records / "predictions.csv").write_text(text)
    with pytest.raises(
        FakeRealError, match=r"predictions\.csv: expected the predictions of a training, found a damaged"
    ):
        comparison.comparison_rows([run])


def test_runs_on_other_pictures_than_the_best_are_said():
    trees = {name: {"cost": {}, "training": {"data": {"fingerprint": data}}} for name, data in [("best", "a"),
             ("same", "a"), ("old", "b")]}  # fmt: skip
    (told,) = comparison.comparison_warnings([comparison.Row(name, tree, None) for name, tree in trees.items()], {})
    assert told.startswith("old: the images or labels changed between its training and that of best")


def test_fine_tuning_that_was_chosen_by_time_is_said_once_for_all_runs():
    chosen = {"one": "all layers, 6 epochs", "two": "the head alone", "three": None}
    trees = {name: {"cost": {"fine_tuned_by_time": text}, "training": {"data": {}}} for name, text in chosen.items()}
    (told,) = comparison.comparison_warnings([comparison.Row(name, tree, None) for name, tree in trees.items()], {})
    assert told.startswith("fine-tuning chosen by time: one all layers, 6 epochs; two the head alone; another machine")
    trees.pop("one"), trees.pop("two")
    assert comparison.comparison_warnings([comparison.Row(name, tree, None) for name, tree in trees.items()], {}) == []


def test_a_run_whose_base_was_renewed_is_trained_anew(tmp_path):
    (tmp_path / "split.csv").write_text("path,sha256,label,source,split,reason\n")
    base, recipe = tmp_path / "base.h5", tmp_path / "one.yaml"
    base.write_bytes(b"one")
    recipe.write_text(f"weights: {base}\n")
    (run,) = compare.plan([recipe], tmp_path, {})
    run.asked.parent.mkdir()
    run.asked.write_text(compare._asked(run))
    assert compare._is_asked(run)
    base.write_bytes(b"two")
    assert not compare._is_asked(run)


QUICK = "image_size: 32\nweights: none\nnetwork: {name: cnn, filters: [4], dense: []}\n"
RECIPES = {
    "fast": QUICK + "training: {epochs: 2, fine_tune: all, batch_size: 16}\n",
    "long": QUICK + "training: {epochs: 3, fine_tune: all, batch_size: 16, learning_rate: 0.01}\n",
    "broken": QUICK.replace("weights: none", "weights: nowhere.h5") + "training: {epochs: 2}\n",
}


@pytest.mark.slow
def test_recipes_are_trained_compared_and_not_trained_twice(tmp_path, capsys):
    data = make_labeled_images(tmp_path / "set", {"fake": 40, "real": 40})
    paths = [tmp_path / f"{name}.yaml" for name in RECIPES]
    for path, text in zip(paths, RECIPES.values(), strict=True):
        path.write_text(text)
    arguments = ["compare", *map(str, paths), "--data", str(data), "--output", str(tmp_path / "out")]
    assert door.main([*arguments, "--strict"]) == 1
    out, err = capsys.readouterr()
    assert "3/3 broken: failed" in err
    assert "broken failed: error: weights (--weights): expected auto, imagenet" in out
    table = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")]
    assert sorted(table[1:]) == ["fast", "long"]
    splits = [(tmp_path / "out" / f"{name}_run" / "split.csv").read_bytes() for name in ("fast", "long")]
    assert splits[0] == splits[1]
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
    assert float(rows[0]["f1_macro"]) >= float(rows[1]["f1_macro"])
    assert (rows[0]["mcnemar_p"], rows[2]["run"]) == ("", "broken")
    assert 0 < float(rows[1]["mcnemar_p"]) <= 1
    assert float(rows[0]["images_per_s"]) > 0
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert page.count("<svg") == 4
    assert json.loads((tmp_path / "out" / "fast_run" / "cost.json").read_text())["epochs"] == 2

    before = {name: (tmp_path / "out" / f"{name}.h5").stat().st_mtime_ns for name in ("fast", "long")}
    paths[0].write_text(RECIPES["fast"].replace("epochs: 2", "epochs: 1"))
    asked = tmp_path / "out" / "fast_run" / "asked.yaml"
    asked.write_text(asked.read_text().replace("epochs: 2", "epochs: 1"))  # as if killed before its first epoch ended
    (tmp_path / "out" / "fast_run" / "cost.json").unlink()
    assert door.main(arguments) == 0
    err = capsys.readouterr().err
    assert "2/3 long: trained already" in err
    assert "1/3 fast: training" in err
    assert (tmp_path / "out" / "long.h5").stat().st_mtime_ns == before["long"]
    assert (tmp_path / "out" / "fast.h5").stat().st_mtime_ns != before["fast"]

    assert "all tested on the same" in (tmp_path / "out" / "comparison.html").read_text()
    (data / "fake" / "7.png").unlink()
    (tmp_path / "out" / "fast_run" / "cost.json").unlink()
    assert door.main(arguments) == 0
    assert "the images or labels changed between its training and that of" in capsys.readouterr().out
    assert "all tested on the same" not in (tmp_path / "out" / "comparison.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_comparison_that_is_killed_leaves_no_training_behind(tmp_path):
    data = make_labeled_images(tmp_path / "set", {"fake": 40, "real": 40})
    (tmp_path / "long.yaml").write_text(RECIPES["long"].replace("epochs: 3", "epochs: 100000"))
    command = [sys.executable, "-m", "fakereal", "compare", tmp_path / "long.yaml", "--data", data]
    with subprocess.Popen([*command, "--output", tmp_path / "out"], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: "epoch 1/" in text_of(tmp_path / "out" / "long.log"), 120)
        children = text_of(Path(f"/proc/{process.pid}/task/{process.pid}/children")).split()
        process.kill()
    assert len(children) >= 1
    wait_until(lambda: not any(is_running(child) for child in children), 20)


def test_a_training_that_hangs_on_its_way_out_is_ended_all_the_same():
    code = """
import atexit, signal, threading
from fakereal import runtime
runtime.end_with_stdin(1)
lock = threading.Lock()
lock.acquire()
atexit.register(lock.acquire)
print("ready", flush=True)
signal.pause()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(20) == -signal.SIGALRM


def wait_until(condition, timeout_s):
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.1)


def text_of(path):
    return path.read_text() if path.exists() else ""


def is_running(pid):
    """Says whether a process is there and no zombie, which somebody else would have to clear away."""
    return text_of(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()[:1] not in ([], ["Z"])


def test_the_table_in_markdown_is_aligned():
    metrics = {"f1_macro": 0.91, "accuracy": 0.9, "roc_auc": 0.95, "intervals": {"f1_macro": [0.9, 0.92]}}
    tree = {"metrics": metrics, "model": {"network": "cnn", "parameters": 1234},
            "training": {"data": {}},
            "cost": {"epochs": 2, "minutes": 1.234, "images_per_s": 123.4}}  # fmt: skip
    lines = comparison.comparison_markdown(
        [comparison.Row("best", tree, None), comparison.Row("other", tree, 0.03), comparison.Row("third", tree, 1e-9)],
        {},
    )
    assert len({len(line) for line in lines}) == 1
    assert "91.0 %" in lines[2]
    assert "1,234" in lines[2]
    assert "0.03" in lines[3]
    assert "< 0.0001" in lines[4]


def test_a_run_of_one_epoch_can_be_seen_among_the_curves():
    axes = Figure().add_subplot()
    plots.loss_curves(axes, {"one": [(1, 0.6)], "three": [(1, 0.7), (2, 0.5), (3, 0.4)]})
    assert [line.get_marker() for line in axes.lines] == ["o", ""]
