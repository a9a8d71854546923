"""`--unseen-sources`: what a detector is worth on images from sources that it never saw.

The sources are divided into groups. For each group, a logistic regression is trained on the backbone's features of the
other groups' images; its outputs for the group's own images stand for those of a detector that never saw their sources
(leave-one-group-out cross-validation). Where whole sources were left out of the training itself, those count instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fakereal.dataset.scan import Record, labels_of
from fakereal.dataset.split import Split
from fakereal.errors import DataError
from fakereal.labels import FAKE, NAMES, REAL, SPLITS
from fakereal.model import unseen
from fakereal.model.calibration import DecisionRule, calibrate, fit_decision_rule, logits, sigmoid
from fakereal.model.metrics import measure, measure_by_source
from fakereal.runtime import check_interrupt, log, progress_bar
from fakereal.training.base_choice import fit_probe

MIN_SOURCES = 3
"""Of each class, before figures on left-out sources say anything about sources that nobody has seen."""

MIN_FITTED = 100
"""Images of each class that a decision rule for unseen sources is fitted on, at least."""

MAX_IMAGES = 10_000
"""Images whose features are used, at most: 51 MB of EfficientNetB0's, and a minute of logistic regressions."""

MAX_VALUES = 50_000_000
"""Values in all these features, at most: fewer images are used of a backbone with more than 5,000 features."""

_GROUPS = 5  # by default


@dataclass(frozen=True)
class FittedRule:
    """A decision rule, and what its verdicts are worth on unseen sources."""

    decision: DecisionRule
    record: dict[str, Any]  # for `Metadata.metrics["unseen_sources"]`; empty where nothing is known


def group_count(split: Split, asked: int | None) -> int:
    """Return the number of groups; 0 for none.

    Args:
        split: all images.
        asked: by the user; None: 5, or as many as there are sources, where each class has at least `MIN_SOURCES`.

    Raises:
        DataError: there are fewer sources than the groups that the user asks for.
    """
    most = min(len(_sources(split, label)) for label in (FAKE, REAL))
    if asked and most < asked:
        found = " and ".join(f"{len(_sources(split, label))} of {NAMES[label]}" for label in (FAKE, REAL))
        raise DataError(
            f"--unseen-sources {asked}: expected at least {asked} sources of each class, found {found}: give a smaller"
            " number, or put the images of each source into a folder of its own, as in fake/GENERATOR/ and real/CAMERA/"
        )
    if asked is None:
        return min(_GROUPS, most) if most >= MIN_SOURCES else 0
    return asked


def _sources(split: Split, label: int) -> Counter[str]:
    """Return the number of images of each source of a class that has a name."""
    records = (record for name in SPLITS for record in getattr(split, name))
    return Counter(record.source for record in records if record.label == label and record.source)


def divide(split: Split, count: int) -> dict[str, int]:
    """Return the group of each source, 0..count-1: each group has both classes, of about as many images as the others.

    Args:
        split: all images, with at least `count` sources of each class.
        count: number of groups.
    """
    images = [_sources(split, label) for label in (FAKE, REAL)]
    filled = np.zeros((count, 2))
    groups: dict[str, int] = {}
    # Sources of both classes first, then the largest ones, each into the group that has the fewest of what it holds
    both = images[FAKE].keys() & images[REAL].keys()
    order = sorted(images[FAKE].keys() | images[REAL].keys(),
                   key=lambda name: (name not in both, -images[FAKE][name] - images[REAL][name], name))  # fmt: skip
    for name in order:
        own = np.array([images[FAKE][name], images[REAL][name]])
        groups[name] = int(np.argmin((filled * (own > 0)).sum(axis=1)))
        filled[groups[name]] += own
    return groups


def note(split: Split, asked: int | None) -> str:
    """Return why a training will have no figures on unseen sources that its user may expect; empty where none is due.

    The arguments are those of `group_count`.
    """
    count = group_count(split, asked)
    if is_left_out(split):
        needless = (
            "is not needed: the validation images come from sources that are not in training, and give the figures"
        )
        return f"--unseen-sources {asked} {needless}" if asked else ""
    found = {NAMES[label]: len(_sources(split, label)) for label in (FAKE, REAL)}
    if not count:
        is_due = asked is None and max(found.values()) >= MIN_SOURCES
        return _missing(f"{MIN_SOURCES} sources of each class", found, "sources") if is_due else ""
    groups = divide(split, count)
    can = _can_be_left_out(split, groups, count)
    labels = [record.label for record in split.test if groups.get(record.source) in can]
    tested = {NAMES[label]: labels.count(label) for label in (FAKE, REAL)}
    return "" if min(tested.values()) else _missing("test images of both classes from named sources", tested, "images")


