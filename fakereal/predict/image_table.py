"""The images of a prediction run in the order of the results: in a temporary file, so that a million need no memory.

The file is a private SQLite database in the folder for temporary files (`TMPDIR`), removed with the process.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from fakereal.errors import DataError
from fakereal.predictions_json import number_in

_ROWS_AT_ONCE = 1000
_CACHE_KB = 1024  # of the database's pages, and of the rows that it sorts at once

_TABLES = f"""
PRAGMA cache_size = -{_CACHE_KB};
PRAGMA journal_mode = OFF;
PRAGMA temp_store = FILE;
CREATE TABLE found (source INTEGER, name BLOB, problem BLOB, start INTEGER, size INTEGER, is_image INTEGER);
CREATE TABLE sources (source INTEGER PRIMARY KEY, inner BLOB, prefix BLOB);
CREATE TABLE images (id INTEGER PRIMARY KEY, name BLOB, numbered INTEGER, source INTEGER, problem BLOB, start INTEGER,
    size INTEGER);
"""
# Text is kept as BLOB, since SQLite's text has no file names that are not UTF-8.

_NAME = "CASE WHEN substr(name, 1, length(inner)) = inner THEN substr(name, length(inner) + 1) ELSE name END"
_ARRANGE = f"""
CREATE TABLE named AS
    SELECT name, CASE WHEN instr(name, X'2F') THEN NULL ELSE number_of(name) END AS file_number,
        source, problem, start, size
    FROM (SELECT CAST(prefix || {_NAME} AS BLOB) AS name, source, problem, start, size, min(found.rowid)
          FROM found JOIN sources USING (source) GROUP BY 1 ORDER BY 1);
DROP TABLE found;
CREATE TABLE shared AS
    SELECT file_number FROM named WHERE file_number IS NOT NULL GROUP BY file_number HAVING count(*) > 1;
INSERT INTO images SELECT NULL, name, 1, source, problem, start, size
    FROM named WHERE file_number IS NOT NULL AND file_number NOT IN shared ORDER BY file_number;
INSERT INTO images SELECT NULL, name, 0, source, problem, start, size
    FROM named WHERE file_number IS NULL OR file_number IN shared ORDER BY rowid;
"""
# Of equal names, the first is taken (SQLite's rule for `min` beside plain columns). Files of one number (`7.png` and
# `007.jpg`) have their names as keys, so that none hides another.

_SHARED = "SELECT name FROM named WHERE file_number IN shared ORDER BY file_number, name"
_ROWS = "SELECT name, numbered, source, problem, start, size FROM images WHERE id > ? AND id <= ?"
_EQUAL_NAMES = """
    SELECT name, rowid AS kept, max(is_image) FROM found WHERE rowid > ? GROUP BY name HAVING count(*) > 1
"""

Place = tuple[int, int]
"""Offset and size of an image's content in its archive, bytes."""


class ImageRow(NamedTuple):
    """One image as it was found."""

    name: str  # relative to the common folder of all sources
    numbered: bool  # whether its key in the result is the number in its name
    source: int
    problem: str | None  # why it can't be opened
    place: Place | None


