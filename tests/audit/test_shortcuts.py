from __future__ import annotations

import numpy as np
import pytest

from fakereal.audit import shortcuts
from fakereal.labels import FAKE, REAL

LABELS = np.array([FAKE, REAL] * 40)


def category(name, values):
    values = np.array(values, dtype=object)
    return shortcuts.Feature(name, {name: values}, values)


def probed(*features, labels=LABELS, groups=None):
    return shortcuts.probe(features, labels, range(len(labels)) if groups is None else groups)


def test_a_feature_that_separates_the_classes_has_an_auc_of_1_and_an_interval_that_is_no_certainty():
    found = probed(category("format", np.where(LABELS == FAKE, "PNG", "JPEG").tolist()))
    assert found.auc == 1.0
    assert 0.9 < found.interval[0] < 1.0 == found.interval[1]
    assert found.separates
    assert found.features[0].values[0] == "PNG: 40 of 40 fakes, 0 of 40 reals"


def test_random_features_are_no_shortcut():
    chance = np.random.default_rng(0)
    values = chance.choice(["a", "b", "c"], len(LABELS)).tolist()
    found = probed(category("letter", values), shortcuts.Feature("number", {"number": chance.normal(size=len(LABELS))}))
    assert found.interval[0] <= 0.5 <= found.interval[1]
    assert not found.separates
    assert found.partial == ()


def test_two_features_that_separate_only_together_are_found():
    labels = np.tile(LABELS, 5)
    one = np.random.default_rng(0).integers(0, 2, len(labels))
    found = probed(category("one", one.astype(str)), category("other", (one ^ labels).astype(str)), labels=labels)
    assert found.auc > 0.95
    assert max(feature.auc for feature in found.features) < 0.65
    assert "together" in shortcuts.file_verdict(found)


def test_copies_stay_in_one_fold():
    groups = np.arange(80) // 4  # four copies of each of 20 images, and random labels
    labels = np.random.default_rng(1).permutation(np.repeat([FAKE, REAL], 10))[groups]
    own = shortcuts.Feature("own", {"own": groups.astype(float)})
    assert probed(own, labels=labels).separates
    grouped = probed(own, labels=labels, groups=groups)
    assert not grouped.separates
    assert grouped.interval[1] - grouped.interval[0] > 0.35  # of 20 images, not of 80


def test_values_that_separate_part_of_a_class_are_named_although_the_auc_is_low():
    values = ["PNG" if label == FAKE and number % 10 == 0 else "JPEG" for number, label in enumerate(LABELS)]
    assert probed(category("format", values)).partial == ()  # 8 of 80, perhaps by chance
    values = ["PNG" if label == FAKE and number % 3 == 0 else "JPEG" for number, label in enumerate(LABELS)]
    found = probed(category("format", values))
    assert found.partial[0] in ("PNG: 14 of 40 fakes, 0 of 40 reals", "JPEG: 26 of 40 fakes, 40 of 40 reals")


def test_too_few_images_give_no_verdict():
    found = probed(category("format", ["PNG", "JPEG"] * 9), labels=LABELS[:18])
    assert found.auc is None
    assert "too few" in shortcuts.file_verdict(found)


@pytest.mark.parametrize(("auc", "fakes", "reals"), [(1.0, 25, 40), (0.0, 25, 40), (0.5, 10, 10), (0.8, 2000, 30)])
def test_intervals_hold_the_auc_stay_within_0_and_1_and_shrink_with_more_images(auc, fakes, reals):
    low, high = shortcuts.auc_interval(auc, fakes, reals)
    assert 0 <= low <= auc <= high <= 1
    narrower = shortcuts.auc_interval(auc, fakes * 10, reals * 10)
    assert 0 < narrower[1] - narrower[0] < high - low
