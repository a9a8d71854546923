"""Fixtures of the training tests: tiny sets that are quick to learn, and trainings in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fakereal import config
from fakereal.config import AugmentationConfig, TrainingConfig


@pytest.fixture(scope="session")
def make_set() -> Callable[..., Path]:
    """A function that writes images whose fakes carry a checkerboard: easy to learn, and no two images are alike."""

    def make(folder: Path, count: int = 40, size: int = 32) -> Path:
        rng = np.random.default_rng(0)
        board = (np.indices((size, size)) // 2).sum(axis=0)[..., None] % 2 * 60
        for name in ("fake", "real"):
            (folder / name).mkdir(parents=True)
            for number in range(count):
                smooth = Image.fromarray(rng.integers(40, 180, (5, 5, 3), dtype=np.uint8)).resize((size, size))
                array = np.asarray(smooth) + (board if name == "fake" else 0)
                Image.fromarray(array.astype(np.uint8)).save(folder / name / f"{number}.png")
        return folder

    return make


@pytest.fixture(scope="module")
def images(make_set: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 images, half of them fake."""
    return make_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="session")
def train_here() -> Callable[..., Any]:
    """A function that trains a tiny cnn in this process; it returns what the run leaves behind."""
    from fakereal.training import run

    def train(data: Path, output: Path, weights: str = "none", **more: Any) -> Any:
        still = AugmentationConfig(horizontal_flip=False, rotation_degrees=0.0)
        whole = config.Config(
            32,
            weights,
            data=config.DataConfig(str(data), cache_dir="none"),
            network=config.NetworkConfig(name="cnn", filters=(4,)),
            augmentation=still,
            training=TrainingConfig(**{"epochs": 2, "fine_tune": "all", "batch_size": 16, **more}),
        )
        return run.train_and_report(whole, output)

    return train
