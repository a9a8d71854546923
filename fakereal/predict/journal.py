"""The journal of a prediction run: each image's raw prediction, saved batch by batch, so that a stopped run can resume.

An SQLite database beside the output, removed once the results are written. The results are written from it in their own
order, so neither a kill nor a million images make a difference to them. A kill loses nothing that `add` has saved; a
power cut loses at most the last seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple

from fakereal.decoding import ImageInfo
from fakereal.errors import DataError
from fakereal.files import lock
from fakereal.predict.inputs import Item, Items, Stamp
from fakereal.predict.pipeline import RawPrediction
from fakereal.provenance import NO_ORIGIN, Origin
from fakereal.runtime import log

FORMAT = "fakereal-prediction/5"
_FORMAT_1 = b'{"format": "fakereal-prediction/'  # JSON lines, of versions before SQLite
_SQLITE = b"SQLite format 3\0"
_APPLICATION_ID = b"fkrl"  # marks a database as ours; the last field of SQLite's header that we read
_ID_OFFSET = 68
_HEADER_BYTES = _ID_OFFSET + len(_APPLICATION_ID)
_SYNC_S = 5.0  # what a power cut may cost
_QUERY_ITEMS = 500  # that one query asks for
_CACHE_KB = 1024  # of the database's pages

_TABLES = """
CREATE TABLE IF NOT EXISTS run (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS predictions (image BLOB PRIMARY KEY, prediction BLOB NOT NULL, checksum INTEGER NOT NULL,
    size INTEGER, modified_ns INTEGER) WITHOUT ROWID;
"""
# `prediction` is JSON, as workers of a cluster send it. A resumed run checks a million without parsing them: by the
# file's stamp, NULL where it could not be read, and by a checksum, since SQLite doesn't notice all damage.
# `image` is a BLOB because SQLite's text has no file names that are not UTF-8.
_INSERT = "INSERT OR REPLACE INTO predictions VALUES (?, ?, ?, ?, ?)"

Header = dict[str, Any]
"""What outputs depend on besides the images. A refusal names the keys that differ, so they are plain English."""


def path_for(output: Path) -> Path:
    """Return the path of the journal of a run that writes `output`."""
    return output.with_name(output.name + ".journal")


def refuse_unfinished(path: Path) -> None:
    """Make sure that no results of an unfinished run get lost.

    Raises:
        DataError: the journal holds predictions, another run is writing it, or it is not a journal.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        return
    with file:
        if os.name == "posix":
            lock(path, file.fileno())
        _check_is_journal(path, file.read(_HEADER_BYTES))
        try:
            with contextlib.closing(_connect(path)) as database:
                (count,) = database.execute("SELECT count(*) FROM predictions").fetchone()
        except sqlite3.Error as error:
            raise DataError(
                f"{path}: the journal of an unfinished run is damaged ({error}): delete this file to start over"
            ) from error
    if count > 0:
        raise DataError(
            f"{path}: an unfinished run with {count:,} finished images exists: pass --resume to continue, or delete"
            " this file to start over"
        )


def start(path: Path, header: Header, items: Items, resume: bool) -> Journal:
    """Return an open journal, and log what it holds already.

    Raises:
        DataError: see `Journal`.
    """
    if resume and not path.exists():
        log(f"nothing to resume: {path} does not exist, so this run starts from the beginning")
    journal = Journal(path, header, items, resume)
    if resume and len(journal):
        log(f"resumed: {len(journal):,} of {len(items):,} images are finished")
    return journal


class Journal:
    """The raw predictions that are finished, by the number of their item; one process at a time writes it."""

    def __init__(self, path: Path, header: Header, items: Items, resume: bool) -> None:
        """Start a journal, or resume the one that exists.

        Raises:
            DataError: another run is writing it, it is of a run with another header or not a journal at all, or the
                file can't be written.
        """
        self.path, self._items = path, items
        self._done = bytearray(len(items))  # 1 for each item whose prediction is valid
        self._database: sqlite3.Connection | None = None
        self._synced_s = time.monotonic()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open_locked(path)
        except OSError as error:
            raise DataError(f"{path}: the journal can't be written: {error.strerror or error}") from error
        try:
            _check_is_journal(path, self._file.read(_HEADER_BYTES))
            if not resume:
                self._erase()
            self._open({"format": FORMAT, **header})
        except BaseException:
            self._close()
            raise

    def __contains__(self, number: int) -> bool:
        return bool(self._done[number])

    def __len__(self) -> int:
        return self._done.count(1)

    def add(self, predictions: Iterable[tuple[int, RawPrediction]]) -> None:
        """Save raw predictions with the numbers of their items; all of them or, where this fails, none."""
        predictions = list(predictions)
        rows = [_row(prediction) for _, prediction in predictions]
        try:
            with self._database:
                self._database.executemany(_INSERT, rows)
            self._sync_sometimes()
        except sqlite3.Error as error:
            raise DataError(
                f"{self.path}: the journal can't be written ({error}): free some disk space, then continue with"
                " --resume"
            ) from error
        for number, _ in predictions:
            self._done[number] = 1

    def predictions(self) -> Iterator[RawPrediction]:
        """Yield the raw prediction of every item, in the order of the items; all must be there."""
        for item, saved in self._saved():
            yield from_json(saved.prediction, item)

    def close(self) -> None:
        """Close the file, and remove it where it holds no prediction that would be worth resuming."""
        if any(self._done):
            self._close()
        else:
            self.remove()

    def remove(self) -> None:
        """Remove the file: the results are written."""
        if self._file.closed:
            return  # what has its name now may be another run's
        self._close_database()
        if os.name != "posix":  # Windows removes no open file
            self._file.close()
        with contextlib.suppress(OSError):
            for path in (self.path, *_side_files(self.path)):
                path.unlink(missing_ok=True)  # while the lock is held: no other run can have begun to write it
        self._file.close()

    def _open(self, header: Header) -> None:
        try:
            try:
                self._load(header)
            except (sqlite3.DatabaseError, ValueError) as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                log(f"{self.path}: the journal is damaged ({error}), so this run starts from the beginning")
                self._erase()
                self._load(header)
        except sqlite3.OperationalError as error:
            raise DataError(f"{self.path}: the journal can't be written ({error})") from error

    def _load(self, header: Header) -> None:
        """Open the database, take over what it holds, and compare the headers."""
        self._database = _connect(self.path)
        self._database.executescript(_TABLES)
        if self._database.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("failed SQLite's integrity check")
        found = {name: json.loads(value) for name, value in self._database.execute("SELECT name, value FROM run")}
        if not found:
            with self._database:
                rows = [(name, json.dumps(value)) for name, value in header.items()]
                self._database.executemany("INSERT INTO run VALUES (?, ?)", rows)
            return
        self._compare(found, header)
        stamps: dict[PurePath, Stamp | None] = {}  # of the archives; asked once for each, not for each image
        for number, (item, saved) in enumerate(self._saved()):
            self._done[number] = saved is not None and saved.is_sound and saved.stamp == _stamp(item, stamps)

    def _saved(self) -> Iterator[tuple[Item, _Saved | None]]:
        """Yield every item and what was saved of it, None where nothing was, in the order of the items."""
        for start in range(0, len(self._items), _QUERY_ITEMS):
            items = self._items[start : start + _QUERY_ITEMS]
            keys = [_key(item.name) for item in items]
            query = f"SELECT * FROM predictions WHERE image IN ({','.join('?' * len(keys))})"
            saved = {row[0]: _Saved(*row) for row in self._database.execute(query, keys)}
            yield from ((item, saved.get(key)) for item, key in zip(items, keys, strict=True))

    def _compare(self, found: Header, expected: Header) -> None:
        for name in expected:
            if found.get(name) != expected[name]:
                raise DataError(
                    f"{self.path}: the unfinished run has another {name}: {_short(found.get(name))}, this run has"
                    f" {_short(expected[name])}: resume with the same options, or delete this file to start over"
                )

    def _sync_sometimes(self) -> None:
        """Force what was saved to the disk: SQLite does so at checkpoints, by itself only every 4 MB."""
        if time.monotonic() - self._synced_s > _SYNC_S:
            self._database.execute("PRAGMA wal_checkpoint")
            self._synced_s = time.monotonic()

    def _erase(self) -> None:
        self._close_database()
        self._file.truncate(0)
        for path in _side_files(self.path):
            path.unlink(missing_ok=True)

    def _close(self) -> None:
        self._close_database()
        self._file.close()

    def _close_database(self) -> None:
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):  # what a full disk refused has been reported
                self._database.close()
            self._database = None


