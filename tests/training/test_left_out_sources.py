"""A validation part of left-out sources gives the decision rule, and the record of what verdicts are worth."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest

from fakereal.dataset.split import Split
from fakereal.labels import FAKE, REAL
from fakereal.model.calibration import fit_decision_rule
from fakereal.training.run import fit_rule


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
    rule, found = fit_rule(split, p_real)
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
    assert fit_rule(split, p_real) == (fit_decision_rule(labels, p_real), {})
