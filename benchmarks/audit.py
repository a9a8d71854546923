"""Do the files of real image sets give the answer away, and still so once they are neutralized?

    python -m benchmarks.audit SETS [--only NAME ...] [--limit 2000] [--shuffles 20]

SETS holds one labelled folder a set. A row a set: the AUC of the shortcut audit with its 95 % interval, what carries
it, the AUC of the pixel statistics, and both once more on a neutral copy (in a temporary folder). With --shuffles the
labels are drawn anew so often: how many sets without any truth in them are flagged, which should be next to none.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from fakereal import cli
from fakereal.audit import audit, shortcuts
from fakereal.audit.shortcuts import ProbeResult
from fakereal.dataset import neutralize
from fakereal.dataset.scan import Dataset, scan
from fakereal.preprocessing import Preprocessing


def main() -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path, metavar="SETS")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the sets")
    parser.add_argument("--limit", type=int, default=2000, metavar="N", help="pictures of a class, drawn by content")
    parser.add_argument("--shuffles", type=int, default=0, metavar="N", help="audits with shuffled labels, each set")
    options = parser.parse_args()
    print("| set | pictures | files | carried by | pixels | neutral: files | neutral: pixels | audit, s |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.only or sorted(path.name for path in options.sets.iterdir() if path.is_dir()):
        # The slash follows a link to the set, so that its own folders count and the link's name doesn't.
        dataset = limited(scan(options.sets / name / ".", Preprocessing()), options.limit)
        print(row(name, dataset), flush=True)
        if options.shuffles:
            flagged = sum(is_flagged(shuffled(dataset, seed)) for seed in range(options.shuffles))
            print(f"{name}: {flagged} of {options.shuffles} audits with shuffled labels flagged", file=sys.stderr)
    return 0


def limited(dataset: Dataset, most: int) -> Dataset:
    """Returns the data set with at most so many pictures of each class."""
    records = sorted(dataset.records, key=lambda record: record.content)
    kept = [r for label in (0, 1) for r in [r for r in records if r.label == label][:most]]
    return replace(dataset, records=tuple(sorted(kept, key=lambda record: record.path)))


def row(name: str, dataset: Dataset) -> str:
    """Returns a row of the table."""
    started = time.perf_counter()
    before = audit.audit_dataset(dataset)
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "neutral")
        neutralize.write_copy(dataset, copy, neutralize.settings_for(dataset))
        after = audit.audit_dataset(scan(copy, Preprocessing()))
    carried = ", ".join(shortcuts.strongest_features(before.shortcut)) if before.shortcut.separates else "-"
    carried = "; ".join(before.shortcut.partial[:1]) if carried == "-" and before.shortcut.partial else carried
    figures = [before.shortcut, before.pixels, after.shortcut, after.pixels]
    files, pixels, files_after, pixels_after = map(auc, figures)
    count = f"{len(dataset.records):,}"
    return f"| {name} | {count} | {files} | {carried} | {pixels} | {files_after} | {pixels_after} | {seconds:.1f} |"


def auc(judged: ProbeResult) -> str:
    """Returns an AUC with its interval."""
    if judged.auc is None:
        return "too few"
    return f"{judged.auc:.2f} ({judged.interval[0]:.2f} to {judged.interval[1]:.2f})"


def shuffled(dataset: Dataset, seed: int) -> ProbeResult:
    """Returns the audit of the files after the labels were dealt out anew."""
    labels = np.random.default_rng(seed).permutation([record.label for record in dataset.records])
    pairs = zip(dataset.records, labels.tolist(), strict=True)
    return audit.probe_shortcuts([replace(record, label=label) for record, label in pairs], ())


def is_flagged(judged: ProbeResult) -> bool:
    """Says whether the audit would report a shortcut."""
    return judged.separates or bool(judged.partial)


if __name__ == "__main__":
    sys.exit(cli.run_cli(lambda argv: main()))
