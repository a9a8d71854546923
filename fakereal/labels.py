"""Labels: 0 = fake, 1 = real, everywhere. Only this module knows their names, and those of class and split folders."""

from __future__ import annotations

FAKE, REAL = 0, 1
NAMES = ("fake", "real")
"""`NAMES[label]` is the word that users read and write."""

_FOLDER_WORDS = {
    FAKE: (
        "fake fakes ai ai_generated aigenerated generated synthetic synthesized tampered manipulated forged"
        " edited photoshopped spliced deepfake deepfakes gan diffusion sd swapped faceswap altered"
    ).split(),
    REAL: "real reals genuine authentic nature natural original originals pristine photo photos photograph"
    " photographs camera human untouched".split(),
}
_LABEL_OF_WORD = {word: label for label, words in _FOLDER_WORDS.items() for word in words}
_SPLIT_OF_FOLDER = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SUFFIXES = ("_images", "_image", "_pictures", "_photos", "_imgs")
_PREFIXES = ("0_", "1_")


def label_of_name(name: str) -> int | None:
    """Return the label of the word `fake` or `real`, in any case; None for any other word."""
    lowered = name.strip().lower()
    return NAMES.index(lowered) if lowered in NAMES else None


def label_of_folder(name: str) -> int | None:
    """Return the label of a class folder by its name; None for any other folder.

    Class folders have names such as `fake`, `AI`, `generated`, `tampered`, `real`, `genuine` or `nature`: in any case,
    with `-` or a space in place of `_`, with a suffix such as `_images`, and with the prefixes `0_` and `1_` of
    GenImage and CNNDetection (the word counts, not the digit).
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
    """Say whether the name of a class folder contains the word fake or real itself, as `1_fake` or `real_images` do."""
    words = name.strip().lower().replace("-", "_").replace(" ", "_").split("_")
    return any(word in NAMES for word in words)


def split_of_folder(name: str) -> str | None:
    """Return `train`, `val` or `test` for a split folder, by its name in any case; None for any other folder."""
    return _SPLIT_OF_FOLDER.get(name.lower())


def known_folder_names() -> str:
    """Return some names of class folders, for error messages."""
    return "fake, fake_images, ai, generated, tampered ... and real, real_images, genuine, nature ..."
