"""The files that weights come from, without Keras: its import takes seconds."""

from __future__ import annotations

from pathlib import Path

from fakereal.files import sha256_of

PRETRAINED = Path(__file__).resolve().parents[2] / "models" / "pretrained.h5"
"""The shipped detector, whose base is the offline start for transfer learning."""


def weights_sha256(choice: str) -> str:
    """Returns the SHA-256 of the file that a choice of weights (`Config.weights`) may take; empty where there is none.

    A path says too little about a training: another one may have written other weights there.
    """
    path = PRETRAINED if choice in ("auto", "pretrained") else Path(choice)
    return sha256_of(path) if path.is_file() else ""
