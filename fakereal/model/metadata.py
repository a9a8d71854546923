"""The metadata inside a model file: read and written without Keras, whose import takes seconds."""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fakereal import config as configuration
from fakereal.config import Config
from fakereal.errors import ConfigError, FakeRealError, ModelFileError
from fakereal.files import sha256_of, shipped_file
from fakereal.labels import NAMES
from fakereal.model.calibration import DecisionRule
from fakereal.model.foreign import ForeignModel
from fakereal.model.out_of_distribution import Prototypes
from fakereal.preprocessing import Preprocessing

FORMAT = 1
EXPORTED_SUFFIX = ".tflite"
"""Of an exported network that, with its card, is a model file too; see `engines.card`."""

_DATASET = "fakereal_metadata"  # a data set of an .h5 file; an attribute could hold 64 KB only
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

PRETRAINED = shipped_file("models/pretrained.h5")
"""The shipped model, whose base is the offline start for transfer learning."""


@dataclass(frozen=True)
class Metadata:
    """Everything a model file holds besides the weights."""

    config: Config  # the effective configuration of the training run
    preprocessing: Preprocessing  # from a file to the array that the network was trained on
    decision: DecisionRule = field(default_factory=DecisionRule)  # fitted on validation images
    base_weights: str = "unknown"  # description of the base's initial weights
    data: dict[str, Any] = field(default_factory=dict)  # counts, sources and the fingerprint of the images
    metrics: dict[str, Any] = field(default_factory=dict)  # by split
    history: tuple[dict[str, Any], ...] = ()  # one row per epoch
    versions: dict[str, str] = field(default_factory=dict)  # of the packages that trained it
    foreign: dict[str, Any] = field(default_factory=dict)  # how a network of another program is used; empty: our own
    prototypes: Prototypes | None = None  # of the training images; None: every image counts as familiar

    @property
    def network(self) -> str:
        """The name of the network, `foreign` for one of another program."""
        return "foreign" if self.foreign else self.config.network.name


def is_shipped(model: Path) -> bool:
    """Return whether a model is the shipped one, taken from where this program keeps it."""
    return model.with_suffix(PRETRAINED.suffix) == PRETRAINED


def beside(model: Path, name: str) -> Path:
    """Return the default path of what is made of a model: beside it, but in the current folder for the shipped one."""
    return Path(name) if is_shipped(model) else model.with_name(name)


def check_suffix(path: Path) -> None:
    """Raise ModelFileError unless a path ends in `.h5` or `.keras`."""
    _refuse_exported(path)
    if path.suffix not in (".h5", ".keras"):
        raise ModelFileError(f"{path}: expected a file name ending in .h5 or .keras")


def _refuse_exported(path: Path) -> None:
    if path.suffix == EXPORTED_SUFFIX:
        raise ModelFileError(
            f"{path}: expected a Keras model file (.h5 or .keras), got an exported network, which can only predict"
        )


def of_foreign(image_size_px: int, foreign: ForeignModel) -> Metadata:
    """Return the metadata of a Keras file of another program."""
    return Metadata(
        Config(image_size=image_size_px),
        Preprocessing(image_size_px),
        base_weights="a foreign model",
        foreign=dataclasses.asdict(replace(foreign, size_px=image_size_px)),
    )


def read_own(path: Path, foreign: bool) -> Metadata | None:
    """Return the metadata of a model file to predict with; None for a foreign file that `foreign` accepts.

    Raises:
        ModelFileError: as `read_metadata`; also for another suffix, or a foreign file without `foreign`.
    """
    check_suffix(path)
    metadata = read_metadata(path)
    if metadata is None and not foreign:
        raise ModelFileError(
            f"{path}: a Keras file of another program, without fakereal's metadata: add --foreign-model to use it, and"
            " --foreign-output and --foreign-scale, which say what its outputs and pixels mean"
        )
    return metadata


