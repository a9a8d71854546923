"""`--fine-tune auto` plans by measured time, and its plan is repeated without a clock; with a small base."""

import dataclasses
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from small_networks import SIZE_PX, residual_base

import train_model
from fakereal import config
from fakereal.cli import run_cli
from fakereal.config import AugmentationConfig, PhaseConfig, TrainingConfig
from fakereal.dataset.split import Split
from fakereal.model import networks
from fakereal.model.weights import BaseWeights
from fakereal.training import fine_tuning, run, trainer
from fakereal.training.features import FeatureCost
from fakereal.training.fine_tuning import FineTuning, PhaseCost

ALL, LAST20 = PhaseCost(60, 60), PhaseCost(20, 10)


def chosen(left_s, **costs):
    """Choose with fixed costs; return the decision and the scopes that were measured."""
    costs = {"all": ALL, "last20": LAST20, **costs}
    measured = []
    decided = fine_tuning.choose(lambda scope: measured.append(scope) or costs[scope], 10, left_s)
    return decided, measured


@pytest.mark.parametrize(
    ("left_s", "scope", "epochs", "measured"),
    [
        (5_000, "all", 10, ["all"]),
        (60 + 6 * 60, "all", 6, ["all"]),  # as many epochs as fit
        (60 + 3 * 60, "all", 3, ["all"]),
        (60 + 3 * 60 - 1, "last20", 10, ["all", "last20"]),
        (20 + 3 * 10, "last20", 3, ["all", "last20"]),
        (20 + 3 * 10 - 1, "none", 0, ["all", "last20"]),
        (-100, "none", 0, ["all", "last20"]),
    ],
)
def test_the_time_that_is_left_decides_layers_and_epochs(left_s, scope, epochs, measured):
    decided, tried = chosen(left_s)
    assert (decided.fine_tune, decided.epochs, tried) == (scope, epochs, measured)


def test_the_plan_is_printed_with_its_minutes(capsys):
    chosen(60 + 6 * 60)
    assert "fine-tuning: all layers, 6 epochs, about 7 minutes with measuring\n" in capsys.readouterr().err
    chosen(130)
    assert (
        "fine-tuning: the last 20 layers, 10 epochs, about 2 minutes with measuring"
        " (all layers would take about 11 minutes: more than --time-limit leaves)\n"
    ) in capsys.readouterr().err
    decided, _ = chosen(0)
    assert (
        "fine-tuning: none (all layers would take about 11 minutes, the last 20 layers would take about 2 minutes:"
        " more than --time-limit leaves)\n"
    ) in capsys.readouterr().err
    assert decided.minutes == {"all": 11.0, "last20": 2.0}


@pytest.mark.parametrize(
    ("minutes", "text"), [(0.0, "about 1 minute"), (1.6, "about 2 minutes"), (66_667.0, "about 1111 hours")]
)
def test_an_estimate_is_never_nothing_and_long_ones_are_in_hours(minutes, text):
    assert fine_tuning.about(minutes) == text


