"""The shortcut audit: do the files give the answer away, without a look at the pictures?

A detector that learns to tell JPEG from PNG scores 100 % and is worth nothing (Grommelt et al., Fake or JPEG?,
arXiv 2403.17608). So a classifier that sees nothing but headers must not do better than chance.

File names are judged apart: no network sees them. The file's bytes by the picture's pixels belong to the picture
statistics: among files of one encoding they measure how much there is to see, and nothing else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from fakereal.dataset.image_metadata import PIXEL_FEATURES, FileFacts, PixelStatistics
from fakereal.labels import FAKE, NAMES, REAL

GIVES_AWAY = 0.9
"""From this AUC on a data set gives the answer away; from 0.6 on it helps to guess."""

_TOO_WIDE = 0.6  # an interval up to there doesn't exclude a shortcut


def audit_files(
    facts: Sequence[FileFacts], labels: np.ndarray, groups: Sequence[Hashable], seed: int = 0
) -> ProbeResult:
    """Returns how well headers tell real from fake; arguments as in `telling.judge`."""
    return probe(_file_features(facts), labels, groups, seed)


def audit_names(
    facts: Sequence[FileFacts], labels: np.ndarray, groups: Sequence[Hashable], seed: int = 0
) -> ProbeResult:
    """Returns how well the make-up of file names tells: how many digits, letters and separators, never which."""
    return probe([_name_feature(facts)], labels, groups, seed)


def _file_features(facts: Sequence[FileFacts]) -> list[Feature]:
    """In the order in which equally strong ones are named."""
    return [
        _counted("file format", [f.format for f in facts]),
        _size_feature(facts),
        _jpeg_table_feature(facts),
        _counted("EXIF", ["EXIF" if f.exif else "no EXIF" for f in facts]),
        _counted("colour profile", ["colour profile" if f.icc else "no colour profile" for f in facts]),
        _counted("chroma subsampling", [f.subsampling or "no JPEG" for f in facts]),
        _counted("progressive", ["progressive" if f.progressive else "not progressive" for f in facts]),
        _counted("colour mode", [f"{f.mode}, {f.bits} bits" for f in facts]),
        _counted("other tags", [f.tags or "no tags" for f in facts]),
        _counted("extension", [f.extension for f in facts]),
    ]


def _counted(name: str, words: list[str]) -> Feature:
    values = np.array(words, dtype=object)
    return Feature(name, {name: values}, values)


def _size_feature(facts: Sequence[FileFacts]) -> Feature:
    widths, heights = (np.array([getattr(f, side) for f in facts], float) for side in ("width_px", "height_px"))
    columns = {
        "width": widths,
        "height": heights,
        "width by height": widths / heights,
        "a side's factor": np.array([_power_of_two(f.width_px, f.height_px) for f in facts], float),
    }
    return Feature("picture size", columns, np.array([f"{f.width_px}x{f.height_px}" for f in facts], dtype=object))


def _power_of_two(*sides_px: int) -> int:
    """Returns the largest power of two, up to 64, that divides all sides: generators work in multiples of 8 or 64."""
    return next(factor for factor in (64, 32, 16, 8, 4, 2, 1) if not any(side % factor for side in sides_px))


def _jpeg_table_feature(facts: Sequence[FileFacts]) -> Feature:
    words = [f"quality {f.jpeg_quality:.0f} (table {f.jpeg_table})" if f.jpeg_table else "no JPEG" for f in facts]
    quality = np.array([np.nan if f.jpeg_quality is None else f.jpeg_quality for f in facts])
    names = np.array(words, dtype=object)
    return Feature("JPEG quantization table", {"table": names, "quality": quality}, names)


def _name_feature(facts: Sequence[FileFacts]) -> Feature:
    patterns = np.array([f.name_pattern for f in facts], dtype=object)
    lengths = np.array([f.name_length for f in facts], float)
    return Feature("file name", {"make-up": patterns, "length": lengths}, patterns)


def file_verdict(judged: ProbeResult) -> str:
    """Returns the finding in one sentence for people."""
    if judged.auc is None:
        return "too few pictures to say whether the files give the answer away"
    if not judged.features:
        return "the files give nothing away: they are alike in all that was looked at"
    low, high = judged.interval
    value = f"AUC {judged.auc:.2f} (95 % interval {low:.2f} to {high:.2f})"
    if not judged.tells:
        return _not_proven(judged, value)
    names = carriers(judged)
    start = "gives the answer away" if judged.auc >= GIVES_AWAY else "helps to guess"
    by_itself = " alone tells" if len(names) == 1 else " together tell"
    return f"this data set {start}: {_listed(names)}{by_itself} fake from real with {value}"


def is_undecided(judged: ProbeResult) -> bool:
    """Says whether there are too few pictures to exclude a shortcut that was not found."""
    return judged.auc is None or (not judged.tells and judged.interval[1] >= _TOO_WIDE)


def _not_proven(judged: ProbeResult, value: str) -> str:
    if judged.giveaways:
        return (
            f"part of this data set gives itself away ({judged.giveaways[0]}); for the whole, files tell with {value}"
        )
    if is_undecided(judged):
        return f"no shortcut found, but {judged.images} pictures are too few to exclude one: {value}"
    little = "next to nothing" if judged.interval[0] > 0.5 else "nothing"
    return f"the files give {little} away: without the pictures, fake is told from real with {value}"


def carriers(judged: ProbeResult) -> list[str]:
    """Returns the one feature that tells as much as all, or else those that tell something, up to three."""
    strong = [feature for feature in judged.features if feature.auc >= judged.auc - 0.02]
    if strong:
        return [strong[0].name]
    return [feature.name for feature in judged.features if feature.interval[0] > 0.5][:3] or ["its files' details"]


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


# ---- How well a few plain facts tell fake from real: cross-validated, with an interval, and which facts it is.

FOLDS = 5
"""Of the cross-validation; fewer where a class has fewer pictures."""

MIN_IMAGES = 10
"""Different pictures that each class needs, for an AUC to mean anything."""

_Z = 1.96  # standard deviations that hold the middle 95 %
_TREES = 50
_MIN_DIFFERENCE = 0.1  # a telling value must be more frequent in one class by at least this share


@dataclass(frozen=True)
class Feature:
    """One thing to tell by, such as the picture's size: a column or more for the classifier, and words for people."""

    name: str
    columns: dict[str, np.ndarray]  # float arrays are numbers, object arrays are categories; each (n,)
    words: np.ndarray | None = None  # object (n,): what to count when naming values; None: only "above" and "below"

    @property
    def varies(self) -> bool:
        """Whether two pictures differ in it at all."""
        return any(len(set(values.tolist())) > 1 for values in self.columns.values())


