"""Refuses configurations of the right shape that can't be meant, before anything takes time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fakereal.errors import ConfigError

if TYPE_CHECKING:
    from fakereal.config import ClusterConfig, Config, NetworkConfig, PhaseConfig, TrainingConfig

SIZES_PX = (32, 1024)
"""Smallest and largest width of the pictures that a network takes."""


def expect(good: bool, value: Any, where: str, expected: str) -> Any:
    """Returns the value where it is good, else raises ConfigError with the place and what was expected there."""
    if not good:
        raise ConfigError(f"{where}: expected {expected}, found {value!r}")
    return value


def check(config: Config) -> None:
    """Raises ConfigError, which names the key, where a value of the right type can't be meant."""
    _in_range(config, 0, 2**32 - 1, "seed")
    _in_range(config, *SIZES_PX, "image_size")
    _in_range(config.neutralize, 8, 4096, "side_px")
    _in_range(config.neutralize, 1, 100, "quality")
    _in_range(config.augmentation.resaving, 0.0, 1.0, *vars(config.augmentation.resaving))
    _in_range(config.augmentation, 0.0, 180.0, "rotation_degrees")
    _in_range(config.augmentation, 0.0, 0.5, "shift", "brightness")
    shares = config.data.shares
    good = len(shares) == 3 and min(shares) > 0 and abs(sum(shares) - 1) < 1e-6
    expect(good, list(shares), "data.shares", "three numbers above 0 that add up to 1, for train, val and test")
    _in_range(config.data, 0.001, 10**6, "cache_gb")
    _in_range(config.report, 0, 10**9, "resave_images")
    _check_cluster(config.cluster)
    _check_network(config.network, config.image_size)
    _check_training(config.training)
    _check_phases_alone(config.training)
    for number, phase in enumerate(config.training.phases):
        _check_phase(config, phase, f"training.phases[{number}]")


def _check_network(network: NetworkConfig, image_size: int) -> None:
    _in_range(network, 0.0, 0.95, "dropout")
    for units in (*(network.dense or ()), *network.filters):
        expect(units >= 1, units, "network.dense and filters", "whole numbers of at least 1")
    _check_depth(network, image_size)
    folded = network.name.startswith("efficientnet") and network.normalization == "unit"
    expect(not folded, "unit", "network.normalization", f"auto or imagenet for {network.name}")


def _check_depth(network: NetworkConfig, image_size: int) -> None:
    """Each block of the plain CNN halves the maps: something must be left of them."""
    if network.name == "cnn":
        deepest = image_size.bit_length() - 1
        blocks = f"at most {deepest} blocks for {image_size} pixels"
        expect(len(network.filters) <= deepest, len(network.filters), "network.filters", blocks)


def _check_cluster(cluster: ClusterConfig) -> None:
    addresses = cluster.addresses
    for each in addresses:
        name, _, port = each.rpartition(":")
        good = name and port.isascii() and port.isdigit() and 0 < int(port) < 2**16
        expect(good, each, "cluster.hosts (--hosts)", "HOST:PORT,HOST:PORT, one a process")
    expect(len(set(addresses)) == len(addresses), cluster.hosts, "cluster.hosts (--hosts)", "a port for each process")
    expect(
        0 <= cluster.index < max(1, len(addresses)),
        cluster.index,
        "cluster.index (--host-index)",
        f"0 to {len(addresses) - 1}, counting --hosts from 0" if addresses else "0, as there are no --hosts",
    )


def _check_training(training: TrainingConfig) -> None:
    _in_range(training, 1, 10**6, "epochs", "batch_size", "fine_tune_epochs", "plateau_patience", "validation_steps")
    _in_range(training, 0, 10**6, "patience", "views")
    _in_range(training, 1e-9, 10.0, "learning_rate", "fine_tune_learning_rate")
    _in_range(training, 0.0, 1.0, "warmup", "weight_decay", "source_balance", "plateau_factor")
    _in_range(training, 0.0, 0.5, "label_smoothing")
    _in_range(training, 0.0, 0.99999, "average_weights")
    decays = training.optimizer == "adamw" or training.weight_decay == 0
    expect(decays, training.optimizer, "training.optimizer", "adamw, as weight_decay is given")
    settled = training.schedule != "plateau" or training.warmup == 0
    expect(settled, training.warmup, "training.warmup", "0, as the schedule is plateau")


def _check_phases_alone(training: TrainingConfig) -> None:
    """Refuses keys that have no effect, as phases say the same for themselves."""
    for key in ("epochs", "learning_rate", "fine_tune", "fine_tune_epochs", "fine_tune_learning_rate"):
        value = getattr(training, key)
        without = not training.phases or value == getattr(type(training), key)
        expect(without, value, f"training.{key}", "none beside training.phases: say it in each of them")


def _check_phase(config: Config, phase: PhaseConfig, where: str) -> None:
    expect(phase.epochs >= 1, phase.epochs, f"{where}.epochs", "a whole number of at least 1")
    expect(0 < phase.learning_rate <= 10, phase.learning_rate, f"{where}.learning_rate", "a number above 0, up to 10")
    for key in ("batch_size", "images_per_epoch"):
        value = getattr(phase, key)
        expect(value is None or value >= 1, value, f"{where}.{key}", "a whole number of at least 1")
    size = phase.image_size or config.image_size
    expect(SIZES_PX[0] <= size <= SIZES_PX[1], size, f"{where}.image_size", f"{SIZES_PX[0]} to {SIZES_PX[1]} pixels")
    _check_depth(config.network, size)
    same = not config.network.flattens or size == config.image_size
    expect(same, size, f"{where}.image_size", f"{config.image_size}, as flattened maps fit one size only")


def _in_range(section: Any, low: float, high: float, *keys: str) -> None:
    for key in keys:
        value = getattr(section, key)
        expect(value is None or low <= value <= high, value, key, f"{low:g} to {high:g}")
