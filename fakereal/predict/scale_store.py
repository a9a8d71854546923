"""Pictures in an object store, or wherever else fsspec reaches: `s3://bucket/prefix`, `gs://...`, `https://...`."""

from __future__ import annotations

import functools
import os
import posixpath
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from fakereal.cli import one_line
from fakereal.errors import ConfigError, DataError, FakeRealError, ImageRefused
from fakereal.predict.sources import Found
from fakereal.preprocessing import MAX_FILE_BYTES, SUFFIXES, is_picture_name

_TRIES = 3
_PAUSE_S = 0.5  # between them; the stores' own packages wait and try again by themselves where they are asked to


class _Address(PurePosixPath):
    """What stands for an archive's path where people or the journal want one."""

    def stat(self) -> os.stat_result:
        """Says that nothing has changed: a resumed run takes what a store holds for what it held."""
        return os.stat_result([0] * 10)


class Store:
    """The pictures below one address, by their names there; another process that it is sent to connects anew."""

    in_order = False

    def __init__(self, url: str) -> None:
        self.url = url
        self.path = _Address(url)

    def position(self, name: str) -> int:
        """Returns where a picture lies; one place is as good as another here."""
        return 0

    def read(self, name: str) -> bytes:
        """Returns a picture's content, asking for no more than a picture may have.

        Raises:
            ImageRefused: the store doesn't give it, also when asked again.
        """
        system, root = connected(self.url)
        path = posixpath.join(root, name)
        try:
            content = _content(system, path)
        except FileNotFoundError as error:
            raise ImageRefused("missing", "expected an object, found nothing there") from error
        except Exception as error:
            raise ImageRefused("unreadable", f"expected a readable object, found: {one_line(error)}") from error
        if len(content) > MAX_FILE_BYTES:
            raise ImageRefused("too_large", f"expected at most {MAX_FILE_BYTES // 2**20} MB, found more")
        return content

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.url,)


def _content(system: Any, path: str) -> bytes:
    for left in reversed(range(_TRIES)):
        try:
            return system.cat_file(path, start=0, end=MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            raise
        except Exception:
            if left == 0:
                if system.size(path) == 0:  # some stores find no such range in an empty object
                    return b""
                raise
            time.sleep(_PAUSE_S)
    raise AssertionError("unreachable")


def of_url(url: str, recursive: bool) -> Found:
    """Lists what lies below an address, one folder after the other; nothing is opened.

    Raises:
        ConfigError: fsspec, or its part for such addresses, is not installed.
        DataError: the store can't be reached, or there is nothing.
    """
    url = url.rstrip("/")
    system, root = connected(url)
    try:
        if system.isfile(root):
            return _single(url)
        found = _found(url)
        for name, is_folder in _walk(system, root, recursive):
            if is_folder:
                found.folders.append(f"{name}/")
            elif is_picture_name(Path(name)):
                found.add(name, None)
            else:
                found.others.append(name)
    except FakeRealError:
        raise
    except FileNotFoundError:
        found = Found(url)
    except Exception as error:
        raise DataError(f"{url}: expected a store that can be listed, found {_reason(error)}") from error
    if not (found.names or found.others or found.folders):
        raise DataError(f"{url}: expected images, found nothing there: look for a slip in the address")
    return found


def _single(url: str) -> Found:
    folder, _, name = url.rpartition("/")
    if not is_picture_name(Path(name)):
        raise DataError(f"{url}: expected a folder or an image ({' '.join(SUFFIXES)}), found another object")
    found = _found(folder)
    found.add(name, None)
    return found


def _found(url: str) -> Found:
    """Returns an empty list of what lies at an address, which stands among paths as /s3:/bucket/prefix."""
    return Found("/" + posixpath.normpath(url), archive=Store(url))


def _walk(system: Any, root: str, recursive: bool) -> Iterator[tuple[str, bool]]:
    """Yields names below the root, and whether they are folders that are not looked into."""
    for folder, below, files in system.walk(root, maxdepth=None if recursive else 1, detail=False, on_error="raise"):
        start = folder.rstrip("/")[len(root.rstrip("/")) :].lstrip("/")
        for name in files:
            if name:  # some stores have an empty object that stands for the folder
                yield posixpath.join(start, name), False
        if not recursive:
            yield from ((name, True) for name in below)


@functools.lru_cache(maxsize=16)
def connected(url: str) -> tuple[Any, str]:
    """Returns the file system of an address and the address's path in it; one connection a process.

    Raises:
        ConfigError: fsspec, or its part for such addresses, is not installed.
        DataError: the address or the credentials can't be used.
    """
    try:
        import fsspec

        return fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise ConfigError(
            f"--input {url}: expected the package that reads such addresses, found none ({one_line(error)}):"
            " pip install -r requirements-scale.txt"
        ) from error
    except Exception as error:
        raise DataError(f"--input {url}: expected an address that fsspec knows, found {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    return one_line(error) if isinstance(error, OSError) else f"{type(error).__name__}: {one_line(error)}"
