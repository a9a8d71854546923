"""Two plain Keras scripts that predict a folder: the baseline of prediction_speed.py, which runs them.

The model file is one of train_model.py: a regular Keras file with input SxSx3 in 0..255 and output p_real.

    python benchmarks/plain_prediction.py one FOLDER MODEL.h5 OUT.json
    python benchmarks/plain_prediction.py batches FOLDER MODEL.h5 OUT.json

one: decode, resize and model.predict, one image at a time; batches: image_dataset_from_directory, 32 at a time.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf


def one_by_one(folder: str, model: keras.Model) -> dict[str, float]:
    """Return p_real by file name, by a loop over the files."""
    answers = {}
    for path in sorted(Path(folder).iterdir()):
        image = tf.io.decode_image(tf.io.read_file(str(path)), channels=3, expand_animations=False)
        image = tf.image.resize(image, model.input_shape[1:3])
        answers[path.name] = float(model.predict(image[None], verbose=0)[0, 0])
    return answers


def in_batches(folder: str, model: keras.Model) -> dict[str, float]:
    """Return p_real by file name, as the Keras guides do it."""
    dataset = keras.utils.image_dataset_from_directory(
        folder, labels=None, image_size=model.input_shape[1:3], batch_size=32, shuffle=False, verbose=False
    )
    names = [Path(path).name for path in dataset.file_paths]
    p_real = model.predict(dataset.prefetch(tf.data.AUTOTUNE), verbose=0)
    return dict(zip(names, np.ravel(p_real).tolist(), strict=True))


def main() -> None:
    """Predict and write."""
    way, folder, model_file, output = sys.argv[1:]
    model = keras.models.load_model(model_file, compile=False)
    answers = {"one": one_by_one, "batches": in_batches}[way](folder, model)
    entries = [{"image": name, "prediction": "real" if p > 0.5 else "fake"} for name, p in answers.items()]
    Path(output).write_text(json.dumps(entries, indent=4) + "\n")


if __name__ == "__main__":
    main()
