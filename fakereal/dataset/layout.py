"""Decide from the folders of a data set which class, split and source their images have; refuse what is unclear.

A folder is never looked at alone. A word such as `photos` or `edited` names a class only beside a folder of the other
class, and a folder that names no class is refused where it lies among others that do. Split folders don't count as
a level, so that `train/ai` and `val/nature` lie beside each other.
"""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import takewhile
from pathlib import Path

from fakereal.errors import ConfigError, DataError
from fakereal.labels import EVALUATION, FAKE, NAMES, REAL, SPLITS, FolderName, is_neutral, read_folder_name

MAX_SOURCES = 100
"""Folders in a class folder that count as its sources; more are taken for persons, videos or the like."""

Parts = tuple[str, ...]
"""The names of the folders from the root of a data set down to one of them."""

_SKIP = "skip"
_NAMED = 3  # folders in a message
_QUESTIONS = {
    "class": ("can't tell whether {} is fake or real", "can't tell whether {} are fake or real"),
    "classes": ("{} is in a fake and in a real folder", "{} are in a fake and in a real folder"),
    "split": ("can't tell which split {} is", "can't tell which splits {} are"),
    "splits": ("{} is in folders of several splits", "{} are in folders of several splits"),
}
"""By kind: what is said of one folder and of several."""
_CLASS_HINT, _SPLIT_HINT = "--class {}=fake|real|skip", "--split-folder {}=train|val|test|skip"


@dataclass(frozen=True)
class LabelRules:
    """What the user says about labels: `NAME=VALUE` each, NAME a folder's name, its path, or a pattern with `*`."""

    classes: tuple[str, ...] = ()  # fake, real or skip
    split_folders: tuple[str, ...] = ()  # train, val, test or skip
    labels_file: Path | None = None  # has path and label of each image; then folders name no class

    def __post_init__(self) -> None:
        """Raise ConfigError where a rule is no NAME=VALUE."""
        _parse("--class", self.classes, (*NAMES, _SKIP))
        _parse("--split-folder", self.split_folders, (*SPLITS, _SKIP))

    @classmethod
    def of(
        cls, classes: Sequence[str] | None, split_folders: Sequence[str] | None, labels_file: str | Path | None
    ) -> LabelRules:
        """Return the rules from options or configuration keys, each of which may be missing."""
        file = Path(labels_file) if labels_file else None
        return cls(tuple(classes or ()), tuple(split_folders or ()), file)

    def options(self) -> list[str]:
        """Return the options that say the same, for the commands that people are told to run next."""
        classes = [word for rule in self.classes for word in ("--class", rule)]
        splits = [word for rule in self.split_folders for word in ("--split-folder", rule)]
        return classes + splits + (["--labels", str(self.labels_file)] if self.labels_file else [])

    def split_of(self, name: str) -> str | None:
        """Return the split, or `skip`, that is given for a name."""
        given = _parse("--split-folder", self.split_folders, (*SPLITS, _SKIP))
        return next((value for known, value in given if known.lower() == name.lower()), None)

    def names(self, folder: Parts) -> bool:
        """Say whether a class is given for this very folder, by its name or its path."""
        named = {name.lower() for name, _ in _parse("--class", self.classes, (*NAMES, _SKIP))}
        return not named.isdisjoint({folder[-1].lower(), "/".join(folder).lower()})


@dataclass(frozen=True)
class Place:
    """What the folders of an image say about it."""

    label: int
    source: str  # "" where the layout names none
    split: str | None  # the given split "train" | "val" | "test", or None
    folder: Parts = ()  # the class folder


@dataclass(frozen=True)
class Unused:
    """Why the images of a folder take no part."""

    reason: str
    failed: bool = True  # False: the user said so
    state: str = "not used"  # in the table


def read_layout(counts: Mapping[Parts, int], rules: LabelRules, where: str) -> dict[Parts, Place | Unused]:
    """Return what each folder's images are.

    Args:
        counts: the number of images directly in each folder; () is the root.
        rules: what the user says, which comes first.
        where: the root, for messages.

    Raises:
        DataError: a folder's class or split is unclear; it is named, with the options that settle it.
        ConfigError: a rule names no folder.
    """
    tree = _Tree(counts, rules)
    found = {folder: tree.place(folder) for folder in counts}
    if tree.questions:
        raise DataError(f"{where}: {tree.message()}")
    return _with_sources(found, tree)


def read_splits(counts: Mapping[Parts, int], rules: LabelRules, where: str) -> dict[Parts, str | Unused | None]:
    """Return the split that each folder's images have by its name, where labels don't come from folders.

    Args:
        counts: the number of images directly in each folder.
        rules: those for classes don't count.
        where: the root, for messages.

    Raises:
        DataError: a folder's split is unclear.
    """
    tree = _Tree(counts, LabelRules(split_folders=rules.split_folders))
    found = {folder: tree.given_or_named_split(folder) for folder in counts}
    if tree.questions:
        raise DataError(f"{where}: {tree.message()}")
    return found


