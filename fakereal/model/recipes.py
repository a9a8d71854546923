"""The five classic experiments: a plain network, and four changes of one thing each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fakereal.errors import ConfigError
from fakereal.files import write_whole

BASE: dict[str, Any] = {
    "image_size": 64,
    "weights": "none",
    "network": {"name": "cnn", "filters": [16, 32, 64], "activation": "relu", "dense": [64], "dropout": 0.2},
    "augmentation": {"rotation_degrees": 15.0, "shift": 0.1, "horizontal_flip": True},
    "training": {
        "epochs": 20,
        "batch_size": 32,
        "optimizer": "adam",
        "learning_rate": 0.001,
        "fine_tune": "all",
        "validation_steps": 23,
    },
}
"""Adam, 20 epochs, ReLU, 23 validation steps."""

CHANGES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "base": ("what the others are held against", {}),
    "epoch": ("half the epochs", {"training": {"epochs": 10}}),
    "sgd": ("stochastic gradient descent in place of Adam", {"training": {"optimizer": "sgd"}}),
    "sigmoid": ("sigmoid in place of ReLU", {"network": {"activation": "sigmoid"}}),
    "val": ("fewer validation steps", {"training": {"validation_steps": 10}}),
}
"""What each experiment is, in words, and in keys."""


def experiment(name: str) -> dict[str, Any]:
    """Returns the configuration of one of `CHANGES` as a tree for YAML."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in BASE.items()}
    for section, keys in CHANGES[name][1].items():
        tree[section].update(keys)
    return tree


def write(folder: Path) -> list[Path]:
    """Writes the experiments as YAML files.

    Raises:
        ConfigError: one of them is there already with other content; nothing is written then.
    """
    texts = {folder / f"{name}.yaml": _text(name, folder) for name in CHANGES}
    for path in texts:
        if path.exists():
            raise ConfigError(f"{path}: expected no file there, found one: remove it, or name another folder")
    for path, text in texts.items():
        write_whole(path, text.encode())
    return list(texts)


def _text(name: str, folder: Path) -> str:
    body = yaml.safe_dump(experiment(name), sort_keys=False, default_flow_style=None)
    return (
        f"# python train_model.py --config {folder.as_posix()}/{name}.yaml --data data/clean\n"
        "# Expect: not measured on your pictures yet; `python -m fakereal compare` shows all five side by side.\n"
        f"# {name}: {CHANGES[name][0]}.\n{body}"
    )
