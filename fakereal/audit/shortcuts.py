"""Find shortcuts: can fake and real images be told apart without looking at them?

A detector that learns to tell JPEG from PNG scores 100 % and is worth nothing (Grommelt et al., "Fake or JPEG?",
arXiv 2403.17608). So a classifier that sees only header fields must not do better than chance: its cross-validated
ROC AUC is reported overall and per feature, with 95 % confidence intervals.

File names are probed apart, as no network sees them. Bytes per pixel belong to the pixel statistics: among files of
one encoding they measure how much detail an image has.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from fakereal.dataset.image_metadata import FileFacts, PixelStatistics
from fakereal.labels import FAKE, NAMES, REAL

MIN_AUC = 0.6
"""AUC from which on a difference between the classes matters, if its interval excludes chance."""

STRONG_AUC = 0.9
"""AUC from which on a shortcut is all that a detector needs to learn."""

FOLDS = 5
"""Of the cross-validation; fewer where a class has fewer images."""

MIN_IMAGES = 10
"""Different images that each class needs, for an AUC to mean anything."""

_RULED_OUT_BELOW = 0.6  # an interval that ends below this rules a shortcut out
_NEAR_TOTAL = 0.02  # a feature whose AUC is this close to that of all features carries the shortcut alone
_Z = 1.96  # standard deviations that hold the middle 95 %
_TREES = 50
_MIN_DIFFERENCE = 0.1  # an indicative value must be more frequent in one class by at least this share
_MAX_P = 0.01  # of Fisher's exact test, after Bonferroni's correction


@dataclass(frozen=True)
class Feature:
    """One property of the images, such as their size: columns for the classifier, and values for people."""

    name: str
    columns: dict[str, np.ndarray]  # float arrays are numbers, object arrays are categories; each (n,)
    values: np.ndarray | None = None  # object (n,), counted when values are named; None: only a limit is named

    @property
    def varies(self) -> bool:
        """Whether any two images differ in it."""
        return any(len(set(column.tolist())) > 1 for column in self.columns.values())


@dataclass(frozen=True)
class FeatureResult:
    """How well one feature alone separates the classes."""

    name: str
    auc: float
    interval: tuple[float, float]  # 95 %
    values: tuple[str, ...]  # the most indicative ones: "PNG: 40 of 40 fakes, 0 of 25 reals"

    @property
    def separates(self) -> bool:
        """Whether it separates the classes clearly better than chance."""
        return _separates(self.auc, self.interval)


@dataclass(frozen=True)
class ProbeResult:
    """How well all features together separate the classes, and each of them alone."""

    images: int  # examined
    auc: float | None  # out of fold; None where there are too few images
    interval: tuple[float, float] | None  # 95 %
    features: tuple[FeatureResult, ...] = ()  # those that vary, strongest first
    partial: tuple[str, ...] = ()  # values that separate only a part of a class, beyond chance

    @property
    def separates(self) -> bool:
        """Whether the features separate the classes clearly better than chance."""
        return self.auc is not None and _separates(self.auc, self.interval)

    @property
    def is_inconclusive(self) -> bool:
        """Whether there are too few images to rule out a shortcut that was not found."""
        return self.auc is None or (not self.separates and self.interval[1] >= _RULED_OUT_BELOW)


def _separates(auc: float, interval: tuple[float, float]) -> bool:
    return auc >= MIN_AUC and interval[0] > 0.5


def probe_files(
    facts: Sequence[FileFacts], labels: np.ndarray, groups: Sequence[Hashable], seed: int = 0
) -> ProbeResult:
    """Return how well header fields separate the classes; `labels`, `groups` and `seed` as in `probe`."""
    return probe(_file_features(facts), labels, groups, seed)


def probe_file_names(
    facts: Sequence[FileFacts], labels: np.ndarray, groups: Sequence[Hashable], seed: int = 0
) -> ProbeResult:
    """Return how well patterns of file names do: the number of digits, letters and separators, never which."""
    patterns = _category("file name", [f.name_pattern for f in facts], "pattern")
    patterns.columns["file name length"] = np.array([f.name_length for f in facts], float)
    return probe([patterns], labels, groups, seed)


def probe_pixels(
    statistics: Sequence[PixelStatistics],
    facts: Sequence[FileFacts],
    labels: np.ndarray,
    groups: Sequence[Hashable],
    seed: int = 0,
) -> ProbeResult:
    """Return how well pixel statistics and bytes per pixel do; `labels`, `groups` and `seed` as in `probe`."""
    columns = np.array([astuple(each) for each in statistics], float).reshape(-1, 7).T
    bytes_per_pixel = np.array([f.bytes_per_pixel for f in facts])
    simple = dict(zip(("brightness", "contrast", "saturation", "sharpness", "8x8 blocks"), columns, strict=False))
    features = [Feature(name, {name: column}) for name, column in simple.items()]
    features.append(Feature("resampling", {"resampling strength": columns[5], "resampling period": columns[6]}))
    features.append(Feature("bytes per pixel", {"bytes per pixel": bytes_per_pixel}))
    return probe(features, labels, groups, seed)


def _file_features(facts: Sequence[FileFacts]) -> list[Feature]:
    """Return the features in the order in which equally strong ones are named."""
    return [
        _category("file format", [f.format for f in facts]),
        _size_feature(facts),
        _jpeg_table_feature(facts),
        _category("EXIF", ["EXIF" if f.exif else "no EXIF" for f in facts]),
        _category("color profile", ["color profile" if f.icc else "no color profile" for f in facts]),
        _category("chroma subsampling", [f.subsampling or "no JPEG" for f in facts]),
        _category("progressive", ["progressive" if f.progressive else "not progressive" for f in facts]),
        _category("color mode", [f"{f.mode}, {f.bits} bits" for f in facts]),
        _category("other tags", [f.tags or "no tags" for f in facts]),
        _category("extension", [f.extension for f in facts]),
    ]


def _category(name: str, values: Sequence[str], column: str | None = None) -> Feature:
    array = np.array(values, dtype=object)
    return Feature(name, {column or name: array}, array)


def _size_feature(facts: Sequence[FileFacts]) -> Feature:
    widths, heights = (np.array([getattr(f, side) for f in facts], float) for side in ("width_px", "height_px"))
    columns = {
        "width": widths,
        "height": heights,
        "aspect ratio": widths / heights,
        "power of two in both sides": np.array([_power_of_two(f.width_px, f.height_px) for f in facts], float),
    }
    return Feature("image size", columns, np.array([f"{f.width_px}x{f.height_px}" for f in facts], dtype=object))


def _power_of_two(*sides_px: int) -> int:
    """Return the largest power of two, up to 64, that divides all sides: generators work in multiples of 8 or 64."""
    return next(factor for factor in (64, 32, 16, 8, 4, 2, 1) if not any(side % factor for side in sides_px))


def _jpeg_table_feature(facts: Sequence[FileFacts]) -> Feature:
    tables = [f"quality {f.jpeg_quality:.0f} (table {f.jpeg_table})" if f.jpeg_table else "no JPEG" for f in facts]
    feature = _category("JPEG quantization table", tables, "table")
    feature.columns["JPEG quality"] = np.array([np.nan if f.jpeg_quality is None else f.jpeg_quality for f in facts])
    return feature


def probe(features: Sequence[Feature], labels: np.ndarray, groups: Sequence[Hashable], seed: int = 0) -> ProbeResult:
    """Return how well features separate the classes on images that the classifier was not trained on.

    All features go into a random forest, each feature alone into a single tree, which is as good for one feature and
    much faster; both are cross-validated.

    Args:
        features: in the order in which equally strong ones are named.
        labels: int (n,), 0 fake, 1 real.
        groups: (n,), equal for copies of one image, which stay in one fold and count once.
        seed: of the folds and the forest.
    """
    sizes = tuple(len({g for g, label in zip(groups, labels, strict=True) if label == c}) for c in (FAKE, REAL))
    varying = [feature for feature in features if feature.varies]
    if min(sizes) < MIN_IMAGES:
        return ProbeResult(len(labels), None, None)
    if not varying:
        return ProbeResult(len(labels), 0.5, (0.5, 0.5))
    folds = _folds(labels, groups, min(FOLDS, *sizes), seed)
    auc = _out_of_fold_auc(varying, labels, folds, _forest(seed))
    results = [_probe_one(feature, labels, folds, sizes, seed) for feature in varying]
    results.sort(key=lambda result: -round(result.auc, 2))  # stable: equally strong ones keep their order
    once = np.unique([f"{group} {label}" for group, label in zip(groups, labels, strict=True)], return_index=True)[1]
    partial = _partial_shortcuts(varying, labels, once)
    return ProbeResult(len(labels), auc, auc_interval(auc, *sizes), tuple(results), partial)


def auc_interval(auc: float, fakes: int, reals: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a ROC AUC measured on this number of images of each class, within 0..1.

    Newcombe's method 5 (Statistics in Medicine 2006; 25:559-573): the true values for which the measured AUC is no
    surprise, by the variance of Hanley and McNeil. So an AUC of 1.0 on few images keeps an interval.
    """
    from scipy.optimize import brentq

    shared = (fakes + reals) / 2 - 1

    def margin(true: float) -> float:
        pairs = 1 + shared * ((1 - true) / (2 - true) + true / (1 + true))
        return _Z * math.sqrt(true * (1 - true) * pairs / (fakes * reals))

    beside = 1e-9  # at 0 and 1 the AUC itself is a solution, but not the one looked for
    low = brentq(lambda true: auc - true - margin(true), 0.0, auc - beside) if auc > beside else 0.0
    high = brentq(lambda true: true - auc - margin(true), auc + beside, 1.0) if auc < 1 - beside else 1.0
    return low, high