def _parse(option: str, rules: Iterable[str], values: Sequence[str]) -> list[tuple[str, str]]:
    parsed: dict[str, str] = {}
    for rule in rules:
        name, _, value = rule.rpartition("=")
        name, value = name.strip().strip("/"), value.strip().lower()
        if not name or value not in values:
            raise ConfigError(f"{option}: expected NAME={'|'.join(values)}, got {rule!r}")
        if parsed.setdefault(name, value) != value:
            raise ConfigError(f"{option}: {name} is given as {parsed[name]} and as {value}: keep one")
    return list(parsed.items())


def _is_pattern(name: str) -> bool:
    return "*" in name or "?" in name


@dataclass
class _Tree:
    """All folders that hold images, with those above them."""

    counts: Mapping[Parts, int]
    rules: LabelRules
    questions: dict[str, Counter[Parts]] = field(default_factory=lambda: defaultdict(Counter))
    exact: set[Parts] = field(default_factory=set)  # folders that a rule names by their path

    def __post_init__(self) -> None:
        self.folders = sorted({folder[:depth] for folder in self.counts for depth in range(1, len(folder) + 1)})
        self.names: dict[Parts, FolderName] = {folder: read_folder_name(folder[-1]) for folder in self.folders}
        self.given_class = self._given("--class", self.rules.classes, (*NAMES, _SKIP))
        self.given_split = self._given("--split-folder", self.rules.split_folders, (*SPLITS, _SKIP))
        self.splits = self._read_splits()
        self.below: dict[Parts, set[int]] = defaultdict(set)  # labels of the class folders in a folder
        self.surely_below: dict[Parts, set[int]] = defaultdict(set)  # of those whose names are certain
        self.labels = self._read_labels()
        self._apply_patterns()

    def _apply_patterns(self) -> None:
        """Apply the rules with `*` or `?` to the outermost folders that name no class and hold no class folder."""
        for name, value in _parse("--class", self.rules.classes, (*NAMES, _SKIP)):
            matching = [folder for folder in self.folders if _is_pattern(name) and _matches(folder, name)]
            if _is_pattern(name) and not matching:
                raise ConfigError(f"--class {name}={value}: no {self._noun()} matches; there are {self._known()}")
            for folder in matching:
                path = _path(folder)
                if not (self.is_split(folder) or self.below[folder] or self.given_class.keys() & path
                        or self.labels.keys() & path):  # fmt: skip
                    self.given_class[folder] = value
                    self.labels |= {} if value == _SKIP else {folder: NAMES.index(value)}

    def _noun(self) -> str:
        return "label" if self.rules.labels_file else "folder"

    def _known(self) -> str:
        return _listed(sorted({folder[-1] for folder in self.folders}), 10) or "none"

    def _given(self, option: str, rules: Iterable[str], values: Sequence[str]) -> dict[Parts, str]:
        """Return what the rules without a pattern say of each folder they name, by its path before its name."""
        by_name: dict[Parts, str] = {}
        by_path: dict[Parts, str] = {}
        for name, value in _parse(option, rules, values):
            wanted = name.lower()
            named = [folder for folder in self.folders if folder[-1].lower() == wanted]
            exact = [folder for folder in self.folders if "/".join(folder).lower() == wanted]
            if _is_pattern(name) and option == "--class":
                continue
            if not (exact if "/" in name else named):
                raise ConfigError(f"{option} {name}={value}: no {self._noun()} of this name; there are {self._known()}")
            (by_path if "/" in name else by_name).update(dict.fromkeys(exact if "/" in name else named, value))
        self.exact |= by_path.keys()
        return by_name | by_path

    def _read_splits(self) -> dict[Parts, str]:
        """Return the split of each folder that names one; a folder of several splits is none itself."""
        named = {folder: name.split for folder, name in self.names.items() if name.split}
        named = {folder: self._settle_evaluation(folder, split, named) for folder, split in named.items()}
        inside: dict[Parts, set[str]] = defaultdict(set)
        for folder, split in named.items():
            for depth in range(1, len(folder)):
                inside[folder[:depth]].add(split)
        named = {folder: split for folder, split in named.items() if split and len(inside[folder]) < 2}
        return named | {folder: split for folder, split in self.given_split.items() if split != _SKIP}

    def _settle_evaluation(self, folder: Parts, split: str, named: Mapping[Parts, str]) -> str:
        """Return test for `eval`, val beside a test folder, and no split where both are taken."""
        if split != EVALUATION:
            return split
        beside = {other for path, other in named.items() if path[:-1] == folder[:-1]}
        return "test" if "test" not in beside else "" if "val" in beside else "val"

    def is_split(self, folder: Parts) -> bool:
        """Whether a folder is a split and nothing else."""
        name = self.names[folder]
        alone = (name.label is None and not name.unclear_class) and folder not in self.given_class
        return alone and (folder in self.splits or folder in self.given_split)

    def _read_labels(self) -> dict[Parts, int]:
        """Return the label of each class folder, the innermost folders first."""
        levels: dict[Parts, list[Parts]] = defaultdict(list)
        for folder in self.folders:
            if not self.is_split(folder):
                levels[self._above(folder)].append(folder)
        labels: dict[Parts, int] = {}
        for level in sorted(levels, key=len, reverse=True):
            for folder, label in self._labels_beside(levels[level]).items():
                labels[folder] = label
                for depth in range(1, len(folder)):
                    self.below[folder[:depth]].add(label)
                    if self.names[folder].certain or folder in self.given_class:
                        self.surely_below[folder[:depth]].add(label)
        return labels

    def _above(self, folder: Parts) -> Parts:
        """Return the names above a folder, without those of splits."""
        return tuple(folder[depth - 1] for depth in range(1, len(folder)) if not self.is_split(folder[:depth]))

    def sources_above(self, folder: Parts) -> Parts:
        """Return the names above a class folder, without those of splits and classes."""
        above = _path(folder)[:-1]
        is_class = {each: each in self.labels and not self.names[each].rest for each in above}
        return tuple(each[-1] for each in above if not (self.is_split(each) or is_class[each]))

    def _labels_beside(self, folders: Sequence[Parts]) -> dict[Parts, int]:
        """Return the labels of the folders of one level that name a class."""
        labels = {folder: NAMES.index(self.given_class[folder]) for folder in folders if self._is_given(folder)}
        asked = [folder for folder in folders if folder not in self.given_class and not self._holds_both(folder)]
        names = {folder: self.names[folder] for folder in asked if self.names[folder].label is not None}
        labels |= {folder: name.label for folder, name in names.items() if name.certain}
        sure = set(labels.values())
        rests = {name.rest for name in map(self.names.get, folders) if name.label == FAKE}
        words = [{name.words for name in names.values() if name.label == label} for label in (FAKE, REAL)]
        for folder, name in names.items():
            alone = name.label not in sure and len(words[name.label]) == 1
            beside = bool(words[REAL - name.label]) or REAL - name.label in sure
            if (alone and beside and not name.rest) or (name.rest and name.rest in rests):
                labels[folder] = name.label
        return labels

    def _is_given(self, folder: Parts) -> bool:
        return self.given_class.get(folder, _SKIP) != _SKIP

    def _holds_both(self, folder: Parts) -> bool:
        """Whether a folder holds folders of both classes, and so is a source: never one called just fake or real."""
        name = self.names[folder]
        below = self.surely_below if name.certain else self.below
        return len(below[folder]) == 2 and not name.is_plain

    def place(self, folder: Parts) -> Place | Unused:
        """Return what one folder's images are; where that is unclear, note the question."""
        path = _path(folder)
        for option, given in (("--class", self.given_class), ("--split-folder", self.given_split)):
            if _last(given, path) == _SKIP:
                return Unused(f"left out by {option}", failed=False)
        named = [each for each in path if each in self.labels]
        named = [each for each in named if each in self.exact][-1:] or named
        if not named:
            return self._without_label(folder, path)
        if len({self.labels[each] for each in named}) > 1:
            self.questions["classes"][folder] += self.counts[folder]
        # The outer one as a rule; in `maskin_fake/fake` it names the source
        inner_only = self.names[named[0]].rest and named[-1][-1].casefold() in NAMES
        class_folder = named[-1] if inner_only else named[0]
        return Place(self.labels[named[0]], "", self._split(folder, path), class_folder)

    def _without_label(self, folder: Parts, path: Sequence[Parts]) -> Unused:
        """Return why images outside of class folders are not used; ask about a folder that may be one."""
        named = [each for each in path if not self.is_split(each) and not self.below[each]]
        if not named:
            return Unused("not in a class folder" + (f", but directly in {folder[-1]}/" if folder else ""))
        asked = next((each for each in named if self.counts.get(each)), named[-1])
        self.questions["class"][asked] += self.counts[folder]
        return Unused("in a folder that names no class")

    def _split(self, folder: Parts, path: Sequence[Parts]) -> str | None:
        """Return the split that the folders give; where they give two, or an unclear one, note the question."""
        given = _last(self.given_split, path)
        if given:
            return given
        found = {self.splits[each] for each in path if each in self.splits}
        if len(found) > 1:
            self.questions["splits"][folder] += self.counts[folder]
        elif not found:
            unclear = next((each for each in path if self.names[each].unclear_split), None)
            unclear = unclear or self._beside_splits(path)
            if unclear:
                self.questions["split"][unclear] += self.counts[folder]
        return min(found, default=None)

    def given_or_named_split(self, folder: Parts) -> str | Unused | None:
        """Return the split of a folder, whatever its class."""
        path = _path(folder)
        if _last(self.given_split, path) == _SKIP:
            return Unused("left out by --split-folder", failed=False)
        return self._split(folder, path)

    def _beside_splits(self, path: Sequence[Parts]) -> Parts | None:
        """Return the folder above the class folder that lies beside split folders, and so may be a split, too."""
        for folder in path:
            if folder in self.labels:
                break
            if folder[:-1] in self._holding_splits and not is_neutral(folder[-1]):
                return folder
        return None

    @cached_property
    def _holding_splits(self) -> set[Parts]:
        return {folder[:-1] for folder in self.folders if self.is_split(folder)}

    def message(self) -> str:
        """Return the questions in one line, with the options that answer them."""
        clauses = [
            text[len(self._grouped(self.questions[kind])) > 1].format(self._folders_text(self.questions[kind]))
            for kind, text in _QUESTIONS.items()
            if kind in self.questions
        ]
        classes, splits = (
            [name for kind in kinds for name in self._grouped(self.questions.get(kind, Counter()))]
            for kinds in (("class", "classes"), ("split", "splits"))
        )
        options = [_CLASS_HINT.format(shlex.quote(name)) for name in classes[:2]]
        options += [_SPLIT_HINT.format(shlex.quote(name)) for name in splits[:2]]
        more = " ..." if len(classes) > 2 or len(splits) > 2 else ""
        file = ", or give --labels FILE.csv" if classes and self.rules.labels_file is None else ""
        return f"{'; '.join(clauses)}: say it with {' '.join(options)}{more}{file}"

    def _folders_text(self, asked: Counter[Parts]) -> str:
        noun = "row" if self.rules.labels_file else "image"
        named = [f"{name} ({count:,} {noun}{'s' * (count != 1)})" for name, count in self._grouped(asked).items()]
        return _listed(named, _NAMED)

    def _grouped(self, asked: Counter[Parts]) -> dict[str, int]:
        """Return the folders with their numbers of images, those of one name together where the name is enough."""
        everywhere = Counter(folder[-1] for folder in self.folders)
        here = Counter(folder[-1] for folder in asked)
        found: Counter[str] = Counter()
        for folder, count in asked.items():
            together = 1 < here[folder[-1]] == everywhere[folder[-1]]
            found[folder[-1] if together else "/".join(folder)] += count
        return dict(found.most_common())


