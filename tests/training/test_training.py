import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import train_model
from fakereal import config, files
from fakereal.cli import run_cli
from fakereal.config import AugmentationConfig, PhaseConfig, ResavingConfig, TrainingConfig
from fakereal.dataset.scan import Record, labels_of, scan
from fakereal.dataset.split import scan_and_split
from fakereal.engines.card import find_beside
from fakereal.errors import DataError, ImageRefused
from fakereal.files import sha256_of
from fakereal.model import augmentation, model_file
from fakereal.model.metadata import read_metadata
from fakereal.model.weights import BaseWeights
from fakereal.preprocessing import Preprocessing
from fakereal.training import cache as training_cache
from fakereal.training import run, trainer
from fakereal.training.input_pipeline import EpochSampler, augmented_batches, plain_batches, training_array

ROOT = Path(__file__).resolve().parents[2]
STILL = AugmentationConfig(horizontal_flip=False, rotation_degrees=0.0)


def options(data, output, *more):
    return ["--data", str(data), "--output", str(output), "--network", "cnn", "--weights", "none", "--fine-tune", "all",
            "--image-size", "32", "--batch-size", "16", *more]  # fmt: skip


def train(data, output, *more, check=True):
    command = [sys.executable, str(ROOT / "train_model.py"), *options(data, output, *more)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if check:
        assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def refusal(capsys):
    """A function that tries to train in this process, which saves TensorFlow's start; it returns what was said."""

    def refuse(data, output, *more):
        assert run_cli(train_model.main, options(data, output, *more)) == 2
        return capsys.readouterr().err

    return refuse


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "model.h5"
    return output, train(images, output, "--epochs", "6")


@pytest.mark.parametrize("size", [32, 64])
def test_a_training_at_another_size_than_its_backbone_names_the_backbones_size(images, tmp_path, size, capsys):
    pooled = config.Config(
        32,
        network=config.NetworkConfig("cnn", pooling="avg"),
        data=config.DataConfig(str(images), cache_dir="none"),
        training=TrainingConfig(epochs=1, batch_size=16, fine_tune="none"),
        report=config.ReportConfig(resave_images=0),
    )
    backbone = tmp_path / "backbone.h5"
    run.train_and_report(replace(pooled, weights="none"), backbone)
    run.train_and_report(replace(pooled, weights=str(backbone), image_size=size), tmp_path / "next.h5")
    told = "this backbone was trained at 32 pixels: --image-size 32 may give a better detector"
    assert (told in capsys.readouterr().err) == (size == 64)


def test_a_folder_becomes_a_model_that_tells_fake_from_real(trained):
    output, done = trained
    metadata = read_metadata(output)
    assert metadata.metrics["test"]["roc_auc"] > 0.9
    assert metadata.base_weights == "random weights"
    assert metadata.preprocessing == Preprocessing(32)
    assert "F1 on" in done.stdout.splitlines()[-1]
    report = Path(done.stdout.splitlines()[-2].removeprefix("report: "))
    assert report.name == "report.html"
    assert report.is_file()
    assert "validation loss" in done.stderr


def test_beside_the_model_lies_its_network_for_prediction_without_tensorflow(trained):
    found = find_beside(trained[0], sha256_of(trained[0]))
    assert found.metadata == read_metadata(trained[0])
    assert "for prediction without TensorFlow" not in trained[1].stderr  # the line that says why there is none


def test_the_run_leaves_its_records(trained, images):
    folder = trained[0].with_name("model_run")
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert [row["epoch"] for row in rows] == [str(number) for number in range(1, 7)]
    assert config.load(folder / "config.yaml").data.path == str(images)
    report = json.loads((folder / "report.json").read_text())
    assert report["metrics"]["test"]["images"] == sum(report["data"]["test"].values())
    split = list(csv.DictReader((folder / "split.csv").open()))
    assert len(split) == 80
    assert {row["split"] for row in split} == {"train", "val", "test"}


def test_the_figures_in_the_file_are_those_of_the_model_in_the_file(trained, images):
    output, _ = trained
    detector = model_file.load(output)
    split = trained[0].with_name("model_run") / "split.csv"
    test = [images / row["path"] for row in csv.DictReader(split.open()) if row["split"] == "test"]
    p_real = detector.p_real(np.stack([Preprocessing(32).read(path) for path in test]))
    labels = np.array([path.parent.name == "real" for path in test], dtype=int)
    from fakereal.model.metrics import measure

    again = measure(labels, p_real, detector.metadata.decision)
    assert again["confusion"] == detector.metadata.metrics["test"]["confusion"]
    assert again["roc_auc"] == pytest.approx(detector.metadata.metrics["test"]["roc_auc"], abs=1e-6)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model_to_the_bit(trained, images, tmp_path):
    train(images, tmp_path / "again.h5", "--epochs", "6")
    once, again = (model_file.load(path).model.get_weights() for path in (trained[0], tmp_path / "again.h5"))
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(once, again, strict=True))


