"""The errors that users meet: each is one line that says what was expected, what was found and what to do."""


class FakeRealError(Exception):
    """A problem that the user can put right; doors print it as one line and exit with code 2."""


class ConfigError(FakeRealError):
    """An option or a configuration file that can't be used as it is."""


class DataError(FakeRealError):
    """A folder, a label or a set of images that can't be used as it is."""


class ModelFileError(FakeRealError):
    """A model file that is missing, damaged, foreign or made for another preprocessing."""


class EngineRefused(FakeRealError):
    """An engine or a format that can't be used for a model; unless the user insists, the next one is taken."""


class ImageRefused(FakeRealError):
    """One image that can't be read; long jobs list it and go on.

    Attributes:
        reason: one word for programs, one of `REASONS`. The message is the sentence for people.
    """

    REASONS = ("missing", "empty", "truncated", "not_an_image", "too_large", "unsupported", "unreadable")

    def __init__(self, reason: str, message: str) -> None:
        if reason not in self.REASONS:
            raise ValueError(f"unknown reason {reason!r}")
        super().__init__(message)
        self.reason = reason
