"""Converted networks kept from run to run, beside the cache of pictures. The folder may be deleted at any time.

An entry is a folder that appears whole, by renaming, and never changes: a kill leaves no half entry, and of two runs
that convert the same model, the later one uses its own and drops it. Damage is noticed by checksums.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fakereal.cli import one_line, say
from fakereal.model.row_cache import default_folder

_FORMAT = 2  # of an entry; another number makes all entries anew
_RECORD = "record.json"
_NETWORK = "network"  # the files are called network.tflite and the like
_KEPT = 20  # entries, as large as their networks; those that nobody used for longest make room
_DAY_S = 86_400


@dataclass(frozen=True)
class Entry:
    """What came of a conversion."""

    files: dict[str, bytes]  # suffix -> content; empty where the network was refused
    image_size_px: int  # what a model file of another program doesn't say by itself
    words: str  # what the gate found, or why the network was refused
    figures: dict[str, Any]  # the gate's


def find(model_sha256: str, engine: str, version: str, cache: Path | None = None) -> Entry | None:
    """Returns what an earlier run kept, None where there is nothing sound.

    Args:
        model_sha256: of the model file, or another name of what the network computes; 32 digits count.
        engine: one of `runtimes.RUNTIMES`.
        version: of the engine.
        cache: the folder of all caches; None: the user's.
    """
    folder = _folder(model_sha256, engine, version, cache)
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        files = {suffix: (folder / f"{_NETWORK}{suffix}").read_bytes() for suffix in record["files"]}
        if {suffix: hashlib.sha256(content).hexdigest() for suffix, content in files.items()} != record["files"]:
            raise ValueError("its content has changed")
        entry = Entry(files, **record["entry"])
    except FileNotFoundError:
        if not folder.is_dir():
            return None
        damage = "a file is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        damage = one_line(error)
    else:
        with contextlib.suppress(OSError):
            os.utime(folder)
        return entry
    say(f"cache: {folder.name} is thrown away and made anew, as {damage}")
    shutil.rmtree(folder, ignore_errors=True)
    return None


def keep(model_sha256: str, engine: str, version: str, entry: Entry, cache: Path | None = None) -> None:
    """Keeps a conversion for the next run, by what `find` takes; says so where that can't be done."""
    folder = _folder(model_sha256, engine, version, cache)
    plain = asdict(entry)
    del plain["files"]
    checksums = {suffix: hashlib.sha256(content).hexdigest() for suffix, content in entry.files.items()}
    text = json.dumps({"files": checksums, "entry": plain}, indent=1, allow_nan=False)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, suffix=".part", ignore_cleanup_errors=True) as temporary:
            part = Path(temporary, "entry")
            part.mkdir()
            for suffix, content in entry.files.items():
                (part / f"{_NETWORK}{suffix}").write_bytes(content)
            (part / _RECORD).write_text(text, encoding="utf-8")
            with contextlib.suppress(OSError):  # another run was first
                part.rename(folder)
        _make_room(folder.parent)
    except OSError as error:
        say(f"cache: {folder.parent} can't be written ({error.strerror or error}), so the next run converts again")


def _folder(model_sha256: str, engine: str, version: str, cache: Path | None) -> Path:
    return (cache or default_folder()) / "engines" / f"{model_sha256[:32]}-{engine}-{version}-{_FORMAT}"


def _make_room(folder: Path) -> None:
    """Removes the entries that nobody used for longest, and what kills left behind a day ago."""
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another run has removed it
            found.append((path.stat().st_mtime, path))
    found.sort(reverse=True)
    entries = [path for _, path in found if path.suffix != ".part"]
    left = [path for changed, path in found if path.suffix == ".part" and time.time() - changed > _DAY_S]
    for path in (*entries[_KEPT:], *left):
        shutil.rmtree(path, ignore_errors=True)
