"""The shortcut audit: do the files give the answer away, without a look at the pictures?

A detector that learns to tell JPEG from PNG scores 100 % and is worth nothing (Grommelt et al., Fake or JPEG?,
arXiv 2403.17608). So a classifier that sees nothing but headers must not do better than chance.

File names are judged apart: no network sees them. The file's bytes by the picture's pixels belong to the picture
statistics: among files of one encoding they measure how much there is to see, and nothing else.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from fakereal.data.facts import Facts
from fakereal.data.telling import Feature, Judged, judge

GIVES_AWAY = 0.9
"""From this AUC on a data set gives the answer away; from 0.6 on it helps to guess."""

_TOO_WIDE = 0.6  # an interval up to there doesn't exclude a shortcut


def audit_files(facts: Sequence[Facts], labels: np.ndarray, groups: Sequence[Hashable], seed: int = 0) -> Judged:
    """Returns how well headers tell real from fake; arguments as in `telling.judge`."""
    return judge(_file_features(facts), labels, groups, seed)


def audit_names(facts: Sequence[Facts], labels: np.ndarray, groups: Sequence[Hashable], seed: int = 0) -> Judged:
    """Returns how well the make-up of file names tells: how many digits, letters and separators, never which."""
    return judge([_name_feature(facts)], labels, groups, seed)


def _file_features(facts: Sequence[Facts]) -> list[Feature]:
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


def _size_feature(facts: Sequence[Facts]) -> Feature:
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


def _jpeg_table_feature(facts: Sequence[Facts]) -> Feature:
    words = [f"quality {f.jpeg_quality:.0f} (table {f.jpeg_table})" if f.jpeg_table else "no JPEG" for f in facts]
    quality = np.array([np.nan if f.jpeg_quality is None else f.jpeg_quality for f in facts])
    names = np.array(words, dtype=object)
    return Feature("JPEG quantization table", {"table": names, "quality": quality}, names)


def _name_feature(facts: Sequence[Facts]) -> Feature:
    patterns = np.array([f.name_pattern for f in facts], dtype=object)
    lengths = np.array([f.name_length for f in facts], float)
    return Feature("file name", {"make-up": patterns, "length": lengths}, patterns)


def verdict(judged: Judged) -> str:
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


def is_undecided(judged: Judged) -> bool:
    """Says whether there are too few pictures to exclude a shortcut that was not found."""
    return judged.auc is None or (not judged.tells and judged.interval[1] >= _TOO_WIDE)


def _not_proven(judged: Judged, value: str) -> str:
    if judged.giveaways:
        return (
            f"part of this data set gives itself away ({judged.giveaways[0]}); for the whole, files tell with {value}"
        )
    if is_undecided(judged):
        return f"no shortcut found, but {judged.images} pictures are too few to exclude one: {value}"
    little = "next to nothing" if judged.interval[0] > 0.5 else "nothing"
    return f"the files give {little} away: without the pictures, fake is told from real with {value}"


def carriers(judged: Judged) -> list[str]:
    """Returns the one feature that tells as much as all, or else those that tell something, up to three."""
    strong = [feature for feature in judged.features if feature.auc >= judged.auc - 0.02]
    if strong:
        return [strong[0].name]
    return [feature.name for feature in judged.features if feature.interval[0] > 0.5][:3] or ["its files' details"]


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
