"""The journal of a prediction: what the network said of each picture, batch by batch, so that a killed run goes on.

JSON, one object a line: first what the run was made with, then one for each picture, in any order. The results are
written from it, in their own order, so that neither a kill nor a million pictures make a difference.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fakereal.decoding import ImageInfo
from fakereal.errors import DataError
from fakereal.files import lock
from fakereal.predict.inputs import Item, Items
from fakereal.predict.pipeline import RawPrediction
from fakereal.provenance import NO_ORIGIN, Origin
from fakereal.runtime import log

FORMAT = "fakereal-prediction/1"
_START = b'{"format": "fakereal-prediction/'  # of every journal
_NOWHERE = -1  # the place of a line that isn't there
_SYNC_S = 5.0  # what a power cut may cost; a kill costs nothing that was added

Header = dict[str, Any]
"""What outputs depend on beside the pictures: what differs is named in the refusal, so keys are words for people."""


def path_for(output: Path) -> Path:
    """Returns where the journal of a run lies that writes `output`."""
    return output.with_name(output.name + ".journal")


def refuse_unfinished(path: Path) -> None:
    """Makes sure that no results of an unfinished run would be lost.

    Raises:
        DataError: the journal holds some, or another run is writing it, or it is no journal.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        return
    with file:
        lock(path, file.fileno())
        _check_start(path, file.readline())
        count = sum(line.endswith(b"\n") for line in file)
    if count > 0:
        raise DataError(
            f"{path}: expected no unfinished run, found one with {count:,} images done: add --resume to go on with it,"
            " or delete this file to start anew"
        )


def as_line(number: int, outcome: RawPrediction) -> str:
    """Returns an outcome as a line of JSON; `outcome_of` reads it back, digit for digit."""
    info = outcome.info
    entry = {
        "number": number,
        "image": outcome.item.name,
        "stamp": outcome.stamp,
        "p_real": outcome.p_real,
        "resaved": outcome.variants_p_real,
        "info": info and (info.width_px, info.height_px, info.format),
        "origin": outcome.origin.as_json() if outcome.origin.evidence else None,
        "error": outcome.error,
    }
    return json.dumps(entry, allow_nan=False) + "\n"


def outcome_of(entry: dict[str, Any], item: Item) -> RawPrediction:
    """Returns the outcome that a line holds; `item` is the one of its number."""
    info, stamp = entry["info"], entry["stamp"]
    return RawPrediction(
        item,
        info and ImageInfo(*info),
        entry["p_real"],
        entry["error"],
        tuple(entry["resaved"]),
        stamp and tuple(stamp),
        Origin.from_json(origin) if (origin := entry.get("origin")) else NO_ORIGIN,
    )


def to_json(prediction: RawPrediction) -> str:
    """Return a prediction as one line of JSON; `from_json` reads it back, digit for digit."""
    return as_line(0, prediction).rstrip("\n")


def from_json(text: str, item: Item) -> RawPrediction:
    """Return the prediction that `to_json` wrote for `item`."""
    return outcome_of(json.loads(text), item)


def image_of(text: str) -> str:
    """Return the name of the image that `to_json` wrote."""
    return json.loads(text)["image"]


