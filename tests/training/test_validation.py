import json
from pathlib import Path

import numpy as np
import pytest
from conftest import make_labeled_images

from fakereal.config import Config, DataConfig, NetworkConfig, TrainingConfig
from fakereal.dataset.scan import Record
from fakereal.model.metadata import read_metadata
from fakereal.model.metrics import binary_log_loss
from fakereal.training import loop, run
from fakereal.training.checkpoint import TensorBoard


def records(fake, real):
    return [Record(Path(f"{number}.png"), int(number >= fake), "", "", "", None) for number in range(fake + real)]


def test_validation_steps_draw_batches_of_both_classes_once():
    training = TrainingConfig(validation_steps=3, batch_size=8)
    chosen = loop.sample_validation(records(100, 100), training, seed=5)
    assert len(chosen) == len(set(chosen)) == 24
    assert sum(record.label for record in chosen) == 12
    assert chosen == loop.sample_validation(records(100, 100), training, seed=5)
    assert chosen != loop.sample_validation(records(100, 100), training, seed=6)


def test_a_small_class_gives_all_that_it_has():
    chosen = loop.sample_validation(records(3, 100), TrainingConfig(validation_steps=1, batch_size=10), seed=0)
    assert sum(record.label == 0 for record in chosen) == 3


@pytest.mark.parametrize("steps", [None, 25, 1000])
def test_without_a_limit_all_validation_pictures_count(steps):
    training = TrainingConfig(validation_steps=steps, batch_size=8)
    assert loop.sample_validation(records(100, 100), training, 0) == tuple(records(100, 100))


@pytest.mark.parametrize(
    ("losses", "factor"),
    [
        ([], 1),
        ([0.5, 0.4, 0.3], 1),
        ([0.5, 0.6], 1),
        ([0.5, 0.6, 0.5], 0.1),
        ([0.5, 0.6, 0.5, 0.4, 0.5, 0.4], 0.01),
        ([0.5, 0.6, 0.6, 0.6, 0.6], 0.01),
    ],
)
def test_the_rate_falls_where_the_validation_loss_stays(losses, factor):
    training = TrainingConfig(schedule="plateau", plateau_patience=2, plateau_factor=0.1)
    assert loop.plateau_rate(losses, 0.5, training) == pytest.approx(0.5 * factor)


def test_an_epoch_that_is_right_more_often_is_better_though_it_is_too_sure_of_itself():
    labels = np.array([0, 1] * 50)
    right = np.ones(100, bool)
    right[:20] = False
    timid = np.where(labels == 1, 0.65, 0.35)  # as sure as it is right, or less
    timid[:35] = 1 - timid[:35]
    sure = np.where(right == (labels == 1), 0.995, 0.005)
    assert binary_log_loss(labels, sure) > binary_log_loss(labels, timid)
    assert loop.calibrated_loss(labels, sure) < loop.calibrated_loss(labels, timid)


def test_outputs_that_are_hardly_apart_are_not_praised_for_a_lucky_order():
    labels = np.array([0, 1] * 10)
    order = np.where(labels == 1, 0.501, 0.499)
    assert loop.calibrated_loss(labels, order) == pytest.approx(binary_log_loss(labels, order))


@pytest.mark.parametrize("p_real", [np.full(6, np.nan), np.zeros(6), np.ones(6)])
def test_a_network_that_ran_away_has_a_calibrated_loss_too_or_none(p_real):
    loss = loop.calibrated_loss(np.array([0, 0, 0, 1, 1, 1]), p_real)
    assert np.isnan(loss) if np.isnan(p_real).any() else loss >= 0.6


def test_another_schedule_is_no_business_of_validation():
    assert loop.plateau_rate([0.5] * 20, 0.5, TrainingConfig()) == 0.5


def test_tensorboard_gets_every_epoch_once_also_after_a_kill(tmp_path):
    from tensorflow.python.summary.summary_iterator import summary_iterator

    row = {"loss": 0.5, "accuracy": 0.8, "val_loss": 0.6, "val_calibrated_loss": 0.6, "val_accuracy": 0.7, "seconds": 1}
    first = TensorBoard(tmp_path)
    first([row])
    again = TensorBoard(tmp_path)
    again([row, row])
    again([row, row, row])
    (path,) = tmp_path.iterdir()
    steps = [
        event.step for event in summary_iterator(str(path)) for value in event.summary.value if value.tag == "loss"
    ]
    assert steps == [1, 2, 3]
    TensorBoard(tmp_path)  # of a run that is stopped before it has anything to show
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose learning rate is so high that it falls, with every record that a run can leave."""
    folder = tmp_path_factory.mktemp("run")
    data = make_labeled_images(folder / "set", {"fake": 40, "real": 40})
    training = TrainingConfig(5, 16, learning_rate=0.5, fine_tune="all", schedule="plateau", plateau_patience=1,
                              plateau_factor=1e-4, validation_steps=1, tensorboard=True)  # fmt: skip
    network = NetworkConfig("cnn", filters=(4,))
    config = Config(32, "none", data=DataConfig(str(data)), network=network, training=training)
    return run.train_and_report(config, folder / "model.h5")


def test_a_plateau_calms_a_training_that_jumps_about(trained):
    losses = [row["val_loss"] for row in trained.detector.metadata.history]
    assert len(losses) == 5
    assert abs(losses[-1] - losses[-2]) < 0.1 * abs(losses[1] - losses[0])


def test_a_run_leaves_a_report_with_the_figures_of_the_model(trained):
    tree = json.loads((trained.folder / "metrics.json").read_text())
    metrics = read_metadata(trained.output).metrics["test"]
    assert tree["metrics"]["confusion"] == metrics["confusion"]
    assert tree["metrics"]["average_precision"] == pytest.approx(metrics["average_precision"], abs=1e-4)
    assert tree["subject"]["pictures"] == "the test split"
    assert f"--config {trained.folder / 'config.yaml'}" in tree["subject"]["command"]
    assert (trained.folder / "report.html").read_text().count("<svg") == 7  # accuracy by epoch among them
    assert (trained.folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((trained.folder / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_a_run_that_was_killed_after_its_last_epoch_keeps_its_history(trained):
    for path in (trained.folder / "tensorboard").iterdir():
        path.unlink()
    again = run.train_and_report(trained.detector.metadata.config, trained.output, resume=True)
    assert again.detector.metadata.history == trained.detector.metadata.history
    assert len(list((trained.folder / "tensorboard").iterdir())) == 1