@dataclass(frozen=True)
class Strength:
    """How well one feature tells by itself."""

    name: str
    auc: float
    interval: tuple[float, float]  # 95 %
    values: tuple[str, ...]  # those that tell most: "PNG: 40 of 40 fakes, 0 of 25 reals"


@dataclass(frozen=True)
class ProbeResult:
    """How well all features tell together, and each by itself."""

    images: int  # looked at
    auc: float | None  # out of fold; None where there are too few pictures
    interval: tuple[float, float] | None  # 95 %
    features: tuple[Strength, ...] = ()  # strongest first, those that vary only
    giveaways: tuple[str, ...] = ()  # values by which part of a class gives itself away, no matter of chance

    @property
    def tells(self) -> bool:
        """Whether it tells better than chance, in earnest: the interval is above 0.5, and the AUC at least 0.6."""
        return self.auc is not None and self.auc >= 0.6 and self.interval[0] > 0.5


def probe(features: Sequence[Feature], labels: np.ndarray, groups: Sequence[Hashable], seed: int = 0) -> ProbeResult:
    """Returns how well the features tell real from fake on pictures that the classifier has not seen.

    A random forest learns from four fifths of the pictures and judges the last fifth, in turn. Each feature by itself
    is judged in the same way by a single tree, which is as good for one thing and much faster.

    Args:
        features: in the order in which they are named where they tell equally well.
        labels: int (n,), 0 fake, 1 real.
        groups: (n,), equal for pictures that are the same: they are never learnt and judged at once, and count once.
        seed: of the folds and the forest.
    """
    sizes = tuple(len({g for g, label in zip(groups, labels, strict=True) if label == c}) for c in (0, 1))
    varying = [feature for feature in features if feature.varies]
    if min(sizes) < MIN_IMAGES:
        return ProbeResult(len(labels), None, None)
    if not varying:
        return ProbeResult(len(labels), 0.5, (0.5, 0.5))
    folds = _folds(labels, groups, min(FOLDS, *sizes), seed)
    auc = _out_of_fold_auc(varying, labels, folds, _forest(seed))
    strengths = [_strength(feature, labels, folds, sizes, seed) for feature in varying]
    strengths.sort(key=lambda strength: -round(strength.auc, 2))  # stable: the order given decides between equals
    once = np.unique([f"{group} {label}" for group, label in zip(groups, labels, strict=True)], return_index=True)[1]
    return ProbeResult(len(labels), auc, auc_interval(auc, *sizes), tuple(strengths), _giveaways(varying, labels, once))