def kill_after(text, command):
    """Runs a command until it says `text`, and kills it there."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if text in line:
            process.kill()
            break
    process.stderr.close()
    process.wait()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_model(images, tmp_path):
    more = ("--epochs", "20")
    whole, killed = tmp_path / "whole.h5", tmp_path / "killed.h5"
    train(images, whole, *more)
    command = [sys.executable, str(ROOT / "train_model.py"), *options(images, killed, *more)]
    kill_after("epoch 2/20:", command)
    assert not killed.exists()
    done = train(images, killed, *more, "--resume")
    assert "resuming after epoch" in done.stderr
    assert "epoch 1/20:" not in done.stderr
    once, again = (model_file.load(path).model.get_weights() for path in (whole, killed))
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(once, again, strict=True))


def test_a_mistake_leaves_the_records_of_the_model_that_is_there(trained, images, refusal):
    output, _ = trained
    split = (output.with_name("model_run") / "split.csv").read_bytes()
    assert "imagnet" in refusal(images, output, "--seed", "1", "--weights", "imagnet")
    assert (output.with_name("model_run") / "split.csv").read_bytes() == split


def test_an_early_ctrl_c_leaves_the_records_of_the_model_that_is_there(
    trained, images, tmp_path, monkeypatch, make_set, train_here
):
    def stop(*_):
        raise KeyboardInterrupt

    folder = trained[0].with_name("model_run")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    monkeypatch.setattr(trainer, "_run_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        train_here(make_set(tmp_path / "other"), trained[0], tensorboard=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert not (folder / "tensorboard").exists()


def test_weights_that_another_training_renewed_make_another_run(tmp_path, images):
    _, split = scan_and_split(config.Config(data=config.DataConfig(str(images))))
    base = tmp_path / "base.h5"
    names = []
    for content in (b"one", b"one", b"two"):
        base.write_bytes(content)
        names.append(run._identity(config.Config(weights=str(base)), split))
    assert names[0] == names[1] != names[2]


def test_two_runs_with_one_output_are_told_apart(trained, images, refusal):
    output, _ = trained
    with files.locked(output.with_name("model_run") / ".lock"):
        assert "in use by another run: wait until that run ends" in refusal(images, output)


def test_ctrl_c_keeps_the_best_model_so_far_and_says_so(images, tmp_path):
    output = tmp_path / "model.h5"
    command = [sys.executable, str(ROOT / "train_model.py"), *options(images, output, "--epochs", "500")]
    # A shell may have started the tests with Ctrl-C switched off, which children inherit.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    text = ""
    for line in process.stderr:
        text += line
        if "epoch 2/500" in line:
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            break
    text += process.stderr.read()
    assert process.wait(timeout=120) == 130, text
    assert "the best model so far is kept, measured and saved" in text
    assert model_file.load(output).metadata.metrics["test"]["images"] > 0


def test_a_checkpoint_of_another_run_is_refused(trained, images, refusal):
    said = refusal(images, trained[0], "--epochs", "9", "--resume")
    assert "found one of another run" in said
    assert len(said.strip().splitlines()[-1]) < 400


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ((), "no files: put images into class folders, or check the path"),
        (("fake",), "1 fake and 0 real images: add a folder of real images"),
        (("fake", "real"), "train, val and test need fake and real images each; found train "),
    ],
)
def test_too_little_to_learn_from_is_one_clear_line(tmp_path, refusal, names, sentence):
    for name in names:
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red" if name == "fake" else "blue").save(tmp_path / "set" / name / "1.png")
    (tmp_path / "set").mkdir(exist_ok=True)
    said = refusal(tmp_path / "set", tmp_path / "model.h5")
    assert said.splitlines()[-1].startswith("error: ")
    assert sentence in said.splitlines()[-1]
    assert "Traceback" not in said


def test_a_picture_that_cannot_be_read_is_listed_and_costs_exit_code_1_under_strict(tmp_path, make_set):
    make_set(tmp_path / "set")
    (tmp_path / "set" / "fake" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "set" / "notes.txt").write_text("mine")
    done = train(tmp_path / "set", tmp_path / "model.h5", "--epochs", "1", "--strict", check=False)
    assert done.returncode == 1
    assert "fake/broken.png" in done.stderr
    assert "notes.txt" in done.stderr


FORMATS = [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("BMP", {}), ("GIF", {}),
           ("TIFF", {}), ("AVIF", {})]  # fmt: skip


@pytest.mark.parametrize(("file_format", "save"), FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_training_and_prediction_see_the_same_array_bit_for_bit(tmp_path, file_format, save, mode):
    picture = Image.effect_noise((75, 50), 90).convert(mode)
    path = tmp_path / f"picture.{file_format.lower()}"
    try:
        picture.save(path, file_format, **save)
    except OSError:
        picture.convert("RGB").save(path, file_format, **save)
    record, preprocessing = Record(path, 1, "", "", "", None), Preprocessing(64)
    predicted = preprocessing.read(path)
    rng = np.random.default_rng(0)
    assert np.array_equal(training_array(record, preprocessing, STILL, rng), predicted)
    for batches in (
        augmented_batches([record], preprocessing, STILL, EpochSampler(0, 0, 0), 4),
        plain_batches([record], preprocessing, 4),
    ):
        ((images, labels),) = list(batches.as_numpy_iterator())
        assert images.dtype == np.float32
        assert np.array_equal(images[0].astype(np.uint8), predicted)
        assert labels.tolist() == [[1.0]]


def test_an_epoch_ends_with_its_last_batch(images):
    records = scan(images, Preprocessing(32)).records[:8]
    batches = augmented_batches(records, Preprocessing(32), STILL, EpochSampler(0, 0, 0), 1)
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(batches, verbose=0)
    slow = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: time.sleep(0.38))
    started = time.monotonic()
    model.fit(batches, verbose=0, callbacks=[slow])
    assert time.monotonic() - started < 4.6  # TensorFlow's tuning would sleep until 5.11 s have passed


def test_an_epoch_holds_every_picture_once_in_an_order_of_its_own(images):
    records = scan(images, Preprocessing(32)).records
    first, second = (EpochSampler(0, 0, epoch).order(records) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(80))
    assert first.tolist() != second.tolist()
    assert first.tolist() == EpochSampler(0, 0, 0).order(records).tolist()


def test_a_balanced_draw_gives_small_sources_more_than_their_share():
    records = [Record(Path(str(n)), n % 2, "large" if n < 900 else "small", "", "", None) for n in range(1000)]
    shares = {}
    for balance in (0.0, 0.5, 1.0):
        drawn = EpochSampler(0, 0, 0, 150, balance).order(records)
        assert len(set(drawn.tolist())) == 150
        shares[balance] = np.mean(drawn >= 900)
    assert shares[0.0] < 0.2 < shares[0.5] < shares[1.0]


def test_changes_depend_on_seed_epoch_and_picture_alone(images):
    record = scan(images, Preprocessing(32)).records[0]
    strong = AugmentationConfig(shift=0.1, brightness=0.2, resaving=ResavingConfig(share=1.0))

    def changed(draw):
        return training_array(record, Preprocessing(64), strong, draw.rng(record))

    assert np.array_equal(changed(EpochSampler(1, 0, 0)), changed(EpochSampler(1, 0, 0)))
    assert not np.array_equal(changed(EpochSampler(1, 0, 0)), changed(EpochSampler(1, 0, 1)))
    assert not np.array_equal(changed(EpochSampler(1, 0, 0)), changed(EpochSampler(2, 0, 0)))


def test_a_rotation_leaves_no_black_corners():
    white = np.full((64, 64, 3), 255, dtype=np.uint8)
    for seed in range(20):
        turned = augmentation.transform_geometry(
            white, np.random.default_rng(seed), AugmentationConfig(rotation_degrees=180)
        )
        assert turned.shape == white.shape
        assert turned.min() == 255


def test_a_shift_moves_the_content():
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[30:34, 30:34] = 255
    seen = set()
    for seed in range(20):
        moved = augmentation.transform_geometry(
            image, np.random.default_rng(seed), AugmentationConfig(False, rotation_degrees=0, shift=0.2)
        )
        assert moved.sum() == image.sum()
        seen.add(tuple(np.argwhere(moved[..., 0]).mean(axis=0)))
    assert len(seen) > 10
    assert max(abs(y - 31.5) for y, _ in seen) <= 13


def test_a_pretrained_base_is_first_kept_frozen_then_fine_tuned_with_frozen_batch_norm():
    plan = trainer.phases(TrainingConfig(fine_tune="last20", epochs=3), BaseWeights("ImageNet", True))
    assert [(p.train, p.epochs, p.batch_norm) for p in plan] == [("head", 3, "frozen"), ("last20", 10, "frozen")]
    assert plan[1].learning_rate < plan[0].learning_rate


@pytest.mark.parametrize(
    ("options", "rate", "schedule", "warmup"),
    [
        ({"fine_tune": "all"}, 3e-4, "cosine", 0.1),
        ({"fine_tune": "all", "schedule": "cosine", "warmup": 0.3}, 3e-4, "cosine", 0.3),
        ({"fine_tune": "last20"}, 1e-4, "constant", 0.0),
        ({"fine_tune": "all", "schedule": "plateau", "fine_tune_learning_rate": 2e-5}, 2e-5, "plateau", 0.0),
    ],
)
def test_all_layers_are_fine_tuned_at_a_higher_rate_that_rises_first_and_falls(options, rate, schedule, warmup):
    head, tuned = trainer.phases(TrainingConfig(**options), BaseWeights("ImageNet", True))
    assert (tuned.learning_rate, tuned.schedule, tuned.warmup) == (rate, schedule, warmup)
    assert (head.schedule, head.warmup) == (options.get("schedule", "constant"), options.get("warmup", 0.0))


def test_a_phase_has_a_warmup_of_its_own():
    own = TrainingConfig(phases=(PhaseConfig("all", warmup=0.2), PhaseConfig("all")), warmup=0.1)
    assert [phase.warmup for phase in trainer.phases(own, BaseWeights("ImageNet", True))] == [0.2, 0.1]


def test_a_base_of_random_weights_learns_at_once_and_with_its_batch_norm():
    plan = trainer.phases(TrainingConfig(fine_tune="all", epochs=3), BaseWeights("random weights", False))
    assert [(p.train, p.epochs, p.batch_norm) for p in plan] == [("all", 3, "learned")]


def test_phases_of_ones_own_are_taken_as_they_are():
    own = TrainingConfig(phases=(PhaseConfig("all", 2, image_size=32), PhaseConfig("head", 1)), batch_size=7)
    plan = trainer.phases(own, BaseWeights("ImageNet", True))
    assert [(p.train, p.epochs, p.image_size, p.batch_size) for p in plan] == [("all", 2, 32, 7), ("head", 1, None, 7)]


RECIPE = """
image_size: 40
weights: none
network: {name: cnn, filters: [4, 8], pooling: avg}
training:
  optimizer: adamw
  weight_decay: 0.01
  schedule: cosine
  warmup: 0.2
  average_weights: 0.5
  class_weights: true
  label_smoothing: 0.05
  phases:
    - {train: all, epochs: 2, image_size: 32}
    - {train: all, epochs: 3, images_per_epoch: 20}