def _path(folder: Parts) -> list[Parts]:
    """Return the folders from the outermost one down to this one."""
    return [folder[:depth] for depth in range(1, len(folder) + 1)]


def _last(given: Mapping[Parts, str], path: Sequence[Parts]) -> str | None:
    return next((given[folder] for folder in reversed(path) if folder in given), None)


def _matches(folder: Parts, pattern: str) -> bool:
    text = "/".join(folder) if "/" in pattern else folder[-1]
    return fnmatchcase(text.lower(), pattern.lower())


def _listed(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _with_sources(found: Mapping[Parts, Place | Unused], tree: _Tree) -> dict[Parts, Place | Unused]:
    """Return the places with their sources: the folders above the class folder, else the one below it."""
    places = {folder: place for folder, place in found.items() if isinstance(place, Place)}
    above = {folder: tree.sources_above(place.folder) for folder, place in places.items()}
    shared = len(list(takewhile(lambda names: len(set(names)) == 1, zip(*above.values(), strict=False))))
    below = {folder: _source_below(folder, place, tree) for folder, place in places.items()}
    many = [label for label in (FAKE, REAL) if _count_sources(places, below, label) > MAX_SOURCES]
    sources = {
        folder: "/".join(above[folder][shared:]) or ("" if place.label in many else below[folder])
        for folder, place in places.items()
    }
    return {
        folder: replace(place, source=sources[folder]) if isinstance(place, Place) else place
        for folder, place in found.items()
    }


def _source_below(folder: Parts, place: Place, tree: _Tree) -> str:
    inside = [each for each in _path(folder)[len(place.folder) :] if not tree.is_split(each)]
    return next((each[-1] for each in inside if not is_neutral(each[-1])), "")


def _count_sources(places: Mapping[Parts, Place], sources: Mapping[Parts, str], label: int) -> int:
    return len({sources[folder] for folder, place in places.items() if place.label == label})
