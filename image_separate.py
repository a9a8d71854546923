#!/usr/bin/env python3
"""Clean a folder of images: sort them into real_images/ and fake_images/ by the predictions of earlier experiments.

Examples:
  python image_separate.py data/raw --dry-run                 show what would happen
  python image_separate.py data/raw --output data/clean       move the files, write a journal
  python image_separate.py --undo data/clean/separation_001.journal.jsonl
  python image_separate.py data/raw --predictions run1 run2 run3 --weight run1=2 --decisions decisions.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from fakereal import prediction_files
from fakereal.cli import EXIT_INTERRUPTED, Parser, exit_code, parse_share, run_cli
from fakereal.errors import DataError


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments; exit with 2 where they are invalid."""
    parser = Parser(description=__doc__)
    add, source_help = parser.add_argument, "folder of sub-folders X/ with X.json, X_preds.json or X_predictions.json"
    parser.add_either("data", dest="source", metavar="SOURCE", type=Path, help=source_help)
    add("--output", type=Path, default=Path("data/clean"), help="folder for real_images/, fake_images/ and the journal")
    add("--mode", choices=("move", "copy", "link"), default="move", help="link: make hard links")
    add("--predictions", type=Path, nargs="+", default=(), metavar="PATH", help="prediction files or folders of them")
    add("--pair", action="append", default=[], metavar="FOLDER=JSON", help="use this file for a folder; several vote")
    add("--skip", action="append", default=[], metavar="FOLDER", help="leave a sub-folder alone; repeatable")
    add("--min-agreement", type=parse_share, default=0.5, metavar="SHARE", help="share of the votes that a label needs")
    add("--weight", action="append", default=[], metavar="NAME=N", help="votes per image of JSON, or folder, NAME")
    prediction_files.add_options(parser)
    add("--decisions", type=Path, metavar="JSON", help="labels that people gave; they outrank all votes")
    add("--no-check", action="store_true", help="don't decode the images: separate damaged ones, too")
    add("--dry-run", action="store_true", help="print the plan, write nothing")
    add("--undo", type=Path, metavar="JOURNAL", help="put every file of a journal back to where it was")
    parser.add_common_options()
    args = parser.parse_args(argv)
    if (args.source is None) == (args.undo is None) or (args.undo and args.dry_run):
        parser.error("expected the folder SOURCE, or --undo JOURNAL without SOURCE and --dry-run")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Separate, preview or undo; return the exit code."""
    args = parse(argv)
    from fakereal.separation import report, separate

    if args.undo:
        journal, returned = separate.undo(args.undo)
        undone = report.undo_lines(journal, returned), returned.completed, returned.skipped
        return _finish(*undone, args.strict, returned.interrupted)
    lists = (tuple(args.predictions), tuple(args.pair), tuple(args.skip))
    votes = (args.min_agreement, not args.no_check, tuple(args.weight), args.decisions, args.force)
    options = separate.Options(args.source, args.output, args.mode, *lists, *votes, prediction_files.rules_of(args))
    if args.dry_run:
        plan = separate.preview(options)
        done, left_out = plan.entries or plan.already, plan.skipped or plan.problems
        return _finish(report.plan_lines(plan, args.source), done, left_out, args.strict)
    result = separate.separate(options)
    lines = report.result_lines(result, options, report.write_report(result, options))
    left_out = result.skipped or result.plan.problems
    return _finish(lines, report.in_place(result), left_out, args.strict, result.last.interrupted)


def _finish(lines: Iterable[str], done: object, left_out: object, strict: bool, interrupted: bool = False) -> int:
    """Print the lines; return the exit code."""
    print(*lines, sep="\n")
    if interrupted:
        return EXIT_INTERRUPTED
    if left_out and not done:
        raise DataError("not a single image could be used: the lines above say why")
    return exit_code(left_out, strict)


if __name__ == "__main__":
    sys.exit(run_cli(main))