def _missing(expected: str, found: dict[str, int], what: str) -> str:
    each = " and ".join(f"{count} of {name}" for name, count in found.items())
    return (
        f"unseen sources: no figures: expected {expected}, found {each}: add {what}, each source in a folder of its"
        " own as in fake/GENERATOR/ and real/CAMERA/, or leave it at that with --unseen-sources 0"
    )


def sample(split: Split, count: int, most: int, seed: int) -> Split:
    """Return the images whose features `fit_rule` needs: none without groups, at most `most` drawn from each source.

    Each source of each class and split keeps its share, and at least one image where there is room for it.

    Args:
        split: all images.
        count: number of groups, see `group_count`.
        most: number of images.
        seed: of the draw.
    """
    if not count or is_left_out(split):
        return replace(split, train=(), val=(), test=())
    everything = [(name, record) for name in SPLITS for record in getattr(split, name)]
    if len(everything) <= most:
        return split
    kinds = Counter((name, record.label, record.source) for name, record in everything)
    rng, drawn = np.random.default_rng(seed), Counter[tuple[str, int, str]]()
    place = np.empty(len(everything))  # of each image within its kind, in random order, as a share
    for number in rng.permutation(len(everything)):
        kind = everything[number][0], everything[number][1].label, everything[number][1].source
        place[number], drawn[kind] = drawn[kind] / kinds[kind], drawn[kind] + 1
    chosen = [everything[number] for number in sorted(np.argsort(place, kind="stable")[:most])]
    log(f"unseen sources: measured on {most:,} of {len(everything):,} images, drawn from each source")
    return replace(split, **{each: tuple(record for name, record in chosen if name == each) for each in SPLITS})


def fit_rule(
    split: Split, p_real: np.ndarray, sampled: Split, features: Mapping[str, np.ndarray], count: int, is_frozen: bool
) -> FittedRule:
    """Return the decision rule, from images of unseen sources where there are any, else from all validation images.

    Args:
        split: the images; the test images only give the record.
        p_real: the network's outputs for the validation images, float (n,).
        sampled: those of the images whose features are known, see `sample`.
        features: of the backbone, float (f,), by the SHA-256 of each image.
        count: groups of sources to leave out in turn, see `group_count`.
        is_frozen: True where the backbone has not been trained on these images.
    """
    usual = FittedRule(fit_decision_rule(labels_of(split.val), p_real), {})
    if left_out := fit_left_out(split, p_real):
        return left_out
    if not count:
        return usual
    rows = {name: [features[record.sha256] for record in getattr(sampled, name)] for name in SPLITS}
    groups = divide(split, count)
    outputs = leave_out_in_turn(sampled, {name: np.array(rows[name], float) for name in SPLITS}, groups, count)
    # As if the network had given them: the label changes where its own does (a fine-tuned network's outputs may all lie
    # on one side of 0.5), its own temperature is undone, and the rule's divides them again.
    boundary = float(calibrate(1.0 - usual.decision.threshold, 1.0 / usual.decision.temperature))
    outputs = {name: _like(each, usual.decision.temperature, boundary) for name, each in outputs.items()}
    return _rule_and_record(sampled, outputs, usual.decision, boundary, count, is_frozen)


def _like(p_real: np.ndarray, temperature: float, boundary: float) -> np.ndarray:
    """Return calibrated outputs as a network gives them that has this temperature and changes its label there."""
    return sigmoid(temperature * logits(p_real) + logits(np.array(boundary)))


def fit_left_out(split: Split, p_real: np.ndarray) -> FittedRule | None:
    """Return the rule and its record where validation holds only sources that training never saw, else None.

    The rule comes from one half of the validation images and the record from the other half; the content of an image
    decides its half.

    Args:
        split: its validation images are used.
        p_real: their outputs, float (n,).
    """
    if not is_left_out(split):
        return None
    labels, fitted = labels_of(split.val), _fitting_half(split)
    rule = unseen.fit_rule_for_unseen_sources(labels[fitted], p_real[fitted])
    sources = [record.source for record, chosen in zip(split.val, ~fitted, strict=True) if chosen]
    return FittedRule(rule, unseen.record(labels[~fitted], p_real[~fitted], sources, rule))