def auc_interval(auc: float, fakes: int, reals: int) -> tuple[float, float]:
    """Returns the 95 % interval of an area under the ROC curve that was found on so many pictures of each class.

    It is Newcombe's method 5 (Statistics in Medicine 2006; 25:559-573): the values that the AUC found is no surprise
    for, by the variance of Hanley and McNeil. It stays within 0..1, and 1.0 on few pictures is no certainty.
    """
    from scipy.optimize import brentq

    shared = (fakes + reals) / 2 - 1

    def spread(true: float) -> float:
        pairs = 1 + shared * ((1 - true) / (2 - true) + true / (1 + true))
        return _Z * math.sqrt(true * (1 - true) * pairs / (fakes * reals))

    beside = 1e-9  # at 0 and 1 the AUC itself is a solution, but not the one that is looked for
    low = brentq(lambda true: auc - true - spread(true), 0.0, auc - beside) if auc > beside else 0.0
    high = brentq(lambda true: true - auc - spread(true), auc + beside, 1.0) if auc < 1 - beside else 1.0
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


def _strength(feature: Feature, labels: np.ndarray, folds: list, sizes: tuple[int, int], seed: int) -> Strength:
    auc = _out_of_fold_auc([feature], labels, folds, _tree(seed))
    return Strength(feature.name, auc, auc_interval(auc, *sizes), tuple(most_indicative_values(feature, labels)))


def _out_of_fold_auc(features: Sequence[Feature], labels: np.ndarray, folds: list, make: Callable[[int], Any]) -> float:
    """Returns the share of pairs, a fake and a real of one fold, that are in the right order; ties count half.

    Pairs across folds would compare the outputs of two classifiers, which lowers the AUC where values are rare.
    """
    from sklearn.metrics import roc_auc_score

    columns = [column for feature in features for column in feature.columns.values()]
    right = pairs = 0.0
    for learnt, judged in folds:
        counts = np.bincount(labels[judged], minlength=2)
        if not counts.all():
            continue
        encode = _encoder(columns, learnt)
        classifier = make(len(learnt)).fit(encode(learnt), labels[learnt])
        scores = classifier.predict_proba(encode(judged))[:, list(classifier.classes_).index(REAL)]
        right += roc_auc_score(labels[judged], scores) * counts.prod()
        pairs += counts.prod()
    return float(right / pairs) if pairs else 0.5


