"""Small sets to separate, and helpers to check the result."""

import json
import os
from pathlib import Path

from PIL import Image

import image_separate
from fakereal.cli import run_cli
from fakereal.files import sha256_of
from fakereal.separation.journal import Entry


def write_image(path: Path, shade: int = 0) -> Path:
    """Write a PNG that differs from any other path's and shade's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (shade % 256, len(os.fsencode(path)) % 256, sum(os.fsencode(path)) % 256)
    with open(path, "wb") as file:
        Image.new("RGB", (4, 4), colour).save(file, "PNG")
    return path


def predictions(path: Path, *labels: str | None, **named: str | None) -> Path:
    """Write labels for 1, 2, ... and for named files."""
    entries = [{"index": number, "prediction": label} for number, label in enumerate(labels, start=1)]
    entries += [{"image": name, "prediction": label} for name, label in named.items()]
    path.write_text(json.dumps(entries))
    return path


def folder_of_three(source: Path, name: str = "x", *labels: str | None) -> Path:
    """Create 1.png, 2.png, 3.png and their predictions."""
    for number in (1, 2, 3):
        write_image(source / name / f"{number}.png", number)
    predictions(source / f"{name}_preds.json", *(labels or ("fake", "real", "fake")))
    return source / name


def separate(*arguments: object) -> int:
    """Separate with --strict: the exit code tells whether anything was left out."""
    return run_cli(image_separate.main, [*(str(argument) for argument in arguments), "--strict"])


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file under a folder; a link's content is where it points."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {
        str(path.relative_to(folder)): os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in paths
    }


def separated(output: Path) -> set[str]:
    return {name for name in tree(output) if not name.startswith(("separation_", "review/"))}


def journal_in(output: Path, number: int = 1) -> Path:
    return output / f"separation_{number:03}.journal.jsonl"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def entry_for(path: Path) -> Entry:
    """Return the journal entry of a file that goes to fake_images."""
    return Entry(path, f"{path.parent.name}__{path.name}", 0, sha256_of(path), path.stat().st_size)
