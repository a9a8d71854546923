"""Pair folders of images with their prediction files, and list the images in them.

A prediction file lies beside its folder. Where none does, it is looked for inside the folder and one level up; and
where a folder still has none, the same is done for the folders within it, such as those of an unpacked archive.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fakereal.decoding import has_image_content, is_image_name
from fakereal.errors import ConfigError, DataError
from fakereal.files import display_path, is_folder, relative_name, sha256_of, walk
from fakereal.prediction_files import SUFFIXES
from fakereal.separation.transfer import SkippedFile

_ENDINGS = ("_preds", "_predictions")
_INSIDE = ("preds", "predictions")
"""Stems of prediction files that need no other name beside the images themselves."""

_COPY_MARK = re.compile(r"( ?\(\d+\)| - copy( \(\d+\))?| copy( \d+)?)$", re.IGNORECASE)
"""What browsers and file managers append to the stem of a second copy."""


@dataclass(frozen=True)
class Folder:
    """A folder of images and the experiments that label them."""

    path: Path  # absolute
    name: str  # prefix of the new names of its files
    experiments: tuple[Path, ...]  # prediction files; empty where none was found


@dataclass(frozen=True)
class Pairing:
    """Every folder of images in the source, and the prediction files that belong to none."""

    folders: tuple[Folder, ...]  # by path
    skipped: tuple[SkippedFile, ...]  # images directly in the source, links
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()  # prediction files that don't lie beside their folders
    unused: tuple[Path, ...] = ()  # files that may hold predictions, by their suffix


@dataclass
class FolderContents:
    """The files of a folder and of the folders in it that are named like images."""

    images: list[Path] = field(default_factory=list)  # regular files, absolute
    skipped: list[SkippedFile] = field(default_factory=list)  # links, special files, unreadable folders


@dataclass
class _Search:
    """Prediction files by folder, while they are looked for."""

    apart: set[Path]  # folders not to look into: the output, and those that are paired by hand or left alone
    given: list[Path] | None  # where files are named, only these are used, wherever a folder lies
    found: dict[Path, list[Path]] = field(default_factory=dict)
    unused: list[Path] = field(default_factory=list)


def prediction_file_names(folder_name: str) -> tuple[str, ...]:
    """Return the file names under which a folder's predictions are looked for, the folder's full name first."""
    return tuple(f"{stem}.json" for stem in (*_own_stems(folder_name), *_short_stems(folder_name)))


def _own_stems(folder_name: str) -> tuple[str, ...]:
    return (folder_name, *(folder_name + ending for ending in _ENDINGS))


def _short_stems(folder_name: str) -> tuple[str, ...]:
    short = folder_name.removesuffix("_images")
    return () if short in ("", folder_name) else tuple(short + ending for ending in _ENDINGS)


def pair_folders(
    source: Path, output: Path, predictions: Sequence[Path], pairs: Sequence[str], skip: Sequence[str]
) -> Pairing:
    """Pair the folders in the source with their prediction files.

    Args:
        source: absolute path of the folder of folders.
        output: absolute path, never looked into where it is in the source.
        predictions: files, or folders of files, to look in instead of the source.
        pairs: `FOLDER=FILE`, which override the names; a folder named twice has two experiments.
        skip: names of sub-folders to leave alone.

    Raises:
        ConfigError: a pair or a skipped name doesn't exist.
        DataError: the source or a folder of predictions can't be read.
    """
    subfolders, skipped = _subfolders(source, output)
    _check_skip(skip, subfolders, source)
    by_hand = _given_pairs(pairs, source, output)
    apart = {output, *by_hand, *(folder for folder in subfolders if folder.name in skip)}
    beside = _find_files(predictions or [source], required=bool(predictions))
    _check_output(output, source, beside)
    search = _Search(apart, beside if predictions else None)
    above = [] if predictions else _prediction_files(source.parent)
    _search_level([folder for folder in subfolders if folder not in apart], beside, above, search)
    if not by_hand and not any(search.found.values()):
        _search_source(source, beside, above, search)
    problems = [*_settle(search, source), *_unused(search, by_hand, predictions)]
    as_a_whole = source in by_hand or bool(search.found.get(source))
    listed = set() if as_a_whole else set(subfolders)  # also without predictions
    found = {folder: files for folder, files in search.found.items() if files or folder in listed}
    names = _names(found, source)
    folders = [Folder(path, names[path], tuple(files)) for path, files in found.items()]
    folders += [Folder(path, _prefix(path, source), tuple(files)) for path, files in by_hand.items()]
    folders.sort(key=lambda folder: folder.path)
    notes = (_place_note(folder, source) for folder in folders if folder.path not in by_hand and not predictions)
    return Pairing(
        tuple(folders),
        () if as_a_whole else tuple(skipped),
        tuple(problems),
        tuple(filter(None, notes)),
        tuple(search.unused),
    )


def _search_level(folders: Sequence[Path], beside: Sequence[Path], above: Sequence[Path], search: _Search) -> None:
    """Find the files of folders that lie beside each other, and of the folders in those that have none."""
    found = _assign(folders, beside)
    left = [file for file in beside if not any(file in files for files in found.values())]
    for folder in folders:
        if not found[folder] and search.given is None:
            found[folder] = _inside(folder)
    found.update(_assign([folder for folder in folders if not found[folder]], above))
    search.found.update(found)
    if search.given is None:
        search.unused += left
    for folder in (folder for folder in folders if not found[folder]):
        within = [path for path in _folders_in(folder) if path not in search.apart]
        if within:
            _search_level(within, _prediction_files(folder) if search.given is None else left, left, search)


def _search_source(source: Path, beside: Sequence[Path], above: Sequence[Path], search: _Search) -> None:
    """Take the source itself for a folder of images, where nothing in it has predictions."""
    found = _assign([source], [*beside, *above])[source] or ([] if search.given else _inside(source))
    if found:
        search.found[source] = found
        search.unused = [file for file in search.unused if file not in found]


def _assign(folders: Sequence[Path], files: Iterable[Path]) -> dict[Path, list[Path]]:
    """Give each file to the folder of its name: `x_preds.json` to `x/`, and only where that is missing to `x_images/`.

    Where no folder has the very name, case and the mark of a copy are ignored; then several folders may get a file.
    """
    found: dict[Path, list[Path]] = {folder: [] for folder in folders}
    tables = [
        (fold, _by_stem(folders, stems, fold)) for fold in (str, str.casefold) for stems in (_own_stems, _short_stems)
    ]
    for file in files:
        stems = (file.stem, _COPY_MARK.sub("", file.stem))
        owners = (table[fold(stem)] for stem in stems for fold, table in tables if fold(stem) in table)
        for folder in next(owners, ()):
            found[folder].append(file)
    return found


def _by_stem(
    folders: Iterable[Path], stems: Callable[[str], tuple[str, ...]], fold: Callable[[str], str]
) -> dict[str, list[Path]]:
    table: dict[str, list[Path]] = {}
    for folder in folders:
        for stem in dict.fromkeys(map(fold, stems(folder.name))):
            table.setdefault(stem, []).append(folder)
    return table


def _inside(folder: Path) -> list[Path]:
    """Return the files in a folder that have its name; or any name of predictions, beside the images themselves."""
    files = _prediction_files(folder)
    named = _assign([folder], files)[folder]
    if named or not any(is_image_name(entry.name) for entry in _entries(folder)):
        return named
    return [file for file in files if _COPY_MARK.sub("", file.stem).casefold() in _INSIDE]


def _settle(search: _Search, source: Path) -> Iterator[str]:
    """Keep one file of each name for each folder, and yield a sentence on every choice that can't be made."""
    owners = Counter(file for files in search.found.values() for file in set(files))
    for file in (file for file, count in owners.items() if count > 1):
        folders = [folder for folder, files in search.found.items() if file in files]
        for folder in folders:
            search.found[folder] = []
        names = " and ".join(f"{_shown(folder, source)}/" for folder in folders)
        option = shlex.quote(f"{_shown(folders[0], source)}={display_path(file)}")
        yield f"{display_path(file)}: fits {names}: name the right one, such as --pair {option}"
    for folder, files in search.found.items():
        if len(files) > 1:
            search.found[folder], problem = _one_of_each_name(folder, files, source)
            if problem:
                yield problem


