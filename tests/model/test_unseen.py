"""The decision rule for sources that training left out, and what the model file says of it."""

from __future__ import annotations

import numpy as np
import pytest

from fakereal.labels import FAKE, REAL
from fakereal.model import unseen
from fakereal.model.calibration import calibrated_p_fake, verdicts


def outputs(separation, count=2000, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat([FAKE, REAL], count)
    logit = rng.normal(np.where(labels == REAL, separation, -separation), 1.0)
    return labels, 1 / (1 + np.exp(-logit))


@pytest.mark.parametrize("separation", [0.5, 1.0, 2.0])
def test_verdicts_keep_both_limits_on_the_images_they_were_fitted_on(separation):
    labels, p_real = outputs(separation)
    decision = unseen.fit_rule_for_unseen_sources(labels, p_real)
    given = np.array(verdicts(p_real, decision))
    assert np.mean(given[labels == REAL] == "fake") <= unseen.MAX_FALSE_ALARMS
    for label, name in ((FAKE, "fake"), (REAL, "real")):
        assert np.mean(labels[given == name] == label) >= unseen.MIN_RIGHT - 1e-9
        assert np.sum(given == name) >= 20
    low, high = decision.band
    assert low <= decision.threshold <= high


def test_a_better_detector_leaves_less_uncertain():
    shares = []
    for separation in (0.5, 1.0, 2.0):
        labels, p_real = outputs(separation)
        shares.append(
            verdicts(p_real, unseen.fit_rule_for_unseen_sources(labels, p_real)).count("uncertain") / len(labels)
        )
    assert shares[0] > shares[1] > shares[2]


def test_a_detector_that_knows_nothing_gives_no_verdict():
    rng = np.random.default_rng(1)
    labels, p_real = np.repeat([FAKE, REAL], 500), rng.uniform(0.01, 0.99, 1000)
    given = verdicts(p_real, unseen.fit_rule_for_unseen_sources(labels, p_real))
    assert given.count("uncertain") >= 950


def test_the_record_counts_what_was_said():
    labels, p_real = outputs(1.0, 300)
    decision = unseen.fit_rule_for_unseen_sources(labels, p_real)
    sources = ["a", "b"] * 150 + ["c"] * 300
    found = unseen.record(labels, p_real, sources, decision)
    given = np.array(verdicts(p_real, decision))
    assert (found["fake_sources"], found["real_sources"], found["images"]) == (["a", "b"], ["c"], 600)
    assert found["verdicts"] == np.sum(given != "uncertain")
    assert found["right"] == np.sum((given == "fake") & (labels == FAKE)) + np.sum((given == "real") & (labels == REAL))
    assert found["right_interval"][0] < found["right"] / found["verdicts"] < found["right_interval"][1]
    p_fake = calibrated_p_fake(p_real, decision)
    by_hand = (np.mean(p_fake[:300] >= decision.threshold) + np.mean(p_fake[300:] < decision.threshold)) / 2
    assert found["balanced_accuracy"] == pytest.approx(by_hand)
    text = unseen.sentence({"unseen_sources": found})
    assert text.startswith(f"On 3 sources it never saw, {found['right']} of {found['verdicts']} verdicts were right (")


def test_a_model_that_was_not_measured_claims_nothing():
    assert unseen.sentence({}) is None
    assert unseen.sentence({"test": {"accuracy": 0.99}}) is None


def test_the_interval_is_wilsons():
    assert unseen.wilson_interval(90, 100) == pytest.approx([0.8256, 0.9448], abs=1e-4)
    assert unseen.wilson_interval(0, 0) is None
