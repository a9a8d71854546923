"""The card of an exported network: JSON beside its file that says how to use it. Written and read here.

With its card, an exported `.tflite` is a model file of its own. One that lies beside the Keras file it was exported
from runs in its place, so that prediction needs neither a conversion nor TensorFlow.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fakereal import __version__
from fakereal.engines import parity
from fakereal.engines.formats import RUNTIMES, Network
from fakereal.errors import ModelFileError
from fakereal.labels import NAMES
from fakereal.model.metadata import EXPORTED_SUFFIX, Metadata, from_text, to_text
from fakereal.preprocessing import CROP_CENTERS, LONGEST_PX, Preprocessing
from fakereal.runtime import log

MAX_INT8_DIFFERENCE = 0.02
"""Largest difference of p_real between two machines for an int8 network, whose kernels round differently."""

_FLOAT32, _INT8 = "float32", "int8"


@dataclass(frozen=True)
class OriginalModel:
    """The model file that a network was exported from."""

    sha256: str
    foreign: bool  # a Keras file of another program


@dataclass(frozen=True)
class ExportedModel:
    """An exported network and what its card says of it."""

    path: Path
    content: bytes
    metadata: Metadata
    original: OriginalModel
    precision: str  # float32 or int8
    expected: np.ndarray  # p_real of `parity.synthetic_images`, float64 (n,), where it was exported
    limit: float  # largest difference from `expected`

    @property
    def sha256(self) -> str:
        """The SHA-256 of the network's file."""
        return hashlib.sha256(self.content).hexdigest()

    def difference(self, network: Network) -> float:
        """Return by how much a running network differs from where it was exported: the largest difference of p_real."""
        images = parity.synthetic_images(self.metadata.preprocessing.image_size_px)
        return float(np.abs(network.p_real(images) - self.expected).max())


def card_path(network: Path) -> Path:
    """Return where the card of an exported network lies."""
    return network.with_name(f"{network.name}.json")


def files_of(model: Path) -> list[Path]:
    """Return the files that belong to a model file: itself and, where they exist, the exported network and its card."""
    exported = model.with_suffix(EXPORTED_SUFFIX)
    return [model, *(path for path in (exported, card_path(exported)) if path != model and path.is_file())]