class Journal:
    """The outcomes that are there, by number; one process at a time writes it."""

    def __init__(self, path: Path, header: Header, items: Items, resume: bool) -> None:
        """Starts a journal, or goes on with the one that is there.

        Raises:
            DataError: another run is writing it, or it is of a run with another header or no journal at all, or no
                file can be written.
        """
        self.path, self._items = path, items
        self._places = array("q", [_NOWHERE]) * len(items)  # of each outcome's line, in bytes from the start
        header = {"format": FORMAT, **header}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _opened(path)
        except OSError as error:
            raise DataError(f"{path}: expected a place for the journal, found {error.strerror or error}") from error
        self._synced_s = time.monotonic()
        try:
            _check_start(path, self._file.readline())
            self._file.seek(0)
            if not resume:
                self._file.truncate(0)
            if not self._read(header):
                self._append(json.dumps(header) + "\n")
        except BaseException:
            self._close()
            raise

    def __contains__(self, number: int) -> bool:
        return self._places[number] != _NOWHERE

    def __len__(self) -> int:
        return sum(place != _NOWHERE for place in self._places)

    def add(self, outcomes: Iterable[tuple[int, RawPrediction]]) -> None:
        """Appends outcomes with their numbers; once it returns, a kill of this process doesn't lose them."""
        lines, places, end = [], [], self._end
        for number, outcome in outcomes:
            lines.append(as_line(number, outcome))
            places.append((number, end))
            end += len(lines[-1])
        self._append("".join(lines))
        for number, place in places:
            self._places[number] = place

    def predictions(self) -> Iterator[RawPrediction]:
        """Yields the outcome of every item, in the order of the items; all must be there."""
        for number, place in enumerate(self._places):
            if self._file.tell() != place:
                self._file.seek(place)
            yield outcome_of(json.loads(self._file.readline()), self._items[number])

    def close(self) -> None:
        """Closes the file, and removes it where it holds no outcome that would be worth going on with."""
        if any(place != _NOWHERE for place in self._places):
            self._close()
        else:
            self.remove()

    def remove(self) -> None:
        """Removes the file: the results are written."""
        if self._file.closed:
            return  # what has its name now may be another run's
        if os.name != "posix":  # Windows removes no open file
            self._close()
        with contextlib.suppress(OSError):
            self.path.unlink()  # while the lock is had: nobody else can have begun to write it
        self._close()

    def _close(self) -> None:
        with contextlib.suppress(OSError):  # what a full disk didn't take has been told
            self._file.close()

    def _append(self, text: str) -> None:
        try:
            self._file.seek(self._end)
            self._file.write(text.encode("ascii"))
            self._file.flush()
            if time.monotonic() - self._synced_s > _SYNC_S:
                os.fsync(self._file.fileno())
                self._synced_s = time.monotonic()
        except OSError as error:
            raise DataError(
                f"{self.path}: expected room for the journal, found {error.strerror or error}: make some, then go on"
                " with --resume"
            ) from error
        self._end += len(text)

    def _read(self, header: Header) -> bool:
        """Takes over what is there, up to a line that a kill has torn; returns False where there is nothing."""
        self._end = 0
        first = _entry(self._file.readline())
        if first is not None:
            self._compare(first, header)
            self._end = self._file.tell()
            numbers: dict[str, int] = {}
            while (entry := _entry(self._file.readline())) is not None:
                self._take(entry, numbers)
                self._end = self._file.tell()
        self._file.seek(self._end)
        self._file.truncate()
        return first is not None

    def _take(self, entry: dict[str, Any], numbers: dict[str, int]) -> None:
        """Notes where an outcome lies, unless its file changed since, or had an error, which may be mended."""
        number, name, names = entry["number"], entry["image"], self._items.names
        if not (0 <= number < len(names) and names[number] == name):  # files came or went
            if not numbers:
                numbers.update((each, place) for place, each in enumerate(names))
            number = numbers.get(name, _NOWHERE)
        if number == _NOWHERE:
            return
        stamp = self._items[number].stamp()
        sound = entry["error"] is None and stamp is not None and list(stamp) == entry["stamp"]
        self._places[number] = self._end if sound else _NOWHERE

    def _compare(self, found: Header, expected: Header) -> None:
        for name in expected:
            if found.get(name) != expected[name]:
                raise DataError(
                    f"{self.path}: expected a journal with the {name} {_short(expected[name])} of this run, found"
                    f" {_short(found.get(name))}: resume with what the run was started with, or delete this file to"
                    " start anew"
                )


def start(path: Path, header: Header, items: Items, resume: bool) -> Journal:
    """Returns an open journal, and says what is done already.

    Raises:
        DataError: see `Journal`.
    """
    if resume and not path.exists():
        log(f"nothing to resume, no {path}: this run starts at the beginning")
    journal = Journal(path, header, items, resume)
    if resume and len(journal):
        log(f"resumed: {len(journal):,} of {len(items):,} images are done")
    return journal


def _entry(line: bytes) -> dict[str, Any] | None:
    """Returns what a line holds, None for a torn or damaged one."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    whole = isinstance(entry, dict) and (
        "format" in entry or entry.keys() >= {"number", "image", "stamp", "p_real", "resaved", "info", "error"}
    )
    return entry if whole else None


def _opened(path: Path) -> BinaryIO:
    """Returns the file, which is made where there is none, with the lock on it, and not yet emptied."""
    while True:
        file = open(  # noqa: SIM115 - it stays open
            path, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o666)
        )
        try:
            lock(path, file.fileno())
            if os.name != "posix" or os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()  # the run that had the lock has removed it


def _check_start(path: Path, line: bytes) -> None:
    """Makes sure that a file is empty, or a journal, or the torn start of one, so that no other file is emptied."""
    whole = line.endswith(b"\n")
    if (whole and "format" not in (_entry(line) or {})) or line[: len(_START)] != _START[: len(line)]:
        raise DataError(f"{path}: expected a journal, found another file: move it away, or take another --output")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:20] + "..." + text[-20:]