def test_the_plan_counts_the_compilation_and_a_pass_over_all_images():
    class Slow:
        """In place of a batch source: the first steps compile, a step takes 20 ms."""

        cost, augmented_versions, compiled = FeatureCost(), 0, False

        def fit(self, records, sampler, batch_size, callbacks=()):
            time.sleep(0.0 if self.compiled else 0.5)
            self.compiled = True
            for number in range(len(records) // batch_size):
                time.sleep(0.02)
                for callback in callbacks:
                    callback.on_train_batch_end(number, {})

    few, many = (
        fine_tuning.measure(Slow(), Split((None,) * 64, (), (None,) * tested, ()), PhaseConfig(batch_size=16), 0)
        for tested in (0, 64_000)
    )
    assert few.once_s > 0.5
    assert many.once_s > few.once_s + 64_000 * 0.02 / 16 / 4


def trained_by(choice, decided):
    origin = BaseWeights("a base", pretrained=True, choice=choice)
    return SimpleNamespace(origin=origin, training=TrainingConfig(fine_tune=decided.fine_tune), fine_tuning=decided)


@pytest.mark.parametrize(
    ("weights", "choice", "gains"),
    [("auto", "imagenet", True), ("imagenet", "", True), ("auto", "pretrained", False), ("my.h5", "", False)],
)
def test_the_advice_says_what_fine_tuning_brought_only_for_a_base_that_was_not_fine_tuned_before(
    weights, choice, gains
):
    decided = FineTuning("none", 0, {"all": 200.0, "last20": 40.0})
    advice = run._advice(config.Config(weights=weights), trained_by(choice, decided))
    start = "Next step: --fine-tune all trains all layers, about 3 hours more here (last20: about 40 minutes)"
    assert advice.startswith(start)
    assert ("+3 to +17 F1 points" in advice) == gains
    assert "\n" not in advice


@pytest.mark.parametrize("fitting", [3, 10])
def test_the_next_step_trains_as_many_epochs_as_its_minutes_are_for(tmp_path, fitting):
    decided, asked = FineTuning("last20", fitting, {"all": 30.0, "last20": 5.0}), TrainingConfig()
    saved = config.Config(weights="imagenet", training=fine_tuning.resolved(asked, decided))
    (tmp_path / "config.yaml").write_text(config.dumps(saved))
    result = run.TrainResult(
        SimpleNamespace(metadata=SimpleNamespace(config=saved)), tmp_path / "m.h5", tmp_path, 0, False, False,
        run._advice(config.Config(), trained_by("imagenet", decided)), asked.fine_tune_epochs, decided,
    )  # fmt: skip
    options = vars(train_model.parser().parse_args(run._next_step(result).split()[2:]))
    flags = {key: value for key, value in options.items() if value is not None and "." in key}
    again = config.load(options["config"], flags).training
    assert (again.fine_tune, again.fine_tune_epochs) == ("all", asked.fine_tune_epochs)


# whole trainings


@pytest.fixture(autouse=True)
def small_base(monkeypatch):
    monkeypatch.setattr(networks, "_base", residual_base)
    monkeypatch.setattr(run, "load_base", lambda *_: BaseWeights("made for the test", pretrained=True))


def recipe(data, cache, **more):
    return config.Config(
        SIZE_PX,
        "pretrained",
        data=config.DataConfig(str(data), cache_dir=str(cache)),
        augmentation=AugmentationConfig(rotation_degrees=0.0),
        training=TrainingConfig(**{"epochs": 2, "batch_size": 16, "fine_tune_epochs": 4, **more}),
        report=config.ReportConfig(resave_images=0),
    )


def weights_of(outcome):
    return outcome.detector.model.get_weights()


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(weights_of(one), weights_of(other), strict=True))


def scopes(outcome):
    return [(row["train"], row["epoch"]) for row in outcome.detector.metadata.history]


HEAD, TUNED = [("head", 1), ("head", 2)], [("all", 1), ("all", 2), ("all", 3), ("all", 4)]


def test_all_layers_are_trained_where_they_fit_and_the_saved_configuration_repeats_the_run_without_a_clock(
    images, tmp_path, monkeypatch
):
    first = run.train_and_report(recipe(images, tmp_path / "cache"), tmp_path / "first.h5")
    assert scopes(first) == HEAD + TUNED
    assert first.advice == ""
    saved = config.load(first.folder / "config.yaml")
    assert (saved.training.fine_tune, saved.training.fine_tune_epochs) == ("all", 4)
    monkeypatch.setattr(fine_tuning, "choose", None)  # would fail
    again = run.train_and_report(saved, tmp_path / "again.h5")
    assert same(first, again)
    assert [row["val_loss"] for row in first.detector.metadata.history] == [
        row["val_loss"] for row in again.detector.metadata.history
    ]


