"""Pair sub-folders with their prediction JSONs, and list the images in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fakereal.decoding import has_image_content, is_image_name
from fakereal.errors import ConfigError, DataError
from fakereal.files import display_path, is_folder, walk
from fakereal.separation.transfer import SkippedFile

_ENDINGS = ("_preds.json", "_predictions.json")


@dataclass(frozen=True)
class Folder:
    """A folder of images and the experiments that label them."""

    path: Path  # absolute
    name: str  # prefix of the new names of its files
    experiments: tuple[Path, ...]  # prediction JSONs; empty where none was found


@dataclass(frozen=True)
class Pairing:
    """Every sub-folder of the source, and the JSONs that belong to none."""

    folders: tuple[Folder, ...]  # by path
    skipped: tuple[SkippedFile, ...]  # images directly in the source, links
    problems: tuple[str, ...]


@dataclass
class FolderContents:
    """The files of a folder and of the folders in it that are named like images."""

    images: list[Path] = field(default_factory=list)  # regular files, absolute
    skipped: list[SkippedFile] = field(default_factory=list)  # links, special files, unreadable folders


def prediction_file_names(folder_name: str) -> tuple[str, ...]:
    """Return the file names under which a folder's predictions are looked for, the folder's full name first."""
    own = (f"{folder_name}.json", *(folder_name + ending for ending in _ENDINGS))
    short = folder_name.removesuffix("_images")
    return own if short in ("", folder_name) else (*own, *(short + ending for ending in _ENDINGS))


def pair_folders(
    source: Path, output: Path, predictions: Sequence[Path], pairs: Sequence[str], skip: Sequence[str]
) -> Pairing:
    """Pair the sub-folders of the source with their prediction JSONs.

    Args:
        source: absolute path of the folder of folders.
        output: absolute path, never looked into where it is in the source.
        predictions: JSONs, or folders of JSONs, to look in instead of the source.
        pairs: `FOLDER=JSON`, which override the names; a folder named twice has two experiments.
        skip: names of sub-folders to leave alone.

    Raises:
        ConfigError: a pair or a skipped name doesn't exist.
        DataError: the source or a folder of predictions can't be read.
    """
    subfolders, skipped = _subfolders(source, output)
    _check_skip(skip, subfolders, source)
    given = _given_pairs(pairs, source, output)
    wanted = [folder for folder in subfolders if folder.name not in skip and folder not in given]
    jsons = _find_jsons(predictions or [source], required=bool(predictions))
    _check_output(output, source, jsons)
    experiments = _assign(wanted, jsons)
    if source in given:  # paired as a whole: only sub-folders with predictions of their own are apart from it
        wanted, skipped = [folder for folder in wanted if experiments[folder]], []
    folders = [Folder(path, path.name, tuple(experiments[path])) for path in wanted]
    folders += [Folder(path, _prefix(path, source), tuple(jsons)) for path, jsons in given.items()]
    known = {name for path in (*subfolders, *given) for name in prediction_file_names(path.name)}
    problems = _unused(jsons, known, predictions)
    return Pairing(tuple(sorted(folders, key=lambda folder: folder.path)), tuple(skipped), tuple(problems))


def _subfolders(source: Path, output: Path) -> tuple[list[Path], list[SkippedFile]]:
    folders, skipped = [], []
    for entry in _entries(source):
        path = Path(entry.path)
        if entry.is_symlink():
            if is_folder(entry) or is_image_name(entry.name, hidden=True):
                skipped.append(_skipped_link(path, source))
        elif entry.is_dir():
            if path != output:
                folders.append(path)
        elif _is_image(entry):
            skipped.append(SkippedFile(path, "loose", f"directly in {display_path(source)}"))
    return folders, skipped


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Say whether a file is an image, by its name or by its content."""
    if is_image_name(entry.name, hidden=True):
        return True
    return entry.is_file(follow_symlinks=False) and has_image_content(entry.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    def on_error(path: str, error: OSError) -> None:
        raise DataError(f"{display_path(path)}: can't read the folder: {error.strerror or error}") from error

    return [entry for entry, _ in walk(folder, on_error, recursive=False)]


def _skipped_link(path: Path, source: Path) -> SkippedFile:
    target = Path(os.path.realpath(path))
    where = "inside" if target.is_relative_to(source) else "outside"
    return SkippedFile(path, "symbolic_link", f"it points to {display_path(target)}, {where} {display_path(source)}")


def _check_skip(skip: Sequence[str], subfolders: Sequence[Path], source: Path) -> None:
    for name in skip:
        if name not in {folder.name for folder in subfolders}:
            raise ConfigError(f"--skip {name!r}: {display_path(source)} has no such sub-folder")


def _given_pairs(pairs: Sequence[str], source: Path, output: Path) -> dict[Path, list[Path]]:
    given: dict[Path, list[Path]] = {}
    for pair in pairs:
        folder, json = _split_pair(pair, source)
        if folder == output or output in folder.parents:
            raise ConfigError(f"--pair {pair!r}: the folder is in the output folder {display_path(output)}")
        if json not in given.setdefault(folder, []):
            given[folder].append(json)
    return given


def _split_pair(pair: str, source: Path) -> tuple[Path, Path]:
    """Split at the `=` that leaves an existing folder and file, since their names may hold one, too."""
    for cut in (position for position, character in enumerate(pair) if character == "=" and position):
        folder = _existing(source, pair[:cut], Path.is_dir)
        json = _existing(source, pair[cut + 1 :], Path.is_file)
        if folder and json:
            return folder, json
    raise ConfigError(
        f"--pair {pair!r}: expected FOLDER=JSON with a folder (in {display_path(source)}, or a path) and a file,"
        " got names that don't exist"
    )


def _existing(source: Path, name: str, is_right: Callable[[Path], bool]) -> Path | None:
    found = [path for path in (source / name, Path(name)) if is_right(path)]
    return Path(os.path.realpath(found[0])) if found else None


def _prefix(folder: Path, source: Path) -> str:
    """Return the prefix of a paired folder: its whole path in the source, so that `a/x` and `b/x` stay apart."""
    if folder != source and folder.is_relative_to(source):
        return "__".join(folder.relative_to(source).parts)
    return folder.name


def _find_jsons(places: Sequence[Path], required: bool) -> list[Path]:
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = [Path(entry.path) for entry in _entries(place)]
            found += [path for path in inside if path.suffix.lower() == ".json" and path.is_file()]
        elif place.is_file():
            found.append(place)
        elif required:
            raise ConfigError(f"--predictions {display_path(place)}: no such file or folder")
    return list(dict.fromkeys(found))


def _check_output(output: Path, source: Path, jsons: Sequence[Path]) -> None:
    if output.parent == source and output.is_dir():
        for json in jsons:
            if json.name in prediction_file_names(output.name):
                raise ConfigError(
                    f"--output {display_path(output)}: this folder is separated by {display_path(json)}:"
                    " choose another output folder"
                )


def _assign(folders: Sequence[Path], jsons: Sequence[Path]) -> dict[Path, list[Path]]:
    """Give each JSON to one folder: `x_preds.json` to `x/`, and only where that is missing to `x_images/`."""
    experiments: dict[Path, list[Path]] = {folder: [] for folder in folders}
    own = {name: folder for folder in folders for name in prediction_file_names(folder.name)[:3]}
    short = {name: folder for folder in folders for name in prediction_file_names(folder.name)[3:]}
    for json in jsons:
        folder = own.get(json.name) or short.get(json.name)
        if folder is not None:
            experiments[folder].append(json)
    return experiments


def _unused(jsons: Sequence[Path], known_names: set[str], predictions: Sequence[Path]) -> list[str]:
    """Name the JSONs that are meant as predictions, by their names or since they were given, but match no folder."""
    return [
        f"{display_path(path)}: matches no sub-folder, so it is not used"
        f" (--pair FOLDER={display_path(path.name)} pairs it)"
        for path in jsons
        if path.name not in known_names and (path in predictions or path.name.endswith(_ENDINGS))
    ]


def list_images(folder: Path, leave_out: set[Path], source: Path) -> FolderContents:
    """List the images in a folder and in the folders in it; symbolic links are listed as skipped.

    Args:
        folder: where to look.
        leave_out: the output, and folders that have predictions of their own.
        source: whether a link leads out of it is part of the link's detail.
    """
    contents = FolderContents()

    def on_error(path: str, error: OSError) -> None:
        contents.skipped.append(SkippedFile(Path(path), "unreadable", error.strerror or str(error)))

    for entry, _ in walk(folder, on_error, leave_out=leave_out):
        path, is_image = Path(entry.path), _is_image(entry)
        if entry.is_symlink():
            if is_image or is_folder(entry):
                contents.skipped.append(_skipped_link(path, source))
        elif entry.is_file() and is_image:
            contents.images.append(path)
        elif is_image and not entry.is_dir():
            contents.skipped.append(SkippedFile(path, "not_a_file", "a pipe, a socket or a device"))
    return contents
