"""A plain Keras training script, a frozen EfficientNetB0 in a Sequential: the baseline of training_speed.py.

It follows the Keras guide on transfer learning, with parallel decoding, prefetching and batches of 32; images are
decoded and augmented in every epoch.

    python benchmarks/plain_training.py DATA BASE.weights.h5 --epochs 25 --fine-tune 0

DATA holds train/, val/ and test/ with fake/ and real/. The last line of its output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

IMAGE_SIZE = (224, 224)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which the base expects


def batches(folder: str, shuffle: bool, autotune: bool):
    """Return batches of images in 0..255 and labels, 0 fake and 1 real."""
    dataset = keras.utils.image_dataset_from_directory(
        folder, label_mode="binary", image_size=IMAGE_SIZE, batch_size=32, shuffle=shuffle, seed=0, verbose=False
    )
    options = tf.data.Options()
    options.autotune.enabled = autotune
    return dataset.prefetch(2).with_options(options)


def network(base: keras.Model) -> keras.Sequential:
    """Return augmentation, normalization, base, dropout and one output."""
    return keras.Sequential(
        [
            keras.Input((*IMAGE_SIZE, 3)),
            layers.RandomFlip("horizontal"),
            layers.RandomRotation(15 / 360),
            layers.Rescaling([1 / std for std in STD], [-255 * m / s for m, s in zip(MEAN, STD, strict=True)]),
            base,
            layers.Dropout(0.2),
            layers.Dense(1, activation="sigmoid"),
        ]
    )


def fit(model: keras.Model, train, val, epochs: int, learning_rate: float) -> float:
    """Train and restore the best epoch; return the median of the epochs' seconds."""
    model.compile(keras.optimizers.Adam(learning_rate), "binary_crossentropy", metrics=["accuracy"])
    best = keras.callbacks.EarlyStopping("val_loss", patience=epochs, restore_best_weights=True)
    times = [time.monotonic()]
    clock = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: times.append(time.monotonic()))
    model.fit(train, validation_data=val, epochs=epochs, callbacks=[best, clock], verbose=2)
    return float(np.median(np.diff(times)))


def main() -> None:
    """Train, measure on the test images, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("weights")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--fine-tune", type=int, default=0, help="epochs with the base's last 20 layers")
    parser.add_argument("--no-autotune", action="store_true", help="switch tf.data's autotuning off")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="plain.keras")
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    base = keras.applications.EfficientNetB0(
        include_top=False, weights=None, input_shape=(*IMAGE_SIZE, 3), pooling="avg"
    )
    base.load_weights(options.weights)
    base.trainable = False
    autotune = not options.no_autotune
    train, val = batches(f"{options.data}/train", True, autotune), batches(f"{options.data}/val", False, autotune)
    model = network(base)
    epoch_s = fit(model, train, val, options.epochs, 1e-3)
    if options.fine_tune:
        base.trainable = True
        for number, layer in enumerate(base.layers):
            layer.trainable = number >= len(base.layers) - 20 and not isinstance(layer, layers.BatchNormalization)
        epoch_s = fit(model, train, val, options.fine_tune, 1e-4)
    test = batches(f"{options.data}/test", False, autotune)
    labels = np.concatenate([y for _, y in test]).ravel() > 0.5
    predicted = model.predict(test, verbose=0).ravel() > 0.5
    model.save(options.output)
    hits = [(predicted == label)[labels == label].sum() for label in (False, True)]
    f1 = [
        2 * hit / ((predicted == label).sum() + (labels == label).sum())
        for hit, label in zip(hits, (False, True), strict=True)
    ]
    figures = {"f1_macro": np.mean(f1), "accuracy": np.mean(predicted == labels), "epoch_s": epoch_s}
    print(json.dumps({name: round(float(figure), 4) for name, figure in figures.items()}))


if __name__ == "__main__":
    main()
