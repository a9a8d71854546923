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


def residual_base(*_):
    """A base with all that makes a cut hard: joins, BatchNorm and random depth.

    Its 6 blocks have 5 layers each: `last20` leaves the first two and the stem frozen.
    """
    import keras
    from keras import layers

    from fakereal.model import networks

    pixels = keras.Input((SIZE_PX, SIZE_PX, 3))
    x = layers.Rescaling(1 / 255, name="scale")(pixels)
    x = layers.Conv2D(6, 3, strides=4, name="stem")(x)
    for number in range(1, 7):
        y = layers.Conv2D(6, 3, padding="same", name=f"conv_{number}")(x)
        y = layers.BatchNormalization(name=f"norm_{number}")(y)
        y = layers.Activation("swish", name=f"swish_{number}")(y)
        y = layers.Dropout(0.3, name=f"drop_{number}")(y)
        x = layers.Add(name=f"add_{number}")([x, y])
    return keras.Model(pixels, layers.GlobalAveragePooling2D(name="pool")(x), name=networks.BASE)


def brightness_network():
    """A network of low confidence that calls dark images fake, and its configuration: its outputs are predictable."""
    network = NetworkConfig("cnn", filters=(1,), pooling="avg", dropout=0.0)
    model = built(0, network)
    kernel = np.zeros((3, 3, 3, 1))
    kernel[1, 1] = 1 / 3
    model.set_weights([kernel, np.zeros(1), np.full((1, 1), 8.0), np.full(1, -4.0)])
    return model, network


def write(path, network, size=SIZE_PX, name=CNN, prototypes=None) -> Path:
    """Save a network as a model file."""
    from fakereal.model import model_file

    decision = DecisionRule(temperature=1.5, band=(0.49, 0.51))
    metadata = Metadata(Config(image_size=size, network=name), Preprocessing(size), decision, prototypes=prototypes)
    model_file.save(path, model_file.Detector(network, metadata))
    return path


def noise_images(count=9, size=SIZE_PX, seed=0):
    """Random images, uint8 (count, size, size, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
