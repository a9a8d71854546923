"""What a user can get wrong about where results go, found before the long work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fakereal.errors import ConfigError, DataError
from fakereal.predict import details
from fakereal.predict.archives import is_archive_name
from fakereal.predict.stability import VARIANTS

if TYPE_CHECKING:
    from fakereal.predict.inputs import Listing
    from fakereal.predict.prediction import PredictConfig

MAX_BATCH_SIZE = 1024  # 150 MB of pictures at 224x224, and several times that inside the network


def check_outputs(config: PredictConfig) -> None:
    """Makes sure that the results can be written later.

    Raises:
        ConfigError: a suffix or a number that can't be used, or one file for both results.
        DataError: a path where no file can be written.
    """
    if config.batch_size > MAX_BATCH_SIZE:
        raise ConfigError(f"--batch-size: expected at most {MAX_BATCH_SIZE}, found {config.batch_size}")
    if config.stability > len(VARIANTS):
        raise ConfigError(f"--stability: expected 1 to {len(VARIANTS)} ways to save again, found {config.stability}")
    _check_output("--output", config.output, (".json",))
    if config.explain is not None:
        _check_explain(config)
    if config.details is None:
        return
    _check_output("--details", config.details, details.SUFFIXES)
    if config.details.resolve() == config.output.resolve():
        raise ConfigError(f"--details: expected another file than --output, found {config.details} for both")


def _check_explain(config: PredictConfig) -> None:
    folder = config.explain.resolve()
    if config.explain.exists() and not folder.is_dir():
        raise DataError(f"--explain: expected a folder, found the file {config.explain}")
    for source in (Path(each) for each in config.inputs if not is_archive_name(each)):
        pictures = (source if source.is_dir() else source.parent).resolve()
        if folder == pictures or (config.recursive and folder.is_relative_to(pictures)):
            # They would be predicted with the pictures the next time.
            raise ConfigError(f"--explain: expected a folder apart from the images in {source}, found {config.explain}")


def check_readable_twice(listing: Listing) -> None:
    """Makes sure that pictures can be explained, for which each is read a second time.

    Raises:
        ConfigError: some lie in a compressed tar.
    """
    if archive := next((item.root.path for item in listing.items if item.in_order), None):
        raise ConfigError(
            f"--explain: expected images that can be read twice, found those in {archive}: unpack it, and name its"
            " folder with --input"
        )


def _check_output(option: str, path: Path, suffixes: Sequence[str]) -> None:
    if path.is_dir():
        raise DataError(f"{option}: expected a file name, found the folder {path}: try {path / 'predictions.json'}")
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{option}: expected a name ending in {', '.join(suffixes)}, found {path}")
    if os.path.lexists(path) and not path.is_file():
        raise DataError(f"{option}: expected a file name, found {path}, which is no regular file")
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    try:
        tempfile.TemporaryFile(dir=folder).close()  # permissions alone don't tell: read-only disks, network folders
    except OSError as error:
        raise DataError(f"{option}: expected a place for {path}, found {folder}: {error.strerror or error}") from error