def read_exported(path: Path) -> ExportedModel:
    """Return an exported network with its card.

    Raises:
        ModelFileError: one of the two files is missing or damaged, or they don't belong together.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file; `fakereal export MODEL --format litert` makes one")
    content, card = path.read_bytes(), _read_card(path)
    try:
        if hashlib.sha256(content).hexdigest() not in card["files"].values():
            raise ModelFileError(f"{path}: not the network that {card_path(path).name} describes: export it again")
        if "fakereal_metadata" not in card:
            raise ModelFileError(f"{path}: exported by an earlier version of fakereal: export it again")
        metadata = from_text(json.dumps(card["fakereal_metadata"]), card_path(path))
        original = OriginalModel(card["model_sha256"], card["foreign_model"])
        expected = np.array(card["self_test"]["p_real"], np.float64)
        return ExportedModel(
            path, content, metadata, original, card["precision"], expected, float(card["self_test"]["limit"])
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(f"{card_path(path)}: a damaged card ({error!r}): export the model again") from error


def _read_card(path: Path) -> dict[str, Any]:
    card = card_path(path)
    try:
        return json.loads(card.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFileError(
            f"{path}: expected its card {card.name} beside it, found none: `fakereal export` writes both, keep them"
            " together"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{card}: a damaged card ({error}): export the model again") from error


def find_beside(model: Path, sha256: str) -> ExportedModel | None:
    """Return the float32 network beside a Keras model file that was exported from it; log why one there is not used.

    Args:
        model: the Keras file.
        sha256: of its content.
    """
    path = model.with_suffix(EXPORTED_SUFFIX)
    if not path.is_file():
        return None
    try:
        exported = read_exported(path)
    except ModelFileError as error:
        log(f"not used: {error}")
        return None
    if exported.original.sha256 != sha256:
        log(f"not used: {path} was exported from another {model.name}")
        return None
    return exported if exported.precision == _FLOAT32 and not exported.original.foreign else None


def make_card(
    name: str,
    metadata: Metadata,
    original: OriginalModel,
    files: dict[Path, bytes],
    gate: parity.ParityResult,
    p_real: np.ndarray,
    int8: bool = False,
) -> bytes:
    """Return what a program needs to use an exported network correctly, as JSON.

    Args:
        name: the format, one of `formats.RUNTIMES`.
        metadata: of the model.
        original: the model file.
        files: the network's, with their content.
        gate: the comparison with Keras that it passed.
        p_real: outputs of the exported network for `parity.synthetic_images`.
        int8: whether it was quantized.
    """
    runtime, size = RUNTIMES[name], metadata.preprocessing.image_size_px
    reduction = metadata.preprocessing.reduction
    tree = {
        "format": name,
        "precision": _INT8 if int8 else _FLOAT32,
        "files": {path.name: hashlib.sha256(content).hexdigest() for path, content in files.items()},
        "input": {
            "shape": [1, size, size, 3],
            "type": "float32",
            "meaning": _input_meaning(metadata.preprocessing),
            "preprocessing": metadata.preprocessing.fingerprint,
            "views": {
                "square": metadata.preprocessing.square,
                "crops": CROP_CENTERS[: metadata.preprocessing.crops],
                "longest_px": LONGEST_PX,
                "decode_px": reduction.shortest_px or reduction.longest_px,
                "decode_side": "shorter" if reduction.shortest_px else "longer",
            },
        },
        "output": _output(metadata, int8),
        "class_order": list(NAMES),
        "decision": {
            **asdict(metadata.decision),
            "meaning": "p = p_real, clipped to 1e-7 .. 1 - 1e-7;"
            " calibrated_p_fake = 1 - 1 / (1 + exp(-log(p / (1 - p)) / temperature));"
            " fake where calibrated_p_fake is at least threshold; uncertain where it lies inside the band, or the"
            " image's shorter side outside shorter_side_px, in pixels (null: any)",
        },
        "network": metadata.network,
        "gate": {"words": gate.description, **gate.figures},
        "self_test": {
            "meaning": "p_real of the images that fakereal.engines.parity.synthetic_images makes",
            "p_real": [float(p) for p in p_real],
            "limit": MAX_INT8_DIFFERENCE if int8 else gate.figures["limit"],
        },
        "model_sha256": original.sha256,
        "foreign_model": original.foreign,
        "versions": {"fakereal": __version__, runtime.package: runtime.version},
        "fakereal_metadata": json.loads(to_text(metadata)),
    }
    return (json.dumps(tree, indent=2, allow_nan=False) + "\n").encode()


def _output(metadata: Metadata, int8: bool) -> dict[str, Any]:
    """Describe the network's output. Quantized, the score would share p_real's scale, so an int8 network has none."""
    p_real = "p_real, 0..1: the probability of real"
    if metadata.prototypes is None or int8:
        return {"shape": [1, 1], "type": "float32", "meaning": p_real}
    score = "the out-of-distribution score: above 1, the image is unlike the training images and the verdict uncertain"
    return {"shape": [1, 2], "type": "float32", "meaning": f"{p_real}; then {score}"}


def _input_meaning(preprocessing: Preprocessing) -> str:
    """Describe how an image file becomes the network's input."""
    neutral = preprocessing.neutral
    image = "the whole image"
    if neutral:
        image = (
            f"the center square at {neutral.side_px} x {neutral.side_px} pixels, saved as a JPEG of quality"
            f" {neutral.quality}, 4:2:0"
        )
    fit = "its center square resized" if preprocessing.square else "stretched to the square"
    return (
        f"RGB of 0..255, not scaled; {image}, upright by EXIF, over white where transparent, 16-bit gray scaled to 8,"
        " a JPEG decoded at the smallest scale of 1, 1/2, 1/4, 1/8 that has at least"
        f" {_reduction_meaning(preprocessing)}, {fit} by Pillow's bicubic filter"
        f"{_crops_meaning(preprocessing)}"
    )


def _reduction_meaning(preprocessing: Preprocessing) -> str:
    """Describe the size that a large JPEG keeps when it is decoded."""
    reduction = preprocessing.reduction
    if reduction.resized_px:
        return f"{reduction.longest_px} pixels on its longer side, and resampled to {reduction.resized_px} there"
    resampled = " (and resampled, where that size is no whole number, so that it is not stretched)"
    return f"{reduction.shortest_px} pixels per side{resampled if reduction.exact else ''}"


def _crops_meaning(preprocessing: Preprocessing) -> str:
    """Describe the crops that are predicted beside the whole image, empty where there are none."""
    if not preprocessing.crops:
        return ""
    size, places = preprocessing.image_size_px, CROP_CENTERS[: preprocessing.crops]
    return (
        f"; run once more for each crop of {size} x {size} pixels, where the image (bicubic, reduced to at most"
        f" {LONGEST_PX} pixels long) has at least {size} on the shorter and more on the longer side:"
        f" at {', '.join(map(str, places))} of the room from the left and top; p_real is the sigmoid of the mean logit"
    )
