"""Measure how well file features and pixel statistics separate fake from real, before and after neutralizing.

    python -m benchmarks.audit SETS [--only NAME ...] [--limit 2000] [--shuffles 20]

SETS holds one labeled folder per set. One row per set: the AUC of the shortcut audit with its 95 % interval, the
features that carry it, the AUC of the pixel statistics, and both again on a neutral copy (in a temporary folder). With
--shuffles, the labels are shuffled that many times: how often is a set flagged whose labels mean nothing?
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks._shared import Table, new_parser, with_interval
from fakereal import cli
from fakereal.audit import audit, shortcuts
from fakereal.audit.shortcuts import ProbeResult
from fakereal.dataset import neutralize
from fakereal.dataset.scan import Dataset, scan
from fakereal.preprocessing import Preprocessing


def main() -> int:
    """Print the table; return the exit code."""
    parser = new_parser(__doc__)
    parser.add_argument("sets", type=Path, metavar="SETS")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the sets")
    parser.add_argument("--limit", type=int, default=2000, metavar="N", help="images per class, sampled by content")
    parser.add_argument("--shuffles", type=int, default=0, metavar="N", help="audits with shuffled labels, per set")
    options = parser.parse_args()
    table = Table("set", "images", "files", "carried by", "pixels", "neutral: files", "neutral: pixels", "audit, s")
    for name in options.only or sorted(path.name for path in options.sets.iterdir() if path.is_dir()):
        # The slash follows a link to the set, so that its own folders count and the link's name doesn't.
        dataset = limited(scan(options.sets / name / ".", Preprocessing()), options.limit)
        table.row(name, *cells(dataset))
        if options.shuffles:
            flagged = sum(is_flagged(shuffled(dataset, seed)) for seed in range(options.shuffles))
            print(f"{name}: {flagged} of {options.shuffles} audits with shuffled labels flagged", file=sys.stderr)
    return 0


def limited(dataset: Dataset, maximum: int) -> Dataset:
    """Return the data set with at most `maximum` images per class."""
    records = sorted(dataset.records, key=lambda record: record.content)
    kept = [r for label in (0, 1) for r in [r for r in records if r.label == label][:maximum]]
    return replace(dataset, records=tuple(sorted(kept, key=lambda record: record.path)))


def cells(dataset: Dataset) -> list[str]:
    """Return a row of the table without the set's name."""
    started = time.perf_counter()
    before = audit.audit_dataset(dataset)
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "neutral")
        neutralize.write_copy(dataset, copy, neutralize.settings_for(dataset))
        after = audit.audit_dataset(scan(copy, Preprocessing()))
    carried = ", ".join(shortcuts.strongest_features(before.shortcut)) if before.shortcut.separates else "-"
    carried = "; ".join(before.shortcut.partial[:1]) if carried == "-" and before.shortcut.partial else carried
    files, pixels, files_after, pixels_after = map(auc, (before.shortcut, before.pixels, after.shortcut, after.pixels))
    return [f"{len(dataset.records):,}", files, carried, pixels, files_after, pixels_after, f"{seconds:.1f}"]


def auc(result: ProbeResult) -> str:
    """Return an AUC with its interval."""
    return "too few" if result.auc is None else with_interval(result.auc, result.interval, ".2f")


def shuffled(dataset: Dataset, seed: int) -> ProbeResult:
    """Return the audit of the files with shuffled labels."""
    labels = np.random.default_rng(seed).permutation([record.label for record in dataset.records])
    pairs = zip(dataset.records, labels.tolist(), strict=True)
    return audit.probe_shortcuts([replace(record, label=label) for record, label in pairs], ())


def is_flagged(result: ProbeResult) -> bool:
    """Return whether the audit would report a shortcut."""
    return result.separates or bool(result.partial)


if __name__ == "__main__":
    sys.exit(cli.run_cli(lambda argv: main()))
