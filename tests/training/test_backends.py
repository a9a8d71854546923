"""The network is Keras 3 alone: what one backend trained, another predicts alike."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PREDICT = """
import sys
from pathlib import Path
import numpy as np
from fakereal.runtime import start_keras
start_keras()
import keras
from fakereal.model import model_file
detector = model_file.load(Path("models/pretrained.h5"))
size = detector.metadata.preprocessing.image_size_px
images = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), dtype=np.uint8)
assert keras.backend.backend() == sys.argv[1]
np.save(sys.argv[2], detector.p_real(images))
"""


def p_real(backend: str, folder: Path) -> np.ndarray:
    output = folder / f"{backend}.npy"
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": "."}
    subprocess.run([sys.executable, "-c", PREDICT, backend, output], cwd=ROOT, env=environment, check=True)
    return np.load(output)


@pytest.mark.slow
def test_the_shipped_model_predicts_under_jax_what_it_predicts_under_tensorflow(tmp_path):
    pytest.importorskip("jax", reason="jax is not installed (requirements-scale.txt)")
    largest = np.abs(p_real("jax", tmp_path) - p_real("tensorflow", tmp_path)).max()
    assert largest < 1e-5
