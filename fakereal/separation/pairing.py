"""Which sub-folder is judged by which prediction JSONs, and what lies in the sub-folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fakereal.decoding import is_image_name
from fakereal.errors import ConfigError, DataError
from fakereal.files import display_path, is_folder, walk
from fakereal.separation.transfer import SkippedFile

_ENDINGS = ("_preds.json", "_predictions.json")


@dataclass(frozen=True)
class Folder:
    """A folder of pictures and the experiments that judge it."""

    path: Path  # absolute
    name: str  # what the new names of its files begin with
    experiments: tuple[Path, ...]  # prediction JSONs; empty where none was found


@dataclass
class Contents:
    """What lies in a folder, files of folders within it included."""

    pictures: list[Path] = field(default_factory=list)  # regular files named like pictures, absolute
    stays: list[SkippedFile] = field(default_factory=list)  # links and special files named like pictures


@dataclass(frozen=True)
class Pairing:
    """Every sub-folder of SOURCE, and JSONs that belong to none."""

    folders: tuple[Folder, ...]
    stays: tuple[SkippedFile, ...]  # pictures right in SOURCE, links to folders
    problems: tuple[str, ...]


def names_for(folder_name: str) -> tuple[str, ...]:
    """Returns the file names under which a folder's predictions are looked for, its very own first."""
    own = (f"{folder_name}.json", *(folder_name + ending for ending in _ENDINGS))
    short = folder_name.removesuffix("_images")
    return own if short in ("", folder_name) else (*own, *(short + ending for ending in _ENDINGS))


def find_folders(
    source: Path, output: Path, predictions: Sequence[Path], pairs: Sequence[str], skip: Sequence[str]
) -> Pairing:
    """Pairs the sub-folders of SOURCE with their prediction JSONs.

    Args:
        source: absolute path of the folder of folders.
        output: absolute path, never looked into where it lies in SOURCE.
        predictions: JSONs, or folders of JSONs, to look in instead of SOURCE.
        pairs: `FOLDER=JSON`, which override what the names say; a folder named twice has two experiments.
        skip: names of sub-folders that are meant to stay.

    Raises:
        ConfigError: a pair or a skip names something that isn't there.
        DataError: SOURCE or a place of predictions can't be read.
    """
    subfolders, stays = _subfolders(source, output)
    _check_skip(skip, subfolders, source)
    given = _given_pairs(pairs, source, output)
    wanted = [folder for folder in subfolders if folder.name not in skip and folder not in given]
    jsons = _jsons(predictions or [source], needed=bool(predictions))
    _check_output(output, source, jsons)
    experiments = _assign(wanted, jsons)
    if source in given:  # judged as a whole; only folders with predictions of their own are apart
        wanted, stays = [folder for folder in wanted if experiments[folder]], []
    folders = [Folder(path, path.name, tuple(experiments[path])) for path in wanted]
    folders += [Folder(path, _name(path, source), tuple(jsons)) for path, jsons in given.items()]
    problems = _unused(jsons, {name for path in (*subfolders, *given) for name in names_for(path.name)}, predictions)
    return Pairing(tuple(sorted(folders, key=lambda folder: folder.path)), tuple(stays), tuple(problems))


def _unused(jsons: Sequence[Path], known_names: set[str], predictions: Sequence[Path]) -> list[str]:
    """Names JSONs that were meant for us, to judge by their names or because they were given, but fit no folder."""
    return [
        f"{display_path(path)}: fits no sub-folder, so none of its entries is used (--pair FOLDER={display_path(path.name)} pairs it)"
        for path in jsons
        if path.name not in known_names and (path in predictions or path.name.endswith(_ENDINGS))
    ]


def _check_output(output: Path, source: Path, jsons: Sequence[Path]) -> None:
    if output.parent == source and output.is_dir():
        for json in jsons:
            if json.name in names_for(output.name):
                raise ConfigError(
                    f"--output {display_path(output)}: expected a folder of its own, found one that {display_path(json)} judges"
                )


def _subfolders(source: Path, output: Path) -> tuple[list[Path], list[SkippedFile]]:
    folders, stays = [], []
    for entry in _listed(source):
        path = Path(entry.path)
        if entry.is_symlink():
            if is_folder(entry) or is_image_name(entry.name, hidden=True):
                stays.append(_link_stay(path, source))
        elif entry.is_dir():
            if path != output:
                folders.append(path)
        elif is_image_name(entry.name, hidden=True):
            stays.append(SkippedFile(path, "loose", f"right in {display_path(source)}, in no sub-folder"))
    return folders, stays


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{display_path(folder)}: expected a folder that can be read, found: {error.strerror or error}"
        ) from error