def _one_of_each_name(folder: Path, files: Sequence[Path], source: Path) -> tuple[list[Path], str]:
    """Return the files to use, and why there are none; JSON comes before other forms of the same predictions."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    for file in [file for file in files if file.suffix.lower() == ".json"] or files:
        groups.setdefault((file.parent, _COPY_MARK.sub("", file.stem).casefold()), []).append(file)
    for copies in groups.values():
        if len(copies) > 1 and len(set(map(sha256_of, copies))) > 1:
            names = [display_path(file) for file in sorted(copies, key=_by_length)]
            option = shlex.quote(f"{_shown(folder, source)}={names[0]}")
            both = f"{' and '.join(names)} differ, and both fit {_shown(folder, source)}/"
            return [], f"{both}: name the right one, such as --pair {option}"
    return [min(copies, key=_by_length) for copies in groups.values()], ""


def _by_length(file: Path) -> tuple[int, str]:
    return len(file.name), file.name


def _names(found: dict[Path, list[Path]], source: Path) -> dict[Path, str]:
    """Return the prefixes of the folders' files: the folder's name, with folders above that tell it from others."""
    short = {folder: "__".join(_telling_parts(folder, source)) for folder in found}
    counts = Counter(short.values())
    return {folder: name if counts[name] == 1 else _prefix(folder, source) for folder, name in short.items()}


def _telling_parts(folder: Path, source: Path) -> list[str]:
    """Return the folder's name, and those above it in the source that aren't the only thing around or in them."""
    parts = [folder.name]
    for parent in folder.parents:
        if parent == source or source not in parent.parents:
            break
        is_only = len(_folders_in(parent)) == 1 or len(_folders_in(parent.parent)) == 1
        parts = parts if is_only else [parent.name, *parts]
    return parts


def _place_note(folder: Folder, source: Path) -> str:
    elsewhere = [file for file in folder.experiments if file.parent != folder.path.parent]
    names = ", ".join(display_path(file) for file in elsewhere)
    return f"{names}: used for {_shown(folder.path, source)}/" if elsewhere else ""


def _shown(folder: Path, source: Path) -> str:
    return display_path(relative_name(folder, source))


def _prediction_files(folder: Path, required: bool = False) -> list[Path]:
    paths = [Path(entry.path) for entry in _entries(folder, required)]
    return [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()]


def _folders_in(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(folder) if is_folder(entry) and not entry.is_symlink()]


def _subfolders(source: Path, output: Path) -> tuple[list[Path], list[SkippedFile]]:
    folders, skipped = [], []
    for entry in _entries(source, required=True):
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


def _entries(folder: Path, required: bool = False) -> list[os.DirEntry[str]]:
    """Return what a folder holds; nothing where it can't be read, unless it is required."""

    def on_error(path: str, error: OSError) -> None:
        if required:
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
    folder, _, json = pair.rpartition("=")
    if not (folder and json):
        raise ConfigError(f"--pair {pair!r}: expected FOLDER=JSON")
    missing = f"no folder {folder}" if not _existing(source, folder, Path.is_dir) else f"no file {json}"
    raise ConfigError(f"--pair {pair!r}: there is {missing}, in {display_path(source)} or as a path: check the name")


