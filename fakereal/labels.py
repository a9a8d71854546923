"""Labels: 0 = fake, 1 = real, everywhere. Only this module knows their names, and those of class and split folders."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

FAKE, REAL = 0, 1
NAMES = ("fake", "real")
"""`NAMES[label]` is the word that users read and write."""

SPLITS = ("train", "val", "test")
"""In order of precedence: an image that is in two of them counts in the first."""

EVALUATION = "eval"
"""What `FolderName.split` says of `eval` and `evaluation`: test, or val where a test folder lies beside it."""

_CERTAIN = {
    FAKE: "fake fakes ai aigc aigenerated generated synthetic synthesized synthesised tampered manipulated forged"
    " deepfake deepfakes".split(),
    REAL: "real reals genuine authentic".split(),
}
"""These name a class wherever they stand. The fake ones do with unknown words behind them, too: `AI_baroque`."""

_CERTAIN_LAST = {"fake", "fakes", "deepfake", "deepfakes"}
"""These also with unknown words before them: `midjourney_fake`, but not `user_generated`."""

_BESIDE = {
    FAKE: "faceswap faceswaps swapped swap edited altered photoshopped spliced forgery artificial cgi tp gan gans"
    " diffusion sd synthesis".split(),
    REAL: "nature natural original originals pristine photo photos photograph photographs camera human humans people"
    " untouched au".split(),
}
"""These name a class only beside a folder of the other class: `midjourney/photos` holds fakes."""

_CONTENT = set("photo photos photograph photographs people nature camera".split())
"""Of the latter, those that say what is shown where a word for fakes stands in the same name: `ai_photos`."""

_SPLIT_OF_WORD = {
    **dict.fromkeys("train training trainset traindata".split(), "train"),
    **dict.fromkeys("val valid validation valset dev devel development".split(), "val"),
    **dict.fromkeys("test testing tests testset".split(), "test"),
    **dict.fromkeys("eval evaluation".split(), EVALUATION),
}
_HELD_OUT = {"holdout", "heldout", "held", "unseen", "ood"}
"""These may name a split of its own; the user must say."""

_NEGATIONS = {"non", "not", "no"}
_UNDECIDED = set(
    "or vs versus and mixed both detection detector detect classification classifier unknown without free before after"
    " pre post anti".split()
)
"""With one of these beside it, a class word names no class: `real_vs_fake`, `ai-detection`."""

_NEUTRAL = set(
    "images image imgs img pictures picture pics pic files file folder dir data dataset datasets set sets samples"
    " sample examples split part class classes label labels face faces art arts artwork artworks painting paintings"
    " portrait portraits video videos frame frames sequence sequences crops cropped resized raw jpg jpeg png webp deep"
    " hq px x v new all".split()
)
"""These change nothing about a class or split word beside them: `fake_faces`, `test_set`."""

_ORIGINS = set("cifake celeb celeba coco ffhq imagenet laion lsun flickr youtube".split())
"""Nor do these, but by themselves they are sources."""

_KNOWN = frozenset().union(
    *_CERTAIN.values(), *_BESIDE.values(), _SPLIT_OF_WORD, _HELD_OUT, _NEGATIONS, _UNDECIDED, _NEUTRAL, _ORIGINS
)
_NO_LETTERS, _HUMP = re.compile(r"[\W\d_]+"), re.compile(r"(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True)
class FolderName:
    """What the name of a folder says by itself; the folders beside it decide the rest."""

    label: int | None = None  # of the class that it names
    certain: bool = False  # False: it counts only beside a folder of the other class
    words: frozenset[str] = frozenset()  # those that name the class
    rest: frozenset[str] = frozenset()  # unknown words: a name such as `real_shoes` counts beside `fake_shoes`
    split: str | None = None  # train, val, test or `EVALUATION`
    unclear_class: bool = False  # it names a class, but could mean either
    unclear_split: bool = False  # it names a split, with words that may change its meaning

    @property
    def is_plain(self) -> bool:
        """Whether the name is nothing but the word fake or real."""
        return self.certain and not self.rest and self.words <= {"fake", "fakes", "real", "reals"}


@lru_cache(maxsize=4096)
def read_folder_name(name: str) -> FolderName:
    """Return what a folder's name says: in any case, with `-`, `_`, spaces, digits or CamelCase between its words.

    The prefixes `0_` and `1_` of CNNDetection's class folders say nothing: the word counts, not the digit.
    """
    words = _words(name)
    splits = {_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD}
    words = [word for word in words if word not in _SPLIT_OF_WORD]
    named = _read_class(words)
    alone = named.label is None and not named.unclear_class
    unclear = len(splits) > 1 or bool(splits and alone and not _NEUTRAL.issuperset(words))
    unclear = unclear or not _HELD_OUT.isdisjoint(words)
    split = splits.pop() if splits and not unclear else None
    return FolderName(named.label, named.certain, named.words, named.rest, split, named.unclear_class, unclear)


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case, without digits: CamelCase is split unless it is a known word whole."""
    chunks = [chunk for chunk in _NO_LETTERS.split(name) if chunk]
    split = [[chunk] if chunk.lower() in _KNOWN else _HUMP.split(chunk) for chunk in chunks]
    return [word.lower() for words in split for word in words]