def _folds(labels: np.ndarray, groups: Sequence[Hashable], count: int, seed: int) -> list[tuple[np.ndarray, ...]]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    numbers = np.unique(np.array([str(group) for group in groups]), return_inverse=True)[1]
    # Without any copies the groups change nothing but the time, which grows with their square.
    if len(np.unique(numbers)) == len(numbers):
        return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(labels, labels))
    return list(StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(labels, labels, numbers))


def _forest(seed: int) -> Callable[[int], Any]:
    from sklearn.ensemble import RandomForestClassifier

    return lambda images: RandomForestClassifier(_TREES, min_samples_leaf=3, random_state=seed)


def _tree(seed: int) -> Callable[[int], Any]:
    from sklearn.tree import DecisionTreeClassifier

    return lambda images: DecisionTreeClassifier(
        max_leaf_nodes=16, min_samples_leaf=max(3, images // 100), random_state=seed
    )


def _probe_one(feature: Feature, labels: np.ndarray, folds: list, sizes: tuple[int, int], seed: int) -> FeatureResult:
    auc = _out_of_fold_auc([feature], labels, folds, _tree(seed))
    return FeatureResult(feature.name, auc, auc_interval(auc, *sizes), tuple(indicative_values(feature, labels)))


def _out_of_fold_auc(features: Sequence[Feature], labels: np.ndarray, folds: list, make: Callable[[int], Any]) -> float:
    """Return the share of pairs, a fake and a real image of one fold, that are in the right order; ties count half.

    Pairs across folds would compare the outputs of two classifiers, which lowers the AUC where values are rare.
    """
    from sklearn.metrics import roc_auc_score

    columns = [column for feature in features for column in feature.columns.values()]
    ordered = pairs = 0.0
    for train, test in folds:
        counts = np.bincount(labels[test], minlength=2)
        if not counts.all():
            continue
        encode = _encoder(columns, train)
        classifier = make(len(train)).fit(encode(train), labels[train])
        scores = classifier.predict_proba(encode(test))[:, list(classifier.classes_).index(REAL)]
        ordered += roc_auc_score(labels[test], scores) * counts.prod()
        pairs += counts.prod()
    return float(ordered / pairs) if pairs else 0.5


def _encoder(columns: Sequence[np.ndarray], train: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from row numbers to the classifier's input: numbers, and categories one-hot encoded.

    Categories that occur once in the training rows, or after the 30 most frequent ones, are encoded as one.
    """
    from sklearn.preprocessing import OneHotEncoder

    numbers = [column for column in columns if column.dtype != object]
    categories = [column for column in columns if column.dtype == object]
    stacked = np.stack(categories, axis=1) if categories else np.empty((len(columns[0]), 0), object)
    one_hot = OneHotEncoder(
        handle_unknown="infrequent_if_exist", min_frequency=2, max_categories=30, sparse_output=False
    )
    if categories:
        one_hot.fit(stacked[train])

    def encode(rows: np.ndarray) -> np.ndarray:
        parts = [np.nan_to_num(number[rows], nan=-1.0)[:, None] for number in numbers]
        return np.concatenate([*parts, *([one_hot.transform(stacked[rows])] if categories else [])], axis=1)

    return encode


def indicative_values(feature: Feature, labels: np.ndarray, most: int = 2) -> list[str]:
    """Return the values that differ most between the classes: `PNG: 40 of 40 fakes, 0 of 25 reals`.

    Values that many images share are counted; where none is much more frequent in one class, a limit is named.
    """
    counted = _value_differences(feature, labels) if feature.values is not None else []
    limits = [_best_limit(name, column, labels) for name, column in feature.columns.items() if column.dtype != object]
    named = sorted(counted, key=lambda found: (-abs(found[0]), found[0]))  # ties: the fakes' first
    best = max(limits, key=lambda found: abs(found[0]), default=(0.0, ""))
    if not named or abs(best[0]) > 1.2 * abs(named[0][0]):  # a limit is harder to grasp than a value
        named = [best]
    return [text for difference, text in named[:most] if abs(difference) >= _MIN_DIFFERENCE]


def _value_differences(feature: Feature, labels: np.ndarray) -> list[tuple[float, str]]:
    """Return for each value how much more frequent it is among reals, -1 to 1, and its counts as text."""
    totals = [np.count_nonzero(labels == label) for label in (FAKE, REAL)]
    return [
        (counts[REAL] / totals[REAL] - counts[FAKE] / totals[FAKE], _counts_text(value, counts, totals))
        for value, counts in _count_values(feature.values, labels).items()
    ]


def _count_values(values: np.ndarray, labels: np.ndarray) -> dict[str, tuple[int, int]]:
    fakes, reals = (Counter(values[labels == label].tolist()) for label in (FAKE, REAL))
    return {value: (fakes[value], reals[value]) for value in sorted(fakes.keys() | reals.keys())}


def _partial_shortcuts(features: Sequence[Feature], labels: np.ndarray, once: np.ndarray) -> tuple[str, ...]:
    """Return the values that are more frequent in one class by at least a tenth of it, beyond chance.

    By Fisher's exact test at 1 %, divided by the number of values tested (Bonferroni); copies count once. An AUC near
    0.5 may hide such values: where a fifth of the fakes are the only PNGs, it is 0.6.
    """
    from scipy.stats import fisher_exact

    labels = labels[once]
    totals = np.bincount(labels, minlength=2)
    counted = [pair for f in features if f.values is not None for pair in _count_values(f.values[once], labels).items()]
    different = [(value, n) for value, n in counted if abs(np.subtract(*(n / totals))) >= _MIN_DIFFERENCE]
    chances = [fisher_exact([n, totals - n]).pvalue * len(counted) for _, n in different]
    found = sorted(zip(chances, different, strict=True), key=lambda item: item[0])
    return tuple(_counts_text(value, n, totals) for chance, (value, n) in found if chance < _MAX_P)


def _best_limit(name: str, values: np.ndarray, labels: np.ndarray) -> tuple[float, str]:
    """Return the difference in shares above the limit that divides the classes best, and its counts as text."""
    known = ~np.isnan(values)
    limits = np.unique(values[known])
    totals = [np.count_nonzero(labels == label) for label in (FAKE, REAL)]
    if len(limits) < 2:
        return 0.0, ""
    above = [
        np.count_nonzero(known & (labels == c)) - np.searchsorted(np.sort(values[known & (labels == c)]), limits)
        for c in (FAKE, REAL)
    ]  # images of each class with at least that value
    difference = above[REAL] / totals[REAL] - above[FAKE] / totals[FAKE]
    best = int(np.argmax(np.abs(difference)))
    counts = [int(count[best]) for count in above]
    return float(difference[best]), _counts_text(f"{name} of at least {limits[best]:.4g}", counts, totals)


def _counts_text(value: str, counts: Sequence[int], totals: Sequence[int]) -> str:
    parts = [f"{counts[c]:,} of {totals[c]:,} {NAMES[c]}s" for c in (FAKE, REAL)]
    return f"{value}: {', '.join(parts)}"


def file_verdict(result: ProbeResult) -> str:
    """Return the result of `probe_files` in one sentence."""
    if result.auc is None:
        return f"too few images to look for a shortcut: each class needs at least {MIN_IMAGES}"
    if not result.features:
        return "no shortcut found: all files are alike in format, size and metadata"
    if result.separates:
        return _shortcut_text(result)
    if result.partial:
        return f"part of a class is a shortcut: {result.partial[0]} (all files: {_auc_text(result)})"
    if result.is_inconclusive:
        return f"no shortcut found, but {result.images} images are too few to rule one out ({_auc_text(result)})"
    verb = "hardly tell" if result.interval[0] > 0.5 else "can't tell"
    found = f"format, size and metadata alone {verb} fake from real"
    return f"no shortcut found: {found} ({_auc_text(result)}; 0.50 is chance)"


def pixel_verdict(result: ProbeResult) -> str:
    """Return the result of `probe_pixels` in one sentence."""
    if result.auc is None:
        return f"too few images to compare: each class needs at least {MIN_IMAGES}"
    if not result.features:
        return "all images have the same pixel statistics"
    if not result.separates:
        return f"brightness, sharpness and the like don't tell fake from real ({_auc_text(result)}; 0.50 is chance)"
    strong = [feature.name for feature in result.features if feature.separates][:2]
    which = f"mainly {' and '.join(strong)}" if strong else "only in combination"
    return f"the classes differ, {which} ({_auc_text(result)}): a hint, no proof of a shortcut"


def strongest_features(result: ProbeResult) -> list[str]:
    """Return the one feature that separates as well as all of them, or else up to three that separate at all."""
    for feature in result.features:
        if feature.auc >= result.auc - _NEAR_TOTAL:
            return [feature.name]
    return [feature.name for feature in result.features if feature.interval[0] > 0.5][:3]


def _shortcut_text(result: ProbeResult) -> str:
    names = strongest_features(result)
    strength = "shortcut" if result.auc >= STRONG_AUC else "weak shortcut"
    if len(names) == 1:
        which = f"{names[0]} alone separates"
    else:
        which = f"{', '.join(names[:-1])} and {names[-1]} together separate" if names else "files together separate"
    return f"{strength} found: {which} fake from real ({_auc_text(result)})"


def _auc_text(result: ProbeResult) -> str:
    low, high = result.interval
    return f"AUC {result.auc:.2f}, 95 % CI {low:.2f}-{high:.2f}"
