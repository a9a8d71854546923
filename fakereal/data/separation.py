"""Raw folders and their prediction JSONs become `real_images/` and `fake_images/`, and back again.

`preview` shows the very plan that `separate` carries out. Whatever is not in the plan is in its `stays` or `problems`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fakereal.cli import progress_bar, say
from fakereal.data import journal as journals
from fakereal.data.journal import NOTHING, Journal, Outcome
from fakereal.data.separation_guards import alone_in
from fakereal.data.separation_plan import Options, Plan, make_plan
from fakereal.data.separation_stays import Stay, shown
from fakereal.errors import ConfigError, DataError
from fakereal.interrupts import held, pressed

_FILE_NOTE = "finishing the current file ..."


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    plan: Plan
    journals: tuple[Journal, ...] = ()  # gone on with, or written, in this run
    outcome: Outcome = NOTHING  # of the last of them
    carried: int = 0  # files that are in their places by this run's journals

    @property
    def stays(self) -> list[Stay]:
        """Every file that is still where it was, by path."""
        return sorted((*self.plan.stays, *self.outcome.stayed), key=lambda stay: stay.path)


def preview(options: Options) -> Plan:
    """Returns the plan that `separate` would carry out now; writes nothing."""
    options = _settled(options)
    found = journals.find(options.output)
    _unfinished(found, options)
    return make_plan(options, found)


def separate(options: Options) -> Result:
    """Separates the pictures; goes on first with what an earlier, killed run of the same command began.

    Raises:
        ConfigError: options that can't be used together or name what isn't there.
        DataError: no folder with predictions, an output that can't be written, another run at work.
    """
    options = _settled(options)
    with _folder(options.output), alone_in(options.source, options.output):
        journals.clear_torn(options.output)
        found = journals.find(options.output)
        resumed = _unfinished(found, options)
        carried = 0
        with held(_FILE_NOTE):  # over all journals: pressed during the last file of one, it ends the run too
            for journal in resumed:
                outcome = _work(journals.apply, journal, "going on")
                if outcome.interrupted or pressed():
                    outcome = dataclasses.replace(outcome, interrupted=True)
                    return Result(Plan(), (journal,), outcome, outcome.handled)
                carried += outcome.handled
        plan = make_plan(options, found)
        if not plan.entries:
            return Result(plan, tuple(resumed), carried=carried)
        journal = journals.create(options.output, options.mode, options.source, plan.entries)
        outcome = _work(journals.apply, journal, "separating")
        return Result(plan, (*resumed, journal), outcome, carried + outcome.handled)


def undo(path: Path) -> tuple[Journal, Outcome]:
    """Puts back every file that a journal names.

    Raises:
        DataError: no such journal, or another run is at work.
    """
    journal = journals.read(path)
    with alone_in(journal.source, journal.path.parent):
        journals.clear_torn(journal.path.parent)
        journal = journals.read(path)  # again: a run that has just ended may have added to it
        return journal, _work(journals.undo, journal, "putting back")


def _work(step: Callable[..., Outcome], journal: Journal, description: str) -> Outcome:
    with held(_FILE_NOTE), progress_bar(description, len(journal.entries)) as advance:
        return step(journal, advance, pressed)


def _settled(options: Options) -> Options:
    """Returns the options with absolute paths, links resolved."""
    source, output = Path(os.path.realpath(options.source)), Path(os.path.realpath(options.output))
    if not source.is_dir():
        raise DataError(f"{shown(options.source)}: expected a folder of folders of pictures, found no such folder")
    if options.decisions and not options.decisions.is_file():
        raise ConfigError(f"--decisions {shown(options.decisions)}: expected a prediction JSON, found no such file")
    if output == source:
        raise ConfigError(f"--output {shown(options.output)}: expected another folder than the source, found the same")
    predictions = tuple(Path(os.path.realpath(path)) for path in options.predictions)
    return dataclasses.replace(options, source=source, output=output, predictions=predictions)


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Makes the output folder, and takes it away again where nothing came into it."""
    was_there = path.exists()
    journals.make_folder(path)
    try:
        yield
    finally:
        if not was_there and not any(path.iterdir()):
            path.rmdir()


def _unfinished(found: Sequence[Journal], options: Options) -> list[Journal]:
    """Returns the journals to go on with: those that the same command left half done."""
    for journal in found:
        way_back = f"python image_separate.py --undo {shown(journal.path)}"
        if journal.status == "undoing":
            raise DataError(
                f"{shown(options.output)}: expected no undo half done, found one: finish it with {way_back}"
            )
        if journal.status == "open" and (journal.mode, journal.source) != (options.mode, options.source):
            raise DataError(
                f"{shown(options.output)}: expected no other separation half done, found one (--mode {journal.mode}"
                f" from {shown(journal.source)}): run that one again, or take it back with {way_back}"
            )
        if journal.status == "open":
            say(f"an earlier run was interrupted and is gone on with first: {shown(journal.path)}")
    return [journal for journal in found if journal.status == "open"]