class _Saved(NamedTuple):
    """A row of the table `predictions`."""

    image: bytes
    prediction: bytes
    checksum: int
    size: int | None
    modified_ns: int | None

    @property
    def stamp(self) -> Stamp:
        return self.size, self.modified_ns

    @property
    def is_sound(self) -> bool:
        """Whether it is what was saved, of an image that could be read: the others are tried again."""
        if self.size is None or not isinstance(self.prediction, bytes):
            return False
        return self.checksum == _checksum(self.image, self.prediction)


def _row(prediction: RawPrediction) -> _Saved:
    image, text = _key(prediction.item.name), to_json(prediction).encode()
    stamp = (None, None) if prediction.error is not None or prediction.stamp is None else prediction.stamp
    return _Saved(image, text, _checksum(image, text), *stamp)


def _checksum(image: bytes, prediction: bytes) -> int:
    return zlib.crc32(prediction, zlib.crc32(image))


def to_json(prediction: RawPrediction) -> str:
    """Return a raw prediction as one line of JSON; `from_json` reads it back, digit for digit."""
    info = prediction.info
    entry = {
        "image": prediction.item.name,
        "stamp": prediction.stamp,
        "p_real": prediction.p_real,
        "variants_p_real": prediction.variants_p_real,
        "score": prediction.score,
        "info": info and (info.width_px, info.height_px, info.format),
        "origin": prediction.origin.as_json() if prediction.origin.evidence else None,
        "error": prediction.error,
    }
    return json.dumps(entry, allow_nan=False)


