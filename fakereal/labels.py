"""Labels: 0 = fake, 1 = real, everywhere; this module alone knows their names and their folders' names."""

from __future__ import annotations

FAKE, REAL = 0, 1
NAMES = ("fake", "real")
"""`NAMES[label]` is the word users read and write."""

_FOLDER_WORDS = {
    FAKE: (
        "fake fakes ai ai_generated aigenerated generated synthetic synthesized tampered manipulated forged"
        " edited photoshopped spliced deepfake deepfakes gan diffusion sd swapped faceswap altered"
    ).split(),
    REAL: "real reals genuine authentic nature natural original originals pristine photo photos photograph"
    " photographs camera human untouched".split(),
}
_LABEL_OF_WORD = {word: label for label, words in _FOLDER_WORDS.items() for word in words}
_SUFFIXES = ("_images", "_image", "_pictures", "_photos", "_imgs")
_PREFIXES = ("0_", "1_")


def label_of_name(name: str) -> int | None:
    """Returns the label that the word `fake` or `real` stands for (any case), or None for any other word."""
    lowered = name.strip().lower()
    return NAMES.index(lowered) if lowered in NAMES else None


def label_of_folder(name: str) -> int | None:
    """Returns the label that a class folder's name stands for, or None if it isn't a class folder.

    Known are words such as `fake`, `AI`, `generated`, `tampered`, `real`, `genuine`, `nature`, in any case, with
    `-` or a space for `_`, with `_images` or the like behind, and with GenImage's and CNNDetection's `0_`/`1_` before
    them (the word decides, not the digit).
    """
    word = name.strip().lower().replace("-", "_").replace(" ", "_")
    for prefix in _PREFIXES:
        word = word.removeprefix(prefix)
    if word in _LABEL_OF_WORD:
        return _LABEL_OF_WORD[word]
    for suffix in _SUFFIXES:
        if word.endswith(suffix):
            return _LABEL_OF_WORD.get(word.removesuffix(suffix))
    return None


def is_plain_class_folder(name: str) -> bool:
    """Says whether a class folder's name holds the very word fake or real, as in `1_fake` or `real_images`."""
    words = name.strip().lower().replace("-", "_").replace(" ", "_").split("_")
    return any(word in NAMES for word in words)


def known_folder_names() -> str:
    """Returns a short sample of class folder names, for error messages."""
    return "fake, fake_images, ai, generated, tampered ... and real, real_images, genuine, nature ..."
