"""Say what a labelled data set holds, whether it gives the answer away, and what to do about it.

Examples:
  python -m fakereal audit data/clean --report audit               audit/report.html and audit/audit.json
  python -m fakereal audit data/clean --report audit --label-errors
  python -m fakereal audit data/clean --neutralize data/neutral    a copy with one size and encoding for all
  python -m fakereal audit data/clean --strict                     exit code 1 when something was found
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fakereal.cli import EXIT_OK, EXIT_PARTIAL
from fakereal.runtime import log


def add_arguments(options: argparse.ArgumentParser) -> None:
    """Adds the options."""
    options.add_argument("data", type=Path, metavar="DATA", help="the folder with the labelled pictures")
    options.add_argument("--report", type=Path, metavar="DIR", help="write report.html and audit.json there")
    options.add_argument("--strict", action="store_true", help="exit code 1 when something was found")
    options.add_argument(
        "--label-errors", action="store_true", help="look for wrong labels too: minutes, needs --report"
    )
    options.add_argument("--neutralize", type=Path, metavar="OUT", help="write a neutral copy of the pictures there")


def run(arguments: argparse.Namespace) -> int:
    """Audits, prints what was found, writes the report and what else was asked for."""
    from fakereal.audit import audit, report
    from fakereal.dataset.scan import scan
    from fakereal.errors import ConfigError
    from fakereal.preprocessing import Preprocessing

    if arguments.label_errors and not arguments.report:
        raise ConfigError("--label-errors: expected --report DIR too, found none: the suspects are written there")
    dataset = scan(arguments.data, Preprocessing())
    audited = audit.audit(dataset)
    judged, commands = (
        _label_errors(dataset, audited.clusters, arguments.report) if arguments.label_errors else (None, [])
    )
    found = audit.findings(audited, audit.of_label_errors(judged, commands) if judged else ())
    print("\n".join(report.lines(audited, found)))
    if arguments.report:
        report.write_page(arguments.report, audited, found, judged)
        log(f"\nreport: {arguments.report / 'report.html'}")
    incomplete = _neutralize(dataset, arguments.neutralize) if arguments.neutralize else False
    grave = arguments.strict and any(finding.grave for finding in found)
    return EXIT_PARTIAL if grave or incomplete or audited.counts["skipped"] else EXIT_OK


def _label_errors(dataset, clusters, folder: Path) -> tuple[dict, list[str]]:
    """Returns the suspects as JSON, and the commands that would apply them."""
    from fakereal.runtime import start_keras

    start_keras()
    from fakereal.audit import label_errors

    found = label_errors.find_label_errors(dataset, clusters)
    written = label_errors.write_predictions(found, dataset, folder / "label_errors")
    for line in label_errors.summary(found):
        log(line)
    return label_errors.as_json(found, dataset.root), label_errors.separation_commands(
        written, dataset, folder / "label_errors"
    )


def _neutralize(dataset, folder: Path) -> bool:
    """Writes the neutral copy; returns whether pictures are missing in it."""
    from fakereal.dataset import neutralize

    copied = neutralize.write_copy(dataset, folder, neutralize.settings_for(dataset))
    print("\n" + "\n".join(neutralize.summary(dataset, copied)))
    return copied.incomplete
