"""Errors that users can resolve: one line with what is wrong and what to do about it."""


class FakeRealError(Exception):
    """A problem that the user can resolve; the commands print it as one line and exit with code 2."""


class ConfigError(FakeRealError):
    """An invalid option or configuration file."""


class DataError(FakeRealError):
    """An unusable folder, file, label or set of images."""


class ModelFileError(FakeRealError):
    """A model file that is missing, damaged, foreign or made for another preprocessing."""


class EngineRefused(FakeRealError):
    """An engine or format that doesn't fit a model; unless the user named it, the next one is tried."""


class ImageRefused(FakeRealError):
    """An image that can't be read; long jobs list it and continue.

    Attributes:
        reason: for programs, one of `REASONS`; the message is for people.
    """

    REASONS = ("missing", "empty", "truncated", "not_an_image", "too_large", "unsupported", "unreadable")

    def __init__(self, reason: str, message: str) -> None:
        if reason not in self.REASONS:
            raise ValueError(f"unknown reason {reason!r}")
        super().__init__(message)
        self.reason = reason
