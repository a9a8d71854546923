"""What a model file says about itself, for those who need no Keras: read, written and understood here alone."""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py

from fakereal import config as configuration
from fakereal.config import Config
from fakereal.errors import ConfigError, FakeRealError, ModelFileError
from fakereal.files import sha256_of
from fakereal.labels import NAMES
from fakereal.model.calibration import DecisionRule
from fakereal.preprocessing import Preprocessing

FORMAT = 1
_DATASET = "fakereal_metadata"  # in an .h5 file; no attribute, which may hold 64 KB only
_MEMBER = "fakereal_metadata.json"  # in a .keras file, which is a zip archive

DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    AttributeError,
    TypeError,
    RuntimeError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What h5py, zipfile and Keras raise on damaged or hostile files."""

FOREIGN_NOTE = "foreign model: its output is taken as the probability of REAL, from RGB pixels in 0..255"


@dataclass(frozen=True)
class Metadata:
    """What a model file says about itself."""

    config: Config  # the effective configuration of the training run
    preprocessing: Preprocessing  # how a file becomes the array that the network was trained on
    decision: DecisionRule = field(default_factory=DecisionRule)  # temperature, threshold and band, from validation
    base_weights: str = "unknown"  # where the base's weights came from, in words
    data: dict[str, Any] = field(default_factory=dict)  # counts, sources and the fingerprint of the pictures
    metrics: dict[str, Any] = field(default_factory=dict)  # by split
    history: tuple[dict[str, Any], ...] = ()  # a row an epoch
    versions: dict[str, str] = field(default_factory=dict)  # of the packages that trained it


def check_suffix(path: Path) -> None:
    """Raises ModelFileError where a path ends in neither `.h5` nor `.keras`."""
    if path.suffix not in (".h5", ".keras"):
        raise ModelFileError(f"{path}: expected a file name ending in .h5 or .keras")


def of_foreign(image_size_px: int) -> Metadata:
    """Returns what is taken for granted about a plain Keras file of another program."""
    return Metadata(Config(image_size=image_size_px), Preprocessing(image_size_px), base_weights="a foreign model")


def read_own(path: Path, foreign: bool) -> Metadata | None:
    """Like `read_metadata`; a file without metadata is refused unless `foreign` takes it.

    Raises:
        ModelFileError: also for a path of another suffix.
    """
    check_suffix(path)
    metadata = read_metadata(path)
    if metadata is None and not foreign:
        raise ModelFileError(
            f"{path}: expected a model made by train_model.py, found a Keras file without our metadata;"
            " --foreign-model takes it all the same"
        )
    return metadata


def read_metadata(path: Path) -> Metadata | None:
    """Returns what a model file says about itself, or None where it is a Keras file of another script.

    Raises:
        ModelFileError: missing, no Keras file, or metadata that this version doesn't understand.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: expected a model file, found nothing there; train_model.py makes one")
    try:
        text = _read_metadata_text(path)
    except DAMAGE as error:
        raise ModelFileError(f"{path}: expected a Keras model file, found something else ({error})") from error
    return None if text is None else _from_json(text, path)


def _read_metadata_text(path: Path) -> str | None:
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return archive.read(_MEMBER).decode() if _MEMBER in archive.namelist() else None
    with h5py.File(path, "r") as file:
        return file[_DATASET][()].decode() if _DATASET in file else None


def write_metadata(path: Path, text: str) -> None:
    """Adds metadata, as `to_text` gives them, to a Keras file that has none."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(_MEMBER, text)
        return
    with h5py.File(path, "a") as file:
        file[_DATASET] = text


def to_text(metadata: Metadata) -> str:
    """Returns the metadata as the JSON that a model file holds."""
    plain = {
        each.name: getattr(metadata, each.name)
        for each in dataclasses.fields(Metadata)
        if each.name not in ("config", "preprocessing", "decision")
    }
    tree = {
        "format": FORMAT,
        "network": metadata.config.network.name,
        "image_size_px": metadata.preprocessing.image_size_px,
        "preprocessing": metadata.preprocessing.fingerprint,
        "class_order": list(NAMES),
        "output": "p_real",
        "decision": dataclasses.asdict(metadata.decision),
        "config": configuration.as_dict(metadata.config),
        **plain,
    }
    return json.dumps(tree, allow_nan=False)


def _from_json(text: str, path: Path) -> Metadata:
    try:
        tree = json.loads(text)
        if tree["format"] != FORMAT:
            raise ModelFileError(
                f"{path}: expected model file format {FORMAT}, found {tree['format']}; update fakereal"
            )
        decision = tree["decision"]
        return Metadata(
            config=configuration.from_dict(tree["config"], str(path)),
            preprocessing=Preprocessing.from_fingerprint(tree["preprocessing"]),
            decision=DecisionRule(decision["threshold"], decision["temperature"], tuple(decision["band"])),
            history=tuple(tree["history"]),
            **{key: tree[key] for key in ("base_weights", "data", "metrics", "versions")},
        )
    except ConfigError as error:
        made = tree.get("versions", {}).get("fakereal", "an unknown version")
        raise ModelFileError(
            f"{path}: made by fakereal {made} with a setting unknown here ({error}): update"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: expected our metadata, found damaged ones ({error})") from error
    except FakeRealError as error:
        raise ModelFileError(f"{path}: {error}") from error


# ---- The files that weights come from, without Keras: its import takes seconds.

PRETRAINED = Path(__file__).resolve().parents[2] / "models" / "pretrained.h5"
"""The shipped detector, whose base is the offline start for transfer learning."""


def weights_sha256(choice: str) -> str:
    """Returns the SHA-256 of the file that a choice of weights (`Config.weights`) may take; empty where there is none.

    A path says too little about a training: another one may have written other weights there.
    """
    path = PRETRAINED if choice in ("auto", "pretrained") else Path(choice)
    return sha256_of(path) if path.is_file() else ""
