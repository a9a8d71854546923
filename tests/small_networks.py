"""Small networks with random weights, and files of them as train_model.py would save them."""

from pathlib import Path

import numpy as np

from fakereal.config import Config, NetworkConfig
from fakereal.model.calibration import DecisionRule
from fakereal.model.metadata import Metadata
from fakereal.preprocessing import Preprocessing
from fakereal.runtime import start_keras

SIZE_PX = 32
CNN = NetworkConfig(name="cnn", filters=(4, 8))


def built(seed, network=CNN, size=SIZE_PX):
    """A Keras network."""
    start_keras()
    import keras

    from fakereal.model import networks

    keras.utils.set_random_seed(seed)
    return networks.build(network, size)


def write(path, network, size=SIZE_PX, name=CNN) -> Path:
    """Save a network as a model file."""
    from fakereal.model import model_file

    decision = DecisionRule(temperature=1.5, band=(0.49, 0.51))
    metadata = Metadata(Config(image_size=size, network=name), Preprocessing(size), decision)
    model_file.save(path, model_file.Detector(network, metadata))
    return path


def noise_images(count=9, size=SIZE_PX, seed=0):
    """Random images, uint8 (count, size, size, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