def is_left_out(split: Split) -> bool:
    """Return whether no validation source took part in training, and each class has enough of them in both halves."""
    trained = {record.source for record in split.train} | {""}
    by_label = [{record.source for record in split.val if record.label == label} for label in (FAKE, REAL)]
    labels, fitted = labels_of(split.val), _fitting_half(split)
    halves = [set(labels[chosen]) for chosen in (fitted, ~fitted)]
    has_both = halves == [{FAKE, REAL}] * 2
    return has_both and min(map(len, by_label)) >= MIN_SOURCES and not set.union(*by_label) & trained


def _fitting_half(split: Split) -> np.ndarray:
    """Return which validation images fit the rule, bool (n,)."""
    return np.array([unseen.is_for_fitting(record.sha256) for record in split.val], bool)


def leave_out_in_turn(
    split: Split, features: dict[str, np.ndarray], groups: dict[str, int], count: int
) -> dict[str, np.ndarray]:
    """Return for each split calibrated p_real, float (n,), of images whose source was left out; NaN elsewhere.

    Args:
        split: the images.
        features: of each split, float (n, f).
        groups: of each source, see `divide`.
        count: number of groups.
    """
    labels = {name: labels_of(getattr(split, name)) for name in SPLITS}
    number = {name: _group_numbers(getattr(split, name), groups) for name in SPLITS}
    outputs = {name: np.full(len(labels[name]), np.nan) for name in SPLITS}
    can = _can_be_left_out(split, groups, count)
    with progress_bar("unseen sources", len(can)) as advance:
        for group in can:
            check_interrupt()
            seen = {name: number[name] != group for name in ("train", "val")}
            probe = fit_probe(*(part[name][mask] for name, mask in seen.items() for part in (features, labels)))
            for name in SPLITS:
                own = number[name] == group
                outputs[name][own] = probe.p_real(features[name][own])
            advance(1)
    return outputs


def _can_be_left_out(split: Split, groups: dict[str, int], count: int) -> list[int]:
    """Return the groups without which both training and validation still have both classes."""
    parts = [(labels_of(records), _group_numbers(records, groups)) for records in (split.train, split.val)]
    return [group for group in range(count) if all(len(set(own[number != group])) == 2 for own, number in parts)]


def _group_numbers(records: Sequence[Record], groups: dict[str, int]) -> np.ndarray:
    return np.array([groups.get(record.source, -1) for record in records], int)


def _rule_and_record(
    split: Split, outputs: dict[str, np.ndarray], usual: DecisionRule, boundary: float, count: int, is_frozen: bool
) -> FittedRule:
    """Fit the rule to validation images, and to training images where the backbone was not trained on them."""
    fitted = [(getattr(split, name), outputs[name]) for name in (("train", "val") if is_frozen else ("val",))]
    labels = np.concatenate([labels_of(records) for records, _ in fitted])
    p_real = np.concatenate([each for _, each in fitted])
    known, tested = np.isfinite(p_real), np.isfinite(outputs["test"])
    test_labels, test_p_real = labels_of(split.test)[tested], outputs["test"][tested]
    if len(set(test_labels)) < 2:
        return FittedRule(usual, {})
    decision = usual
    fakes, reals = np.bincount(labels[known], minlength=2)
    if min(fakes, reals) >= MIN_FITTED:
        decision = unseen.fit_rule_for_unseen_sources(labels[known], p_real[known], boundary)
    else:
        log(f"unseen sources: {fakes} fake and {reals} real images are too few to fit the confidence to, which takes"
            f" {MIN_FITTED} of each: it holds for images like those in validation")  # fmt: skip
    sources = [record.source for record, chosen in zip(split.test, tested, strict=True) if chosen]
    record = unseen.record(test_labels, test_p_real, sources, decision) | {
        "groups": count,
        "backbone_saw_them": not is_frozen,
        "test": measure(test_labels, test_p_real, decision),
        "test_by_source": measure_by_source(test_labels, test_p_real, sources, decision),
    }
    return FittedRule(decision, record)
