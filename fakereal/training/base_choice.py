"""`--weights auto`: start from the base whose frozen features tell fake from real best on some of the images.

Each base at hand gets a linear probe (Alain and Bengio 2016, arXiv 1610.01644): a logistic regression on its features
of training images, scored on validation images. The training of the head finds these features in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from fakereal.config import Config
from fakereal.dataset.neutralize import preprocessing_of
from fakereal.dataset.scan import labels_of
from fakereal.dataset.split import Split
from fakereal.labels import REAL
from fakereal.model import networks, weights
from fakereal.model.calibration import calibrate, fit_temperature
from fakereal.model.weights import BaseWeights, LoadedBase
from fakereal.runtime import log
from fakereal.training.cache import RowCache
from fakereal.training.features import plain_features
from fakereal.training.loop import balanced_sample, calibrated_loss

TRAIN_IMAGES, VAL_IMAGES = 500, 250
"""Images that a probe is trained and scored on, at most."""

_INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1)  # scikit-learn's C, from strong to weak regularization; the best one counts


def load_best_base(model: keras.Model, config: Config, split: Split, cache: RowCache) -> BaseWeights:
    """Load the best base at hand into a network and return its origin; with several at hand, log how each did.

    Args:
        model: as `networks.build` made it from the configuration, a network with ImageNet weights.
        config: the whole configuration.
        split: the images.
        cache: where decoded images and features are kept.

    Raises:
        ConfigError: no base is available.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    bases = weights.available_bases(model, config.network)
    best = bases[0] if len(bases) == 1 else choose_base(model, bases, config, split, cache)
    model.get_layer(networks.BASE).set_weights(best.weights)
    return best.origin


def choose_base(
    model: keras.Model, bases: list[LoadedBase], config: Config, split: Split, cache: RowCache
) -> LoadedBase:
    """Return the base of the lowest calibrated validation loss of a linear probe, and log all losses in one line.

    The arguments are those of `load_best_base`; `bases` are tried in the model one after the other.
    """
    sizes = ((split.train, TRAIN_IMAGES), (split.val, VAL_IMAGES))
    images = [balanced_sample(records, size, config.seed) for records, size in sizes]
    count = len(split.train) + len(split.val) + len(split.test)
    networks.set_trainable(model, "head", learn_batch_norm=False)
    losses = []
    for each in bases:
        model.get_layer(networks.BASE).set_weights(each.weights)
        preprocessing = preprocessing_of(config, config.image_size)
        features = [plain_features(model, config, preprocessing, cache, count, records) for records in images]
        losses.append(fit_probe(features[0], labels_of(images[0]), features[1], labels_of(images[1])).loss)
    best = bases[int(np.argmin(losses))]
    each_loss = ", ".join(f"{base.origin.description} {loss:.3f}" for base, loss in zip(bases, losses, strict=True))
    log(f"weights: {best.origin.description} has the better features: validation loss of a linear probe {each_loss}"
        f" ({len(images[0])} training, {len(images[1])} validation images; guessing is 0.693)")  # fmt: skip
    return best


@dataclass(frozen=True)
class Probe:
    """A calibrated logistic regression on features."""

    regression: Pipeline
    temperature: float
    loss: float  # calibrated validation loss, in nats

    def p_real(self, features: np.ndarray) -> np.ndarray:
        """Return calibrated p_real, float (n,), from features (n, f)."""
        return calibrate(self.regression.predict_proba(features)[:, REAL], self.temperature)


def fit_probe(train: np.ndarray, train_labels: np.ndarray, val: np.ndarray, val_labels: np.ndarray) -> Probe:
    """Return the logistic regression whose regularization gives the lowest calibrated validation loss.

    Args:
        train: features to learn from, float (n, f).
        train_labels: int (n,), 0 fake, 1 real, both present.
        val: features to choose by, float (m, f).
        val_labels: int (m,), both present.
    """
    scaler = StandardScaler().fit(train)
    train, val, probes = scaler.transform(train), scaler.transform(val), []
    for c in _INVERSE_PENALTIES:
        regression = LogisticRegression(C=c, max_iter=1000).fit(train, train_labels)
        p_real = regression.predict_proba(val)[:, REAL]
        loss, temperature = calibrated_loss(val_labels, p_real), max(1.0, fit_temperature(val_labels, p_real))
        probes.append(Probe(make_pipeline(scaler, regression), temperature, loss))
    return min(probes, key=lambda probe: probe.loss)