def _existing(source: Path, name: str, is_right: Callable[[Path], bool]) -> Path | None:
    found = [path for path in (source / name, Path(name)) if is_right(path)]
    return Path(os.path.realpath(found[0])) if found else None


def _prefix(folder: Path, source: Path) -> str:
    """Return the prefix of a paired folder: its whole path in the source, so that `a/x` and `b/x` stay apart."""
    if folder != source and folder.is_relative_to(source):
        return "__".join(folder.relative_to(source).parts)
    return folder.name


def _find_files(places: Sequence[Path], required: bool) -> list[Path]:
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += _prediction_files(place, required=True)
        elif place.is_file():
            found.append(place)
        elif required:
            raise ConfigError(f"--predictions {display_path(place)}: no such file or folder")
    return list(dict.fromkeys(found))


def _check_output(output: Path, source: Path, files: Sequence[Path]) -> None:
    if output.parent == source and output.is_dir():
        for file in _assign([output], files)[output]:
            raise ConfigError(
                f"--output {display_path(output)}: this folder is separated by {display_path(file)}:"
                " choose another output folder"
            )


def _unused(search: _Search, by_hand: dict[Path, list[Path]], predictions: Sequence[Path]) -> Iterator[str]:
    """Name the files that are meant as predictions, by their names or since they were given, but match no folder."""
    used = {file for files in (*search.found.values(), *by_hand.values()) for file in files}
    passed_over = {file for folder in search.apart for file in _assign([folder], search.given or search.unused)[folder]}
    for file in [*search.unused, *(search.given or ())]:
        meant = file in predictions or file.stem.casefold().endswith(_ENDINGS)
        if meant and file not in used | passed_over:
            name = display_path(file.name)
            yield f"{display_path(file)}: matches no folder, so it is not used (--pair FOLDER={name} pairs it)"


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