def _read_class(words: list[str]) -> FolderName:
    """Return what words say of a class."""
    if len(words) > 1 and words[0] in _NEGATIONS and not _NEGATIONS.intersection(words[1:]):
        negated = _read_class(words[1:])
        if negated.certain and not negated.rest:
            return FolderName(REAL - negated.label, False, frozenset(words))
        return FolderName(unclear_class=negated.unclear_class or negated.label is not None)
    certain, beside = (
        {label: set(words).intersection(known[label]) for label in known} for known in (_CERTAIN, _BESIDE)
    )
    if certain[FAKE] or beside[FAKE]:
        beside[REAL] -= _CONTENT
    found = {label: certain[label] | beside[label] for label in (FAKE, REAL)}
    rest = set(words) - found[FAKE] - found[REAL] - _NEUTRAL - _ORIGINS - _CONTENT
    if not (found[FAKE] or found[REAL]):
        return FolderName()
    if (found[FAKE] and found[REAL]) or rest & (_UNDECIDED | _NEGATIONS) or _is_style(words):
        return FolderName(unclear_class=True)
    label = FAKE if found[FAKE] else REAL
    if rest and label == FAKE and not (words[0] in _CERTAIN[FAKE] or words[-1] in _CERTAIN_LAST):
        return FolderName(unclear_class=True)
    if rest and not certain[label]:
        return FolderName(unclear_class=True)
    is_certain = bool(certain[label]) and (label == FAKE or not rest)
    return FolderName(label, is_certain, frozenset(found[label]), frozenset(rest))


def is_neutral(name: str) -> bool:
    """Say whether a folder's name says nothing about its images, as `images`, `256px` or `0001` do."""
    words = _words(name)
    return len(words) < 2 and _NEUTRAL.issuperset(words)


def _is_style(words: list[str]) -> bool:
    """Say whether words contain `photo real`, which is a style of rendering."""
    return ("photo", "real") in pairwise(words)


def label_of_name(name: str) -> int | None:
    """Return the label of the word `fake` or `real`, in any case; None for any other word."""
    lowered = name.strip().lower()
    return NAMES.index(lowered) if lowered in NAMES else None


def label_of_folder(name: str) -> int | None:
    """Return the label of a class folder by its name alone; None for any other folder, and where it is unclear."""
    return read_folder_name(name).label


def known_folder_names() -> str:
    """Return some names of class folders, for error messages."""
    return "fake, fake_images, ai, generated, tampered ... and real, real_images, genuine, nature ..."