class ImageTable:
    """The images of all sources: `add` them source by source, then `arrange` them once; any thread may read.

    Raises:
        DataError: in every method, where the disk is full.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", check_same_thread=False)
        self._database.executescript(_TABLES)
        self._database.create_function("number_of", 1, _number_of, deterministic=True)
        self._lock = threading.Lock()
        self._waiting: list[tuple[object, ...]] = []  # rows to insert
        self._sources = self._count = 0
        self.duplicates = 0
        self.shared_numbers: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self._count

    def __del__(self) -> None:
        self._database.close()  # removes the file

    def new_source(self) -> int:
        """Return the number of the source whose images are added next, from 0."""
        self._sources += 1
        return self._sources - 1

    def add(
        self, source: int, name: str, problem: str | None = None, place: Place | None = None, is_image: bool = True
    ) -> None:
        """Add an image, or another member of an archive; see `settle_equal_names`."""
        start, size = place or (None, None)
        self._waiting.append((source, _encoded(name), problem and _encoded(problem), start, size, is_image))
        if len(self._waiting) >= _ROWS_AT_ONCE:
            self._insert_waiting()

    def last(self) -> int:
        """Return the number of the row that was added last, for `settle_equal_names`."""
        self._insert_waiting()
        with self._used() as database:
            return database.execute("SELECT coalesce(max(rowid), 0) FROM found").fetchone()[0]

    def settle_equal_names(self, after: int, problem: str) -> list[str]:
        """Keep one of equal names since the row `after`, with `problem`; remove and return those that are no images."""
        self._insert_waiting()
        with self._used() as database:
            database.execute("DROP TABLE IF EXISTS equal")
            database.execute(f"CREATE TABLE equal AS {_EQUAL_NAMES}", (after,))
            database.execute(
                "UPDATE found SET problem = ? WHERE rowid IN (SELECT kept FROM equal)", [_encoded(problem)]
            )
            database.execute(
                "DELETE FROM found WHERE rowid > ? AND name IN (SELECT name FROM equal)"
                " AND rowid NOT IN (SELECT kept FROM equal)",
                (after,),
            )
            others = database.execute("SELECT name FROM found WHERE rowid > ? AND NOT is_image", (after,)).fetchall()
            database.execute("DELETE FROM found WHERE rowid > ? AND NOT is_image", (after,))
        return [_decoded(name) for (name,) in others]

    def arrange(self, sources: Iterable[tuple[int, str, str]]) -> None:
        """Bring the images into the order of the results: numbers first, then names.

        Args:
            sources: the number of each source, the start that is removed from names which have it, and what then
                comes before.
        """
        self._insert_waiting()
        rows = [(number, _encoded(inner), _encoded(prefix)) for number, inner, prefix in sources]
        with self._used() as database:
            database.executemany("INSERT INTO sources VALUES (?, ?, ?)", rows)
            (found,) = database.execute("SELECT count(*) FROM found").fetchone()
            database.executescript(_ARRANGE)
            self.shared_numbers = tuple(_decoded(name) for (name,) in database.execute(_SHARED))
            database.execute("DROP TABLE named")
            (self._count,) = database.execute("SELECT count(*) FROM images").fetchone()
            self.duplicates = found - self._count

    def rows(self, start: int, stop: int) -> list[ImageRow]:
        """Return the images with these numbers, of which the first is 0."""
        with self._used() as database:
            found = database.execute(_ROWS, (start, stop)).fetchall()
        return [
            ImageRow(
                _decoded(name),
                bool(numbered),
                source,
                None if problem is None else _decoded(problem),
                None if first is None else (first, size),
            )
            for name, numbered, source, problem, first, size in found
        ]

    def by_place(self, sources: Sequence[int]) -> Iterator[int]:
        """Yield the numbers of all images: those of `sources` last, each source by the places in it."""
        in_order = f"source IN ({','.join(map(str, sources))}) AND problem IS NULL"
        keys = f"CASE WHEN {in_order} THEN source ELSE -1 END, CASE WHEN {in_order} THEN start ELSE 0 END, id"
        query = f"SELECT id - 1 FROM images ORDER BY {keys}"
        with self._used() as database:
            cursor = database.execute(query)
        while True:
            with self._used():
                numbers = cursor.fetchmany(_ROWS_AT_ONCE)
            if not numbers:
                return
            yield from (number for (number,) in numbers)

    def _insert_waiting(self) -> None:
        with self._used() as database:
            database.executemany("INSERT INTO found VALUES (?, ?, ?, ?, ?, ?)", self._waiting)
        self._waiting.clear()

    @contextmanager
    def _used(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock:
                yield self._database
        except sqlite3.Error as error:
            raise DataError(
                f"the list of images can't be kept in a temporary file ({error}): free some disk space, or set TMPDIR"
                " to a folder with more"
            ) from error


def _number_of(name: bytes) -> bytes | None:
    """Return what sorts like the number in a name: the count of its digits before them."""
    if (digits := number_in(_decoded(name))) is None:
        return None
    digits = digits.lstrip("0")
    return bytes([len(digits)]) + digits.encode()


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # Python gives names that are no UTF-8 surrogates


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")
