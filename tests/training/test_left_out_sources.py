"""A validation part of left-out sources gives the decision rule, and the record of what verdicts are worth."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, make_labeled_images
from small_networks import CNN, SIZE_PX, built

from fakereal.config import Config
from fakereal.dataset.split import Split
from fakereal.errors import DataError
from fakereal.labels import FAKE, REAL, SPLITS
from fakereal.model import calibration, model_file, unseen
from fakereal.model.calibration import DecisionRule, fit_decision_rule
from fakereal.model.metadata import Metadata
from fakereal.model.metrics import roc_auc
from fakereal.model.weights import load_base
from fakereal.preprocessing import Preprocessing
from fakereal.training import features, run, unseen_sources
from fakereal.training.base_choice import fit_probe
from fakereal.training.unseen_sources import divide, fit_left_out, group_count, leave_out_in_turn


def records(label, sources, count=120):
    return tuple(
        SimpleNamespace(label=label, source=source, sha256=hashlib.sha256(f"{source}{label}{n}".encode()).hexdigest())
        for source in sources
        for n in range(count)
    )


def outputs(split, seed=0):
    labels = np.array([record.label for record in split.val])
    logit = np.random.default_rng(seed).normal(np.where(labels == REAL, 1.0, -1.0), 1.0)
    return labels, 1 / (1 + np.exp(-logit))


def split_of(fake_sources, real_sources):
    train = records(FAKE, ["seen"]) + records(REAL, ["seen"])
    return Split(train, records(FAKE, fake_sources) + records(REAL, real_sources), (), ())


def test_left_out_sources_give_the_rule_and_its_record():
    split = split_of("abc", "xyz")
    labels, p_real = outputs(split)
    fitted = fit_left_out(split, p_real)
    rule, found = fitted.decision, fitted.record
    assert found["fake_sources"] == ["a", "b", "c"]
    assert 300 < found["images"] < 420  # half of 720: the other half fitted the rule
    assert found["right"] / found["verdicts"] > 0.8
    assert rule != fit_decision_rule(labels, p_real)


@pytest.mark.parametrize(
    ("fakes", "reals"),
    [(["a", "b"], ["x", "y", "z"]), (["a", "b", "seen"], ["x", "y", "z"]), (["", "a", "b"], ["x", "y", "z"])],
    ids=["too few", "one is trained on", "one is unknown"],
)
def test_other_validation_images_give_the_usual_rule_and_no_claim(fakes, reals):
    split = split_of(fakes, reals)
    labels, p_real = outputs(split)
    assert fit_left_out(split, p_real) is None
    usual = unseen_sources.fit_rule(split, p_real, split, {}, 0, True)
    assert (usual.decision, usual.record) == (fit_decision_rule(labels, p_real), {})


def split_by_content(fake_sources, real_sources, count=100):
    everything = records(FAKE, fake_sources, count) + records(REAL, real_sources, count)
    return Split(everything[0::2], everything[1::4], everything[3::4], ())


def test_each_group_has_both_classes_and_about_as_many_images():
    split = split_by_content(["both", *"abcdef"], ["both", *"uvwxyz"])
    groups = divide(split, 3)
    assert groups == divide(split, 3)
    assert set(groups) == {"both", *"abcdefuvwxyz"}
    for group in range(3):
        own = [name for name, number in groups.items() if number == group]
        assert 2 <= len({"both", *"abcdef"} & set(own)) <= 3
        assert 2 <= len({"both", *"uvwxyz"} & set(own)) <= 3


@pytest.mark.parametrize(
    ("fakes", "reals", "asked", "count"),
    [("abc", "xyz", None, 3), ("abcdefg", "tuvwxyz", None, 5), ("abc", "xy", None, 0), ("ab", "xy", 2, 2),
     ("abc", "xyz", 0, 0), (["", "a", "b"], "xyz", None, 0)],
)  # fmt: skip
def test_sources_are_left_out_by_default_where_each_class_has_three(fakes, reals, asked, count):
    assert group_count(split_by_content(fakes, reals), asked) == count


def test_more_groups_than_sources_are_refused():
    with pytest.raises(DataError, match="expected at least 4 sources of each class, found 5 of fake and 3 of real"):
        group_count(split_by_content("abcde", "xyz"), 4)


def features_of(split, own_of_source, seed=0):
    """Features of each split: a weak trace of the class, and a strong one of the source or of nothing."""
    rng = np.random.default_rng(seed)
    names = sorted({record.source for part in (split.train, split.val, split.test) for record in part})
    found = {}
    for name in ("train", "val", "test"):
        part = getattr(split, name)
        trace = np.array([[record.label * 2.0 - 1.0] for record in part]) + rng.normal(size=(len(part), 1))
        sources = np.array([[6.0 * own_of_source * (record.source == each) for each in names] for record in part])
        found[name] = np.hstack([trace, sources + 0.1 * rng.normal(size=sources.shape)])
    return found


def test_what_tells_the_sources_apart_is_worth_nothing_on_a_source_that_was_left_out():
    split = split_by_content("abcd", "wxyz")
    features, labels = features_of(split, own_of_source=1.0), np.array([record.label for record in split.test])
    seen = fit_probe(*(part[n] for n in ("train", "val") for part in (features, labels_by_name(split))))
    outputs = leave_out_in_turn(split, features, divide(split, 4), 4)
    assert roc_auc(labels, seen.p_real(features["test"])) > 0.99
    assert 0.35 < roc_auc(labels, outputs["test"]) < 0.65


def test_what_tells_the_classes_apart_everywhere_is_worth_as_much_on_a_source_that_was_left_out():
    split = split_by_content("abcd", "wxyz")
    outputs = leave_out_in_turn(split, features_of(split, own_of_source=0.0), divide(split, 4), 4)
    for name in ("train", "val", "test"):
        assert 0.87 < roc_auc(labels_by_name(split)[name], outputs[name]) < 0.97


def labels_by_name(split):
    return {name: np.array([record.label for record in getattr(split, name)]) for name in ("train", "val", "test")}


def test_images_of_no_named_source_take_part_in_every_training_and_in_no_figure():
    split = split_by_content(["", *"abc"], "xyz")
    outputs = leave_out_in_turn(split, features_of(split, 0.0), divide(split, 3), 3)
    unnamed = np.array([not record.source for record in split.test])
    assert np.isnan(outputs["test"][unnamed]).all()
    assert np.isfinite(outputs["test"][~unnamed]).all()


def by_hash(split, found):
    return {r.sha256: row for name in found for r, row in zip(getattr(split, name), found[name], strict=True)}


def test_confidence_is_fitted_to_images_of_left_out_sources():
    split = split_by_content("abcdef", "uvwxyz", 200)
    found = features_of(split, own_of_source=0.06)
    labels = labels_by_name(split)
    p_real = fit_probe(found["train"], labels["train"], found["val"], labels["val"]).p_real(found["val"])
    usual = unseen_sources.fit_rule(split, p_real, split, by_hash(split, found), 0, True)
    fitted = unseen_sources.fit_rule(split, p_real, split, by_hash(split, found), 3, True)
    assert fitted.decision.temperature > 1.5 * usual.decision.temperature  # less sure of itself
    assert fitted.decision.band[1] > fitted.decision.band[0]
    assert fitted.record["right"] / fitted.record["verdicts"] > 0.8
    assert fitted.record["images"] == len(split.test)
    assert set(fitted.record["test_by_source"]) == {*"abcdefuvwxyz"}
    trained = unseen_sources.fit_rule(split, p_real, split, by_hash(split, found), 3, False)
    assert "expect less" in unseen.sentence({"unseen_sources": trained.record})
    assert "expect less" not in unseen.sentence({"unseen_sources": fitted.record})


@pytest.mark.parametrize("moved", [lambda p: 0.49 * p, lambda p: p / (p + 400 * (1 - p)), lambda p: p])
def test_labels_change_where_the_networks_own_outputs_change_them(moved):
    split = split_by_content("abcdef", "uvwxyz", 200)
    found, by_name = features_of(split, own_of_source=0.06), labels_by_name(split)
    probe = fit_probe(found["train"], by_name["train"], found["val"], by_name["val"])
    p_real = moved(probe.p_real(found["val"]))  # fine-tuning may move all outputs to one side of 0.5
    fitted = unseen_sources.fit_rule(split, p_real, split, by_hash(split, found), 3, False)
    assert np.mean(calibration.labels(p_real, fitted.decision) == by_name["val"]) > 0.85
    assert fitted.record["balanced_accuracy"] == pytest.approx(0.70, abs=0.03)  # as that of the probe itself


def test_too_few_images_of_left_out_sources_leave_the_confidence_as_it_is_and_that_is_said(capsys):
    split = split_by_content("abc", "xyz", 40)  # 60 + 30 images of each class
    found, (labels, p_real) = features_of(split, 0.0), outputs(split)
    fitted = unseen_sources.fit_rule(split, p_real, split, by_hash(split, found), 3, True)
    assert fitted.decision == fit_decision_rule(labels, p_real)
    assert fitted.record["images"] == len(split.test)
    assert "unseen sources: 90 fake and 90 real images are too few to fit the confidence to" in capsys.readouterr().err


def test_a_base_from_a_model_file_knows_the_sources_that_it_was_trained_on(tmp_path):
    metadata = Metadata(Config(image_size=SIZE_PX, network=CNN), Preprocessing(SIZE_PX), DecisionRule(),
                        data={"sources": ["", "gan", "nikon"]})  # fmt: skip
    model_file.save(tmp_path / "tuned.h5", model_file.Detector(built(0), metadata))
    origin = load_base(built(1), CNN, str(tmp_path / "tuned.h5"))
    assert origin.sources == ("gan", "nikon")
    seen, new = ({"fake_sources": [name], "real_sources": ["canon"]} for name in ("gan", "flux"))
    assert run._with_origin(seen, origin) == seen | {"backbone_saw_them": True}
    assert run._with_origin(new, origin) == new
    assert run._with_origin({}, origin) == {}


@pytest.mark.parametrize(
    ("fakes", "reals", "asked", "tested", "said"),
    [
        ("abc", "xyz", None, "abcxyz", ""),
        (
            "abc",
            "xyz",
            3,
            "abc",
            "expected test images of both classes from named sources, found 30 of fake and 0 of real",
        ),
        ("abcd", "x", None, "abcdx", "expected 3 sources of each class, found 4 of fake and 1 of real"),
        ("abcd", "x", 0, "abcdx", ""),
        ("a", "x", None, "ax", ""),  # no one expects figures of two folders
        ([""], [""], None, [""], ""),
    ],
)
def test_missing_figures_on_unseen_sources_are_said_before_the_training(fakes, reals, asked, tested, said):
    split = split_by_content(fakes, reals, 40)
    split = replace(split, test=tuple(record for record in split.test if record.source in tested))
    note = unseen_sources.note(split, asked)
    assert said in note
    assert bool(said) == bool(note)
    assert "\n" not in note


def test_groups_that_are_asked_for_beside_left_out_sources_are_not_needed_and_that_is_said():
    split = split_of("abc", "xyz")
    assert "--unseen-sources 2 is not needed" in unseen_sources.note(split, 2)
    assert unseen_sources.note(split, None) == ""
    assert unseen_sources.sample(split, 2, 100, 0).val == ()  # no features are computed for them


def kinds(split):
    return Counter((name, r.label, r.source) for name in SPLITS for r in getattr(split, name))


def test_of_many_images_some_are_drawn_from_each_source_by_its_share(capsys):
    split = split_by_content([*"abc", "large"], "xyz", 40)
    more = records(FAKE, ["large"], 400)[40:]
    split = replace(split, train=split.train + more)
    drawn = unseen_sources.sample(split, 3, 128, 0)
    before, after = kinds(split), kinds(drawn)
    assert sum(after.values()) == 128
    assert "unseen sources: measured on 128 of 640 images, drawn from each source" in capsys.readouterr().err
    assert after.keys() == before.keys()
    assert all(abs(after[kind] - before[kind] / 5) <= 1 for kind in before)
    assert {r.sha256 for r in drawn.train} <= {r.sha256 for r in split.train}
    assert drawn == unseen_sources.sample(split, 3, 128, 0) != unseen_sources.sample(split, 3, 128, 1)
    assert unseen_sources.sample(split, 3, 640, 0) == split
    assert unseen_sources.sample(split, 0, 128, 0).train == ()


def test_all_figures_come_from_one_pass_over_the_images_and_a_cap_on_their_features(
    tmp_path, train_here, monkeypatch, capsys
):
    counts = dict.fromkeys(["fake/gan", "fake/dalle", "fake/flux", "real/canon", "real/nikon", "real/pixel"], 14)
    passed, measure = Counter(), run._measure
    plain = features.ImageBatches.plain

    def counted(source, part, batch_size):
        passed.update(record.sha256 for record in part)
        return plain(source, part, batch_size)

    monkeypatch.setattr(features.ImageBatches, "plain", counted)
    monkeypatch.setattr(run, "_measure", lambda *arguments: passed.clear() or measure(*arguments))
    monkeypatch.setattr(unseen_sources, "MAX_IMAGES", 60)
    trained = train_here(make_labeled_images(tmp_path / "set", counts), tmp_path / "m.h5", epochs=1)
    metadata = trained.detector.metadata
    assert "unseen sources: measured on 60 of 84 images, drawn from each source" in capsys.readouterr().err
    assert 0 < metadata.metrics["unseen_sources"]["images"] < metadata.metrics["test"]["images"]
    assert metadata.prototypes is not None
    assert (len(passed), set(passed.values())) == (84, {1})


def test_a_training_says_what_its_detector_is_worth_on_sources_it_never_saw(tmp_path):
    counts = dict.fromkeys(["fake/gan", "fake/dalle", "fake/flux", "real/canon", "real/nikon", "real/pixel"], 14)
    data, output = make_labeled_images(tmp_path / "set", counts), tmp_path / "model.h5"
    command = [sys.executable, ROOT / "train_model.py", data, "--output", output, "--network", "cnn", "--weights",
               "none", "--epochs", "1", "--image-size", "32", "--cache-dir", "none"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "unseen sources" in done.stdout
    assert "With each of 6 sources left out in turn" in done.stdout
    tree = json.loads((tmp_path / "model_run" / "metrics.json").read_text())
    assert tree["unseen_sources"]["groups"] == 3
    sources = {row["source"] for row in csv.DictReader((tmp_path / "model_run" / "predictions.csv").open())}
    assert set(tree["unseen_sources"]["test_by_source"]) == set(tree["by_source"]) == sources
    assert "never seen" in (tmp_path / "model_run" / "report.html").read_text()
    refused = subprocess.run([*command, "--unseen-sources", "4"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--unseen-sources 4: expected at least 4 sources of each class, found 3 of fake" in refused.stderr
