"""From a model file that was opened to a predictor, and what may be told about the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fakereal.cli import say
from fakereal.errors import ConfigError, ModelFileError
from fakereal.model.engines import Opened, explaining
from fakereal.model.metadata import Metadata
from fakereal.model.runtimes import Network
from fakereal.web.limits import Limits
from fakereal.web.predictor import Predictor, start

_CARD = "MODEL_CARD.md"  # beside the shipped detector, and about no other
_SHIPPED = "pretrained.h5"


def from_opened(opened: Opened, path: Path, limits: Limits | None = None) -> Predictor:
    """Returns a started predictor for a model file that was opened."""
    metadata = opened.metadata
    facts = _facts(metadata, path)
    return start(_explaining(opened, path), metadata.preprocessing, metadata.decision, facts, limits, _card(path))


def _explaining(opened: Opened, path: Path) -> Network:
    try:
        return explaining(opened, path)
    except (ConfigError, ModelFileError) as error:  # another backend, or a foreign network: verdicts all the same
        say(f"no heatmaps: {error}")
        return opened.network


def _facts(metadata: Metadata, path: Path) -> dict[str, Any]:
    """Returns what may be told to anybody: no path, no name of a user's folder."""
    return {
        "name": path.stem,
        "network": metadata.config.network.name,
        "image_size_px": metadata.preprocessing.image_size_px,
        "preprocessing": metadata.preprocessing.fingerprint,
        "decision": {
            "threshold": metadata.decision.threshold,
            "temperature": metadata.decision.temperature,
            "band": list(metadata.decision.band),
        },
        "test": _test_figures(metadata.metrics.get("test") or {}),
        "versions": dict(metadata.versions),
    }


def _test_figures(test: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the figures of the training run's test pictures, None where the file has none."""
    names = ("images", "accuracy", "roc_auc", "f1_fake", "f1_real", "uncertain_share")
    return {name: test.get(name) for name in names} if test else None


def _card(path: Path) -> str | None:
    card = path.with_name(_CARD)
    return card.read_text(encoding="utf-8") if path.name == _SHIPPED and card.is_file() else None