"""


@pytest.mark.slow
def test_a_run_killed_in_its_second_phase_goes_on_to_the_same_model(images, tmp_path):
    recipe = tmp_path / "grow.yaml"
    recipe.write_text(RECIPE)
    script = [sys.executable, str(ROOT / "train_model.py"), "--config", str(recipe), "--data", str(images)]
    whole = subprocess.run([*script, "--output", str(tmp_path / "whole.h5")], capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    kill_after("40 px, epoch 1/3:", [*script, "--output", str(tmp_path / "killed.h5")])
    again = subprocess.run(
        [*script, "--output", str(tmp_path / "killed.h5"), "--resume"], capture_output=True, text=True
    )
    assert "32 px" not in again.stderr
    assert again.stdout == whole.stdout.replace("whole_run", "killed_run")
    ours, theirs = (model_file.load(tmp_path / f"{name}.h5") for name in ("whole", "killed"))
    assert [(row["phase"], row["epoch"]) for row in ours.metadata.history] == [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]
    pairs = zip(ours.model.get_weights(), theirs.model.get_weights(), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)


@pytest.mark.slow
def test_a_moving_average_leaves_the_path_of_the_training_as_it_is(images, tmp_path, train_here):
    plain = train_here(images, tmp_path / "plain.h5").detector.metadata.history
    averaged = train_here(images, tmp_path / "averaged.h5", average_weights=0.9).detector.metadata.history
    assert [row["loss"] for row in plain] == [row["loss"] for row in averaged]
    assert [row["val_loss"] for row in plain] != [row["val_loss"] for row in averaged]


def test_patience_ends_a_phase_that_gets_no_better(images, tmp_path, train_here):
    history = train_here(images, tmp_path / "m.h5", epochs=30, learning_rate=1.0, patience=2).detector.metadata.history
    losses = [row["val_calibrated_loss"] for row in history]
    assert len(losses) < 30
    assert len(losses) - losses.index(min(losses)) == 2 + 1


@pytest.mark.slow
def test_where_a_base_stayed_as_it_was_the_run_says_what_to_try_next(images, tmp_path, train_here):
    base = train_here(images, tmp_path / "base.h5", epochs=1)
    assert base.advice == ""
    again = {"weights": str(base.output), "epochs": 1, "fine_tune_epochs": 1}
    assert "--fine-tune auto" in train_here(images, tmp_path / "head.h5", fine_tune="none", **again).advice
    assert train_here(images, tmp_path / "tuned.h5", fine_tune="all", **again).advice == ""
    listed = {"phases": (PhaseConfig("head", 1, 0.001),)}  # a recipe that lists its phases refuses --fine-tune
    assert train_here(images, tmp_path / "listed.h5", fine_tune="none", **again, **listed).advice == ""


def test_a_picture_that_vanishes_during_training_is_named(tmp_path, monkeypatch, make_set, train_here):
    data = make_set(tmp_path / "set")
    victim = data / "fake" / "7.png"
    monkeypatch.setattr(run, "load_base", lambda *_: victim.unlink() or BaseWeights("random weights", pretrained=False))
    with pytest.raises(DataError, match=r"fake/7\.png: the file does not exist; .* --resume"):
        train_here(data, tmp_path / "model.h5")


@pytest.mark.parametrize("resaving", [0.0, 1.0])
def test_a_picture_that_changes_during_training_is_named_and_not_taken_for_the_one_that_was_scanned(
    tmp_path, resaving, make_set
):
    data = make_set(tmp_path / "set", count=2)
    record = scan(data, Preprocessing(32)).records[0]
    scanned = record.path.read_bytes()
    Image.open(record.path).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(record.path)
    options = AugmentationConfig(resaving=ResavingConfig(share=resaving))
    with training_cache.open_cache(config.DataConfig(cache_dir=str(tmp_path / "cache"))) as cache:
        kept = cache.images(Preprocessing(32))
        with pytest.raises(ImageRefused, match="the file has changed since it was scanned"):
            training_array(record, Preprocessing(32), options, np.random.default_rng(0), kept)
        assert kept.get(record.sha256) is None
        record.path.write_bytes(scanned)
        training_array(record, Preprocessing(32), options, np.random.default_rng(0), kept)
        assert (kept.get(record.sha256) is None) == bool(resaving)


def test_a_damaged_checkpoint_is_one_clear_line(trained, images, tmp_path, refusal):
    output = tmp_path / "model.h5"
    folder = tmp_path / "model_run"
    folder.mkdir()
    whole = trained[0].with_name("model_run") / "checkpoint.npz"
    (folder / "checkpoint.npz").write_bytes(whole.read_bytes()[:1000])
    said = refusal(images, output, "--epochs", "6", "--resume")
    assert "expected a checkpoint, found a damaged file" in said


def test_every_skipped_file_is_written_down(tmp_path, make_set, train_here):
    data = make_set(tmp_path / "set")
    for number in range(10):
        (data / "fake" / f"broken{number}.png").write_bytes(b"no picture")
    outcome = train_here(data, tmp_path / "model.h5", epochs=1)
    assert outcome.skipped == 10
    assert (outcome.folder / "skipped.tsv").read_text().count("text, not an image") == 10


def test_labels_come_in_the_order_of_the_records(images):
    records = scan(images, Preprocessing(32)).records
    assert labels_of(records).tolist() == [record.label for record in records]


def test_a_loss_that_runs_away_keeps_the_best_epoch_and_is_not_taken_for_ctrl_c(
    images, tmp_path, monkeypatch, train_here
):
    from fakereal.training.trainer import binary_log_loss

    losses = iter([0.5, 0.4, float("nan")])
    monkeypatch.setattr(trainer, "binary_log_loss", lambda *arrays: binary_log_loss(*arrays) * 0 + next(losses))
    outcome = train_here(images, tmp_path / "m.h5", epochs=5)
    assert (outcome.diverged, outcome.interrupted) == (True, False)
    assert [row["val_loss"] for row in outcome.detector.metadata.history] == [0.5, 0.4]


def test_a_model_of_other_images_is_kept_with_its_records_and_one_of_the_same_training_is_not(
    images, tmp_path, make_set, train_here, capsys
):
    output = tmp_path / "model.h5"
    for _ in range(2):
        train_here(images, output, epochs=1)
    assert list(tmp_path.rglob("*.bak")) == []
    before = output.read_bytes()
    make_set(tmp_path / "other", 38)
    train_here(tmp_path / "other", output, epochs=1)
    kept = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.bak")}
    assert kept >= {"model.h5.bak", "model.tflite.bak", "model_run/split.csv.bak", "model_run/report.html.bak"}
    assert "replaced other results, which are kept as " in capsys.readouterr().err
    assert (tmp_path / "model.h5.bak").read_bytes() == before


def test_a_training_that_ends_early_keeps_the_finished_model(images, tmp_path, monkeypatch, train_here):
    from fakereal.training.trainer import binary_log_loss

    output = tmp_path / "m.h5"
    train_here(images, output, epochs=3)
    finished = output.read_bytes()
    losses = iter([0.5, float("nan")])
    monkeypatch.setattr(trainer, "binary_log_loss", lambda *arrays: binary_log_loss(*arrays) * 0 + next(losses))
    assert train_here(images, output, epochs=3).diverged
    assert (tmp_path / "m.h5.bak").read_bytes() == finished
    assert (tmp_path / "m_run" / "history.csv.bak").exists()