def test_without_time_the_head_alone_is_trained_and_the_advice_says_the_minutes(images, tmp_path):
    outcome = run.train_and_report(recipe(images, "none", time_limit_minutes=0.0), tmp_path / "m.h5")
    assert scopes(outcome) == HEAD
    advice = "Next step: --fine-tune all trains all layers, about 1 minute more here (last20: about 1 minute)"
    assert outcome.advice == advice  # one line; what it brings is not known for this base
    assert json.loads((outcome.folder / "cost.json").read_text())["fine_tuned_by_time"] == "the head alone"
    assert config.load(outcome.folder / "config.yaml").training.fine_tune == "none"


@pytest.mark.slow
def test_measuring_leaves_the_head_as_it_is(images, tmp_path):
    auto = run.train_and_report(recipe(images, "none", time_limit_minutes=0.0), tmp_path / "auto.h5")
    plain = run.train_and_report(recipe(images, "none", fine_tune="none"), tmp_path / "plain.h5")
    assert same(auto, plain)


def kill_before(patch, epoch):
    """Make a run end, as a kill would, before an epoch of all layers."""
    run_epoch = trainer._run_epoch

    def stopping(run_, model, source, phase, number):
        if phase.train == "all" and run_.state.epoch == epoch:
            raise SystemExit
        run_epoch(run_, model, source, phase, number)

    patch.setattr(trainer, "_run_epoch", stopping)


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_killed_run_repeats_its_plan_and_not_the_clock(images, tmp_path, monkeypatch, epoch):
    asked = recipe(images, tmp_path / "cache")
    first = run.train_and_report(asked, tmp_path / "whole.h5")
    with pytest.MonkeyPatch.context() as patch:
        kill_before(patch, epoch)
        with pytest.raises(SystemExit):
            run.train_and_report(asked, tmp_path / "killed.h5")
    monkeypatch.setattr(fine_tuning, "measure", None)  # would fail
    again = run.train_and_report(asked, tmp_path / "killed.h5", resume=True)
    assert scopes(again) == HEAD + TUNED
    assert same(first, again)


@pytest.mark.slow
def test_fine_tuning_that_makes_it_worse_on_validation_is_dropped(images, tmp_path):
    ruined = {"fine_tune": "all", "fine_tune_learning_rate": 10.0, "fine_tune_epochs": 1}
    head = run.train_and_report(recipe(images, "none", fine_tune="none"), tmp_path / "head.h5")
    tuned = run.train_and_report(recipe(images, "none", **ruined), tmp_path / "tuned.h5")
    losses = [row["val_calibrated_loss"] for row in tuned.detector.metadata.history]
    assert losses[-1] > min(losses[:-1])
    assert same(head, tuned)


@pytest.mark.slow
def test_the_last_layers_are_trained_where_all_do_not_fit(images, tmp_path, monkeypatch):
    measure = fine_tuning.measure

    def slow(source, split, phase, seed):
        cost = measure(source, split, phase, seed)
        return dataclasses.replace(cost, epoch_s=10**6) if phase.train == "all" else cost

    monkeypatch.setattr(fine_tuning, "measure", slow)
    outcome = run.train_and_report(recipe(images, tmp_path / "cache"), tmp_path / "m.h5")
    assert [train for train, _ in scopes(outcome)] == ["head"] * 2 + ["last20"] * 4
    assert "--fine-tune all trains all layers, about 1111 hours more here" in outcome.advice


def test_a_time_limit_without_a_choice_is_refused(images, tmp_path, capsys):
    more = ["--data", str(images), "--output", str(tmp_path / "m.h5"), "--fine-tune", "all", "--time-limit", "5"]
    assert run_cli(train_model.main, more) == 2
    assert (
        "--time-limit: applies to --fine-tune auto only, found all: leave out one of the two" in capsys.readouterr().err
    )
