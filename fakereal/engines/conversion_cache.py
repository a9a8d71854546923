"""The cache of converted networks on disk.

An entry is a folder that is written under another name, then renamed, and never changed: a kill leaves no half-written
entry, and when two runs convert the same model, the later one drops its own. Checksums detect damage. The user may
delete the cache at any time.
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

from fakereal.engines.parity import ParityResult
from fakereal.files import cache_folder
from fakereal.runtime import log, one_line

_CACHE_FORMAT = 3  # of an entry; changing it rebuilds all entries
_RECORD = "record.json"
_NETWORK = "network"  # files are called network.tflite and so on
_MAX_ENTRIES = 20  # each as large as its network; the least recently used ones are removed
_DAY_S = 86_400


@dataclass(frozen=True)
class Conversion:
    """A converted network, or the reason why it was refused."""

    files: dict[str, bytes]  # suffix -> content; empty where the network was refused
    image_size_px: int  # which a model file of another program doesn't say by itself
    description: str  # result of the comparison with Keras
    figures: dict[str, Any]  # of the comparison

    @classmethod
    def of(cls, files: dict[str, bytes], image_size_px: int, result: ParityResult) -> Conversion:
        """Return what is cached of a conversion; a refusal is, too, so that the conversion is not tried again."""
        return cls(files if result.passed else {}, image_size_px, result.description, result.figures)


def find_conversion(key: str, engine: str, version: str, cache: Path | None = None) -> Conversion | None:
    """Return what an earlier run stored, None where there is no valid entry.

    Args:
        key: SHA-256 of the model file, or another hash of what the network computes; its first 32 digits count.
        engine: one of `formats.RUNTIMES`.
        version: of the engine.
        cache: the folder of all caches; None: the user's.
    """
    folder = _entry_folder(key, engine, version, cache)
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        files = {suffix: (folder / f"{_NETWORK}{suffix}").read_bytes() for suffix in record["files"]}
        if _checksums(files) != record["files"]:
            raise ValueError("wrong checksum")
        conversion = Conversion(files, **record["entry"])
    except FileNotFoundError:
        if not folder.is_dir():
            return None
        damage = "a file is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        damage = one_line(error)
    else:
        with contextlib.suppress(OSError):
            os.utime(folder)
        return conversion
    log(f"cache: discarding {folder.name} ({damage}); it will be rebuilt")
    shutil.rmtree(folder, ignore_errors=True)
    return None


def store_conversion(key: str, engine: str, version: str, conversion: Conversion, cache: Path | None = None) -> None:
    """Store a conversion for the next run, see `find_conversion`; log a line where the cache is not writable."""
    folder = _entry_folder(key, engine, version, cache)
    fields = asdict(conversion)
    del fields["files"]
    text = json.dumps({"files": _checksums(conversion.files), "entry": fields}, indent=1, allow_nan=False)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, suffix=".part", ignore_cleanup_errors=True) as temporary:
            part = Path(temporary, "entry")
            part.mkdir()
            for suffix, content in conversion.files.items():
                (part / f"{_NETWORK}{suffix}").write_bytes(content)
            (part / _RECORD).write_text(text, encoding="utf-8")
            with contextlib.suppress(OSError):  # another run was first
                part.rename(folder)
        _remove_old_entries(folder.parent)
    except OSError as error:
        reason = error.strerror or error
        log(f"cache: {folder.parent} is not writable ({reason}), so the next run will convert the model again")


def _checksums(files: dict[str, bytes]) -> dict[str, str]:
    return {suffix: hashlib.sha256(content).hexdigest() for suffix, content in files.items()}


def _entry_folder(key: str, engine: str, version: str, cache: Path | None) -> Path:
    return (cache or cache_folder()) / "engines" / f"{key[:32]}-{engine}-{version}-{_CACHE_FORMAT}"


def _remove_old_entries(folder: Path) -> None:
    """Remove the least recently used entries, and what killed runs left behind more than a day ago."""
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another run has removed it
            found.append((path.stat().st_mtime, path))
    found.sort(reverse=True)
    entries = [path for _, path in found if path.suffix != ".part"]
    leftovers = [path for changed, path in found if path.suffix == ".part" and time.time() - changed > _DAY_S]
    for path in (*entries[_MAX_ENTRIES:], *leftovers):
        shutil.rmtree(path, ignore_errors=True)
