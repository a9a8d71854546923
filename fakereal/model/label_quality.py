"""Which labels are probably wrong, by features: out-of-fold probabilities through confident learning, arrays only.

A picture is judged by a classifier that learnt from neither it nor a near-copy of it. Which of the disagreements are
errors, and how many errors there are in all, is estimated as in Northcutt et al. 2021 (arXiv 1911.00068), by cleanlab;
then once more with classifiers that don't learn from the first suspects.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from cleanlab.count import num_label_issues
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from fakereal.cli import progress_bar
from fakereal.labels import FAKE, REAL
from fakereal.model.metrics import binary_log_loss, roc_auc

RELIABLE_AUC = 0.95
"""Of `Judgement.sound_auc`: below it, most disagreements are hard pictures rather than wrong labels."""

_STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2)  # of the logistic regression, scikit-learn's C; from strict to free
_TRIAL_SHARE, _TRIAL_LEAST, _TRIAL_MOST = 0.05, 20, 0.2  # labels swapped for trial: 5 %, but 20 where that is <= 20 %
_SURE_SHARE = 0.2  # of the pictures, those that the classifier is surest of
_MOST_WRONG = 0.35  # a larger share of wrong labels could not be told from chance
_RESAMPLES = 200

Parts = Sequence[tuple[np.ndarray, np.ndarray]]
"""For each fold the rows that are learnt from and those that are judged."""


@dataclass(frozen=True)
class Trial:
    """Labels swapped on purpose, which shows how many errors are found in these very pictures.

    Swapping a label that was wrong makes it right, so the more labels were wrong, the more the recall falls short.
    """

    swapped: int
    found: int  # of the swapped ones
    untouched: int
    suspected: int  # of the untouched ones; labels that were wrong before are rightly among them

    @property
    def recall(self) -> float:
        """The share of the swapped labels that was found, 0..1."""
        return self.found / self.swapped


@dataclass(frozen=True)
class Judgement:
    """What the probabilities say, as arrays in the order of the labels."""

    p_given: np.ndarray  # out-of-fold probability of the given label, float64 (n,), 0..1
    wrong: np.ndarray  # bool (n,), the suspects
    scores: np.ndarray  # quality of each label, float64 (n,), 0..1
    auc: float  # ROC AUC of the out-of-fold probabilities against the labels as given
    sound_auc: float  # the same against sound labels, as far as that can be estimated
    expected: int  # wrong labels in all
    interval: tuple[int, int]  # of `expected`, 95 %; from 0 where the suspects can't be relied on
    trial: Trial


def judge(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> Judgement:
    """Judges labels by features.

    Args:
        features: float (n, d), one row a picture.
        labels: int (n,), 0 fake, 1 real, as given.
        groups: int (n,), pictures that stay in one fold share a number.
        folds: at most so many.
        seed: of the folds, the trial and the interval.
    """
    # Scaled at once for all folds: no label takes part in it, so nothing leaks.
    scaled = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
    smallest = min(len(np.unique(groups[labels == label])) for label in (FAKE, REAL))
    cut = StratifiedGroupKFold(min(folds, smallest), shuffle=True, random_state=seed)
    parts = list(cut.split(scaled, labels, groups))
    steps = (len(_STRENGTHS) + 3) * len(parts)
    rng = np.random.default_rng(seed)
    # One thread: on a busy machine, the waiting of BLAS's threads for each other takes 20 times as long as the work.
    with progress_bar("judging labels", steps) as advance, threadpool_limits(1):
        tried = [(_out_of_fold(scaled, labels, parts, strength, advance), strength) for strength in _STRENGTHS]
        first, strength = min(tried, key=lambda pair: binary_log_loss(labels, pair[0]))
        p_real = _again(scaled, labels, first, parts, strength, advance)
        trial = _trial(scaled, labels, parts, strength, advance, rng)
    p_given = np.where(labels == REAL, p_real, 1.0 - p_real)
    wrong, scores, sound = suspected(labels, p_real), _scores(labels, p_real), sound_auc(labels, p_real)
    expected, low, high = expected_wrong(labels, p_real, rng)
    interval = (low if sound >= RELIABLE_AUC else 0, high)
    return Judgement(p_given, wrong, scores, roc_auc(labels, p_real), sound, expected, interval, trial)


def _out_of_fold(
    features: np.ndarray,
    labels: np.ndarray,
    parts: Parts,
    strength: float,
    advance: Callable[[int], None],
    trusted: np.ndarray | None = None,
) -> np.ndarray:
    """Returns p_real of each picture by a classifier that learnt from the other folds: float64 (n,).

    Where `trusted`, bool (n,), is given, it learns from those alone, unless they are all of one class.
    """
    p_real = np.empty(len(labels))
    for learnt, judged in parts:
        sound = learnt if trusted is None else learnt[trusted[learnt]]
        rows = sound if len(np.unique(labels[sound])) == 2 else learnt
        classifier = LogisticRegression(C=strength, max_iter=1000).fit(features[rows], labels[rows])
        p_real[judged] = classifier.predict_proba(features[judged])[:, REAL]
        advance(1)
    return p_real


def _again(features, labels, first: np.ndarray, parts: Parts, strength: float, advance) -> np.ndarray:
    """Returns p_real by classifiers that no longer learn from the suspects of the first round, as in the paper."""
    return _out_of_fold(features, labels, parts, strength, advance, ~suspected(labels, first))


def suspected(labels: np.ndarray, p_real: np.ndarray) -> np.ndarray:
    """Returns which labels are probably wrong: bool (n,).

    Args:
        labels: int (n,), as given.
        p_real: out-of-fold probabilities, float (n,).
    """
    return np.asarray(find_label_issues(labels, _both(p_real), filter_by="prune_by_noise_rate", n_jobs=1))


def _both(p_real: np.ndarray) -> np.ndarray:
    return np.stack([1.0 - p_real, p_real], axis=1)


def _scores(labels: np.ndarray, p_real: np.ndarray) -> np.ndarray:
    return get_label_quality_scores(labels, _both(p_real), method="self_confidence", adjust_pred_probs=True)


def _trial(features, labels: np.ndarray, parts: Parts, strength: float, advance, rng: np.random.Generator) -> Trial:
    count = max(int(_TRIAL_SHARE * len(labels)), min(_TRIAL_LEAST, int(_TRIAL_MOST * len(labels))))
    swapped = np.zeros(len(labels), dtype=bool)
    swapped[rng.choice(len(labels), count, replace=False)] = True
    changed = np.where(swapped, 1 - labels, labels)
    first = _out_of_fold(features, changed, parts, strength, advance)
    found = suspected(changed, _again(features, changed, first, parts, strength, advance))
    return Trial(count, int(found[swapped].sum()), len(labels) - count, int(found[~swapped].sum()))


def expected_wrong(labels: np.ndarray, p_real: np.ndarray, rng: np.random.Generator) -> tuple[int, int, int]:
    """Returns how many labels are expected to be wrong, and the ends of a 95 % interval.

    The number is confident learning's. It takes the classifier's weakness on hard pictures for wrong labels; another
    estimate takes errors to be as frequent among easy pictures as elsewhere, and counts them where the classifier is
    surest. The interval spans both, each with its bootstrap.
    """
    by_class = [np.flatnonzero(labels == label) for label in (FAKE, REAL)]
    draws = []
    for _ in range(_RESAMPLES):
        drawn = np.concatenate([rng.choice(numbers, len(numbers)) for numbers in by_class])
        draws.append((_confident_count(labels[drawn], p_real[drawn]), _sure_count(labels[drawn], p_real[drawn])))
    count, spread = _confident_count(labels, p_real), np.array(draws)
    low = min(count, np.percentile(spread.min(axis=1), 2.5))
    high = max(count, np.percentile(spread.max(axis=1), 97.5))
    return count, round(low), round(high)


def _confident_count(labels: np.ndarray, p_real: np.ndarray) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample in which no picture is confidently of one class
        return int(num_label_issues(labels, _both(p_real), estimation_method="off_diagonal_calibrated"))


def _sure_count(labels: np.ndarray, p_real: np.ndarray) -> float:
    surest = np.argsort(-np.abs(p_real - 0.5), kind="stable")[: max(1, int(_SURE_SHARE * len(labels)))]
    return float(np.mean((p_real[surest] > 0.5) != (labels[surest] == REAL)) * len(labels))


def sound_auc(labels: np.ndarray, p_real: np.ndarray) -> float:
    """Returns about which ROC AUC the probabilities would have if no label were wrong.

    Labels that are wrong at random pull the AUC towards 0.5 by twice their share; the share is that among the pictures
    which the classifier is surest of. A weak classifier stays weak, however many labels are wrong.
    """
    share = min(_sure_count(labels, p_real) / len(labels), _MOST_WRONG)
    return min(1.0, 0.5 + (roc_auc(labels, p_real) - 0.5) / (1 - 2 * share))