def from_json(text: str | bytes, item: Item) -> RawPrediction:
    """Return the raw prediction that `to_json` wrote of `item`.

    Raises:
        ValueError: it is of another image.
        ValueError, TypeError, KeyError: the text is damaged.
    """
    entry = json.loads(text)
    if entry["image"] != item.name:
        raise ValueError(f"expected the prediction of {item.name!r}, got that of {entry['image']!r}")
    info, stamp, origin = entry["info"], entry["stamp"], entry["origin"]
    return RawPrediction(
        item,
        info and ImageInfo(*info),
        entry["p_real"],
        entry["error"],
        tuple(entry["variants_p_real"]),
        stamp and tuple(stamp),
        Origin.from_json(origin) if origin else NO_ORIGIN,
        entry["score"],
    )


def image_of(text: str) -> str:
    """Return the name of the image that `to_json` wrote about."""
    return json.loads(text)["image"]


def _stamp(item: Item, stamps: dict[PurePath, Stamp | None]) -> Stamp | None:
    """Return the stamp of an item's file; those of archives are in `stamps`, or are added."""
    if isinstance(item.root, Path):
        return item.stamp()
    if item.root.path not in stamps:
        stamps[item.root.path] = item.stamp()
    return stamps[item.root.path]


def _connect(path: Path) -> sqlite3.Connection:
    """Return a connection to a journal, which is created where the file is empty. The caller holds the lock."""
    is_new = path.stat().st_size == 0
    database = sqlite3.connect(path, timeout=0.0)
    database.text_factory = lambda text: text.decode(errors="replace")  # damaged text must reach our parser
    try:
        if is_new:  # in the first transaction: a kill leaves an empty file or one that is known as a journal
            database.execute(f"PRAGMA application_id = {int.from_bytes(_APPLICATION_ID)}")
        database.execute("PRAGMA locking_mode = EXCLUSIVE")  # without shared memory, which network folders don't have
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        database.execute("PRAGMA synchronous = NORMAL")  # safe in a crash; see `Journal._sync_sometimes`
    except BaseException:
        database.close()
        raise
    return database


def _open_locked(path: Path) -> BinaryIO:
    """Open the file, created where it doesn't exist, with our lock on it; its content stays as it is."""
    while True:
        file = open(  # noqa: SIM115 - it stays open
            path, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o666)
        )
        try:
            if os.name != "posix":  # locks are mandatory there, so SQLite's own must do
                return file
            lock(path, file.fileno())
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()  # the run that held the lock has removed it


def _check_is_journal(path: Path, start: bytes) -> None:
    """Make sure that a file is empty or a journal, judging by its first bytes, so that no other file is changed."""
    if start.startswith(_FORMAT_1[: len(start)]) and start:
        raise DataError(
            f"{path}: the journal of an unfinished run of an older version of fakereal: finish the run with that"
            " version, or delete this file to start over"
        )
    is_ours = start[_ID_OFFSET:] == _APPLICATION_ID[: max(0, len(start) - _ID_OFFSET)]
    if start[: len(_SQLITE)] != _SQLITE[: len(start)] or not is_ours:
        raise DataError(f"{path}: not a journal of a prediction: move this file, or choose another --output")


def _side_files(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in ("-wal", "-journal", "-shm")]


def _key(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:20] + "..." + text[-20:]