def _check_skip(skip: Sequence[str], subfolders: Sequence[Path], source: Path) -> None:
    for name in skip:
        if name not in {folder.name for folder in subfolders}:
            raise ConfigError(
                f"--skip {name!r}: expected a sub-folder of {display_path(source)}, found none of that name"
            )


def _given_pairs(pairs: Sequence[str], source: Path, output: Path) -> dict[Path, list[Path]]:
    given: dict[Path, list[Path]] = {}
    for pair in pairs:
        folder, json = _split_pair(pair, source)
        if folder == output or output in folder.parents:
            raise ConfigError(
                f"--pair {pair!r}: expected a folder outside the output {display_path(output)}, found one inside"
            )
        if json not in given.setdefault(folder, []):
            given[folder].append(json)
    return given


def _split_pair(pair: str, source: Path) -> tuple[Path, Path]:
    """Splits at the `=` that makes sense: folder names and JSON names may hold one, too."""
    for cut in (position for position, character in enumerate(pair) if character == "=" and position):
        folder = _existing(source, pair[:cut], Path.is_dir)
        json = _existing(source, pair[cut + 1 :], Path.is_file)
        if folder and json:
            return folder, json
    raise ConfigError(
        f"--pair {pair!r}: expected FOLDER=JSON with a folder (in {display_path(source)}, or a path) and a file, found no such"
    )


def _existing(source: Path, name: str, is_right: Callable[[Path], bool]) -> Path | None:
    found = [path for path in (source / name, Path(name)) if is_right(path)]
    return Path(os.path.realpath(found[0])) if found else None


def _name(folder: Path, source: Path) -> str:
    """A folder deep in SOURCE is named by its whole path there, so that `a/x` and `b/x` stay apart."""
    if folder != source and folder.is_relative_to(source):
        return "__".join(folder.relative_to(source).parts)
    return folder.name


def _jsons(places: Sequence[Path], needed: bool) -> list[Path]:
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = [Path(entry.path) for entry in _listed(place) if entry.is_file()]
            found += [path for path in inside if path.suffix.lower() == ".json"]
        elif place.is_file():
            found.append(place)
        elif needed:
            raise ConfigError(
                f"--predictions {display_path(place)}: expected a JSON or a folder of JSONs, found nothing there"
            )
    return list(dict.fromkeys(found))


def _assign(folders: Sequence[Path], jsons: Sequence[Path]) -> dict[Path, list[Path]]:
    """Gives each JSON to one folder: `x_preds.json` is for `x/`, and only where that is missing for `x_images/`."""
    experiments: dict[Path, list[Path]] = {folder: [] for folder in folders}
    own = {name: folder for folder in folders for name in names_for(folder.name)[:3]}
    short = {name: folder for folder in folders for name in names_for(folder.name)[3:]}
    for json in jsons:
        folder = own.get(json.name) or short.get(json.name)
        if folder is not None:
            experiments[folder].append(json)
    return experiments


def contents_of(folder: Path, leave_out: set[Path], source: Path) -> Contents:
    """Lists the pictures in a folder, those of folders within it included; follows no link.

    Args:
        folder: where to look.
        leave_out: the output and folders that have predictions of their own.
        source: for the wording of what a link points to.
    """
    contents = Contents()

    def refuse(path: str, error: OSError) -> None:
        contents.stays.append(SkippedFile(Path(path), "unreadable", error.strerror or str(error)))

    for entry, _ in walk(folder, refuse, leave_out=leave_out):
        path = Path(entry.path)
        if entry.is_symlink():
            if is_folder(entry) or is_image_name(entry.name, hidden=True):
                contents.stays.append(_link_stay(path, source))
        elif is_image_name(entry.name, hidden=True) and not is_folder(entry):
            if entry.is_file():
                contents.pictures.append(path)
            else:
                contents.stays.append(SkippedFile(path, "not_a_file", "a pipe, a socket or a device"))
    return contents


def _link_stay(path: Path, source: Path) -> SkippedFile:
    target = Path(os.path.realpath(path))
    where = "inside" if target.is_relative_to(source) else "outside"
    return SkippedFile(path, "symbolic_link", f"it points to {display_path(target)}, {where} {display_path(source)}")