def _encoder(columns: Sequence[np.ndarray], learnt: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from pictures' numbers to the classifier's input: numbers, and categories as one column each.

    Categories that the learning pictures have once only, or after the 30 most frequent ones, count as one: other.
    """
    from sklearn.preprocessing import OneHotEncoder

    numbers = [column for column in columns if column.dtype != object]
    categories = [column for column in columns if column.dtype == object]
    stacked = np.stack(categories, axis=1) if categories else np.empty((len(columns[0]), 0), object)
    one_hot = OneHotEncoder(
        handle_unknown="infrequent_if_exist", min_frequency=2, max_categories=30, sparse_output=False
    )
    if categories:
        one_hot.fit(stacked[learnt])

    def encode(chosen: np.ndarray) -> np.ndarray:
        parts = [np.nan_to_num(number[chosen], nan=-1.0)[:, None] for number in numbers]
        return np.concatenate([*parts, *([one_hot.transform(stacked[chosen])] if categories else [])], axis=1)

    return encode


def most_indicative_values(feature: Feature, labels: np.ndarray, most: int = 2) -> list[str]:
    """Returns what tells most: `PNG: 40 of 40 fakes, 0 of 25 reals`.

    Values that many pictures share are counted; where none is much more frequent in one class, a limit is named.
    """
    counted = _counted_words(feature, labels) if feature.words is not None else []
    limits = [_best_limit(name, column, labels) for name, column in feature.columns.items() if column.dtype != object]
    named = sorted(counted, key=lambda found: (-abs(found[0]), found[0]))  # of two that say the same, the fakes'
    best = max(limits, key=lambda found: abs(found[0]), default=(0.0, ""))
    if not named or abs(best[0]) > 1.2 * abs(named[0][0]):  # a limit is harder to grasp than a value
        named = [best]
    return [text for difference, text in named[:most] if abs(difference) >= _MIN_DIFFERENCE]


def _counted_words(feature: Feature, labels: np.ndarray) -> list[tuple[float, str]]:
    """Returns for each value how much more frequent it is among reals, -1 to 1, and the words."""
    totals = [np.count_nonzero(labels == label) for label in (FAKE, REAL)]
    return [
        (counts[REAL] / totals[REAL] - counts[FAKE] / totals[FAKE], _words(word, counts, totals))
        for word, counts in _counts(feature.words, labels).items()
    ]


def _counts(words: np.ndarray, labels: np.ndarray) -> dict[str, tuple[int, int]]:
    fakes, reals = (Counter(words[labels == label].tolist()) for label in (FAKE, REAL))
    return {word: (fakes[word], reals[word]) for word in sorted(fakes.keys() | reals.keys())}


def _giveaways(features: Sequence[Feature], labels: np.ndarray, once: np.ndarray) -> tuple[str, ...]:
    """Returns the values that are more frequent in one class by at least a tenth of it, which chance can't explain.

    That is Fisher's exact test at 1 %, divided by the number of values tested (Bonferroni); copies count once. An AUC
    near 0.5 may hide them: where a fifth of the fakes are the only PNGs, it is 0.6.
    """
    from scipy.stats import fisher_exact

    labels = labels[once]
    totals = np.bincount(labels, minlength=2)
    counted = [(word, n) for f in features if f.words is not None for word, n in _counts(f.words[once], labels).items()]
    different = [(word, n) for word, n in counted if abs(np.subtract(*(n / totals))) >= _MIN_DIFFERENCE]
    chances = [fisher_exact([n, totals - n]).pvalue * len(counted) for _, n in different]
    found = sorted(zip(chances, different, strict=True), key=lambda item: item[0])
    return tuple(_words(word, n, totals) for chance, (word, n) in found if chance < 0.01)


def _best_limit(name: str, values: np.ndarray, labels: np.ndarray) -> tuple[float, str]:
    """Returns the difference in shares on both sides of the limit that divides the classes best, and the words."""
    known = ~np.isnan(values)
    limits = np.unique(values[known])
    totals = [np.count_nonzero(labels == label) for label in (FAKE, REAL)]
    if len(limits) < 2:
        return 0.0, ""
    above = [
        np.count_nonzero(known & (labels == c)) - np.searchsorted(np.sort(values[known & (labels == c)]), limits)
        for c in (FAKE, REAL)
    ]  # pictures of each class with at least that value
    difference = above[REAL] / totals[REAL] - above[FAKE] / totals[FAKE]
    best = int(np.argmax(np.abs(difference)))
    counts = [int(count[best]) for count in above]
    return float(difference[best]), _words(f"{name} of at least {limits[best]:.4g}", counts, totals)


def _words(value: str, counts: Sequence[int], totals: Sequence[int]) -> str:
    parts = [f"{counts[c]:,} of {totals[c]:,} {NAMES[c]}s" for c in (FAKE, REAL)]
    return f"{value}: {', '.join(parts)}"


def audit_pixels(
    statistics: Sequence[PixelStatistics],
    facts: Sequence[FileFacts],
    labels: np.ndarray,
    groups: Sequence[Hashable],
    seed: int = 0,
) -> ProbeResult:
    """Returns how well trivial measures tell real from fake; `labels` and on as in `telling.judge`.

    Bytes by pixel stand here: among files of one encoding they measure how much there is to see.
    """
    rows = np.array([astuple(each) for each in statistics], dtype=float)
    features = [Feature(name, {name: rows[:, column]}) for column, name in enumerate(PIXEL_FEATURES[:-1])]
    features.append(Feature(PIXEL_FEATURES[-1], {"strength": rows[:, -2], "period": rows[:, -1]}))
    features.append(Feature("bytes per pixel", {"bytes per pixel": np.array([f.bytes_per_pixel for f in facts])}))
    return probe(features, labels, groups, seed)


def pixel_verdict(judged: ProbeResult) -> str:
    """Returns the hint in one sentence for people."""
    if judged.auc is None:
        return "too few pictures to say anything"
    if not judged.features:
        return "all pictures measure the same"
    low, high = judged.interval
    value = f"AUC {judged.auc:.2f} (95 % interval {low:.2f} to {high:.2f})"
    if not judged.tells:
        return f"no hint: brightness, sharpness and the like tell fake from real with {value}"
    strong = [feature.name for feature in judged.features if feature.auc >= 0.6][:2] or ["brightness, sharpness"]
    return f"a hint, no proof: {' and '.join(strong)} and the like tell fake from real with {value}"