def read_metadata(path: Path) -> Metadata | None:
    """Return the metadata of a model file, or None for a Keras file of another program.

    Raises:
        ModelFileError: missing, not a Keras file, or metadata that this version can't read.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file; train_model.py makes one")
    _refuse_exported(path)
    try:
        text = _read_metadata_text(path)
    except DAMAGE as error:
        raise ModelFileError(f"{path}: not a Keras model file ({error})") from error
    except ModuleNotFoundError as error:
        raise ModelFileError(
            f"{path}: needs TensorFlow, as no {path.stem}{EXPORTED_SUFFIX} made from it lies beside it:"
            f" pip install -r requirements.txt here, or run `fakereal export {path.name} --format litert` where it is"
            " installed"
        ) from error
    return None if text is None else from_text(text, path)


def _read_metadata_text(path: Path) -> str | None:
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return archive.read(_MEMBER).decode() if _MEMBER in archive.namelist() else None
    import h5py  # prediction with an exported network needs none

    with h5py.File(path, "r") as file:
        return file[_DATASET][()].decode() if _DATASET in file else None


def write_metadata(path: Path, text: str) -> None:
    """Add metadata, as `to_text` returns it, to a Keras file that has none."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(_MEMBER, text)
        return
    import h5py

    with h5py.File(path, "a") as file:
        file[_DATASET] = text


def to_text(metadata: Metadata) -> str:
    """Return the metadata as the JSON that is stored in a model file."""
    plain = {
        each.name: getattr(metadata, each.name)
        for each in dataclasses.fields(Metadata)
        if each.name not in ("config", "preprocessing", "decision", "prototypes")
    }
    tree = {
        "format": FORMAT,
        "network": metadata.network,
        "image_size_px": metadata.preprocessing.image_size_px,
        "preprocessing": metadata.preprocessing.fingerprint,
        "class_order": list(NAMES),
        "output": "p_real",
        "decision": dataclasses.asdict(metadata.decision),
        "prototypes": metadata.prototypes and dataclasses.asdict(metadata.prototypes),
        "config": configuration.as_dict(metadata.config),
        **plain,
    }
    return json.dumps(tree, allow_nan=False)


def from_text(text: str, path: Path) -> Metadata:
    """Return the metadata that `to_text` wrote.

    Args:
        text: JSON.
        path: where it was read, for errors.

    Raises:
        ModelFileError: damaged, or of a later version.
    """
    try:
        tree = json.loads(text)
        if tree["format"] != FORMAT:
            raise ModelFileError(
                f"{path}: expected model file format {FORMAT}, found {tree['format']}: update fakereal"
            )
        decision, prototypes = tree["decision"], tree.get("prototypes")  # which files of earlier versions don't have
        sizes = decision.get("shorter_side_px")
        return Metadata(
            config=configuration.from_dict(tree["config"], str(path)),
            preprocessing=Preprocessing.from_fingerprint(tree["preprocessing"]),
            decision=DecisionRule(
                decision["threshold"], decision["temperature"], tuple(decision["band"]), sizes and tuple(sizes)
            ),
            prototypes=prototypes and Prototypes.from_json(prototypes),
            history=tuple(tree["history"]),
            foreign=tree.get("foreign", {}),
            **{key: tree[key] for key in ("base_weights", "data", "metrics", "versions")},
        )
    except ConfigError as error:
        made = tree.get("versions", {}).get("fakereal", "an unknown version")
        raise ModelFileError(
            f"{path}: made by fakereal {made} with a setting that this version does not know ({error}): update fakereal"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: its metadata is damaged ({error})") from error
    except FakeRealError as error:
        raise ModelFileError(f"{path}: {error}") from error


def weights_sha256(choice: str) -> str:
    """Return the SHA-256 of the file that `Config.weights` names or may fall back to; empty where there is none.

    It identifies a training run better than the path, where other weights may have been written since.
    """
    path = PRETRAINED if choice in ("auto", "pretrained") else Path(choice)
    return sha256_of(path) if path.is_file() else ""
