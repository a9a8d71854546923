"""The configuration of a training: nested frozen dataclasses, filled from defaults, then a YAML file, then flags.

Model files contain it: keys may be added, but none may be removed or change its meaning without a new file format;
a key with a new name is translated.
The comment of each field is its description in docs/formats.md (`make docs`).

Checked here and not by msgspec, whose errors name neither the value found nor the nearest key nor both limits of a
range, and which accepts NaN as a number and, where it accepts the text `1e-3` of YAML, also "5" for an integer.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from fakereal import files
from fakereal.errors import ConfigError

TrainScope = Literal["head", "last20", "all"]
FineTune = Literal["auto", "none", "last20", "all"]
Schedule = Literal["constant", "cosine", "plateau"]

SIZES_PX = (32, 1024)
"""Smallest and largest width of the images that a network takes."""


NORMALIZATIONS = {
    "efficientnetb0": ("imagenet",),
    "efficientnetb4": ("imagenet",),
    "vgg16": ("imagenet", "unit"),
    "cnn": ("unit", "imagenet"),
}
"""The normalizations that each network takes; `auto` is the first. EfficientNet divides by 255 itself."""


@dataclass(frozen=True)
class NetworkConfig:
    """The network: its backbone and the head on top of it."""

    name: Literal["efficientnetb0", "efficientnetb4", "vgg16", "cnn"] = "efficientnetb0"
    normalization: Literal["auto", "imagenet", "unit"] = "auto"  # unit: to 0..1; auto: unit for cnn, else imagenet
    pooling: Literal["auto", "avg", "max", "flatten"] = "auto"  # of feature maps; auto: avg, flatten for cnn
    dense: tuple[int, ...] | None = None  # units of dense layers; null: 256 and 128 for vgg16, else none
    activation: Literal["relu", "sigmoid", "tanh", "swish"] = "relu"  # of the dense layers, and of the layers of cnn
    dropout: float = 0.2  # share of the features that are dropped before each dense layer, 0..0.95
    filters: tuple[int, ...] = (16, 32, 64)  # cnn only: filters of each convolution block; their number is the depth

    @property
    def flattens(self) -> bool:
        """Whether the head has weights for every position in the feature maps, which then fit one image size only."""
        return self.pooling == "flatten" or (self.pooling == "auto" and self.name == "cnn")


@dataclass(frozen=True)
class ResavingConfig:
    """Re-saving as on the internet, applied to training images at their own resolution, both classes alike."""

    share: float = 0.0  # share of the training images that are re-saved at all, 0..1
    jpeg: float = 0.5  # of those, the share that is saved as JPEG (or WebP)
    blur: float = 0.2  # of those, the share that is blurred
    rescale: float = 0.3  # of those, the share that is scaled down and up, or up and down
    crop: float = 0.3  # of those, the share that is cropped
    colour: float = 0.2  # of those, the share whose brightness, contrast and saturation change slightly


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of training images, never of validation or test images."""

    horizontal_flip: bool = True  # mirror half of the images
    vertical_flip: bool = False  # turn half of the images upside down
    rotation_degrees: float = 15.0  # rotate by up to this angle either way; corners are filled by reflection
    shift: float = 0.0  # shift by up to this share of width and height either way, 0..0.5
    brightness: float = 0.0  # up to this share brighter or darker, 0..0.5
    resaving: ResavingConfig = field(default_factory=ResavingConfig)


@dataclass(frozen=True)
class PhaseConfig:
    """One phase of a training; each starts from the best weights of the one before."""

    train: TrainScope = "head"  # trainable layers: the head, also the last 20 of the backbone, or all
    epochs: int = 25  # passes over the training images
    learning_rate: float = 1e-3  # of the optimizer, above 0, up to 10
    batch_size: int | None = None  # images per step; null: training.batch_size
    image_size: int | None = None  # pixels; null: the model's image_size; smaller is faster
    images_per_epoch: int | None = None  # null: every training image once; else a random sample, see source_balance
    batch_norm: Literal["auto", "frozen", "learned"] = "auto"  # auto: learned only in a backbone with random weights
    schedule: Schedule | None = None  # of the learning rate; null: training.schedule
    warmup: float | None = None  # share of the steps over which the rate rises from 0, 0..1; null: training.warmup


@dataclass(frozen=True)
class TrainingConfig:
    """Optimizer, schedule, phases and when to stop."""

    epochs: int = 25  # of the first phase: the head, or all layers without a pre-trained backbone
    batch_size: int = 32  # images per step
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"  # sgd: with momentum 0.9
    learning_rate: float = 1e-3  # of the first phase
    schedule: Schedule = "constant"  # of the learning rate, within a phase; all layers are fine-tuned with cosine
    plateau_patience: int = 3  # plateau: epochs without a lower (calibrated) validation loss before the rate falls
    plateau_factor: float = 0.2  # plateau: factor of the rate, 0..1
    warmup: float = 0.0  # share of a phase's steps over which the rate rises from 0, 0..1; all layers fine-tuned: 0.1
    weight_decay: float = 0.0  # adamw only, 0..1
    label_smoothing: float = 0.0  # moves the labels this far from 0 and 1, 0..0.5
    average_weights: float = 0.0  # momentum of a moving average of the weights, such as 0.99; 0: off
    class_weights: bool = False  # weight each class by the inverse of its number of images
    source_balance: float = 0.0  # with images_per_epoch; 0: sample images alike; 1: sources alike, until they run out
    fine_tune: FineTune = "auto"  # layers of a second phase on a pre-trained backbone; auto: what the time limit allows
    time_limit_minutes: float = 15.0  # of all epochs, for the choice that fine_tune: auto makes
    fine_tune_epochs: int = 10  # of the second phase; with auto at most
    fine_tune_learning_rate: float | None = None  # of the second phase; null: 3e-4 for all layers, else 1e-4
    validation_steps: int | None = None  # random batches of validation images per epoch; null: all images
    patience: int = 0  # early stopping: epochs without a lower (calibrated) validation loss; 0: off
    augmented_versions: int = 2  # cached of each image under a frozen backbone, with itself; 0: new in every epoch
    unseen_sources: int | None = None  # groups of sources that are left out in turn, see train.md; null: 5; 0: off
    mixed_precision: bool = False  # compute in bfloat16, which is faster on recent GPUs
    tensorboard: bool = False  # also write the history for TensorBoard, in the run's folder
    phases: tuple[PhaseConfig, ...] = ()  # phases of your own instead of epochs and fine_tune; keys of each:


@dataclass(frozen=True)
class DataConfig:
    """The images, their split, and the cache."""

    path: str = "data/clean"  # folder with the labeled images
    classes: tuple[str, ...] = ()  # what folders count as: `NAME=fake`, `NAME=real` or `NAME=skip` each
    split_folders: tuple[str, ...] = ()  # which split folders are: `NAME=train`, `=val`, `=test` or `=skip` each
    labels_file: str | None = None  # a file with path and label of each image; null: the folders say the class
    split_file: str | None = None  # split.csv of an earlier run; null: by content, see shares
    shares: tuple[float, ...] = (0.6, 0.2, 0.2)  # of train, val and test; a split that folders give is kept
    exclude_sources: tuple[str, ...] = ()  # sources that are not used
    audit: bool = True  # look for shortcuts before training
    cache_dir: str = "auto"  # for decoded images and features; auto: the user's cache folder, none, or a folder
    cache_gb: float = 10.0  # maximum size of the cache; the least recently used files are deleted first

    @property
    def cache_folder(self) -> Path | None:
        """The folder of the caches, None for `none`."""
        if self.cache_dir == "none":
            return None
        return files.cache_folder() if self.cache_dir == "auto" else Path(self.cache_dir).expanduser()


@dataclass(frozen=True)
class NeutralizeConfig:
    """One crop, size and JPEG encoding for every image, in training and prediction."""

    enabled: bool = False  # set by train_model.py --neutralize
    side_px: int | None = None  # side of the square, 8..4096 pixels; null: chosen from the images, and recorded
    quality: int | None = None  # of the JPEG encoding, 1..100; null: chosen from the images, and recorded


@dataclass(frozen=True)
class ViewsConfig:
    """What the network sees of an image, in training and in prediction, see `fakereal.preprocessing`."""

    square: bool = False  # resize the center square, which keeps the aspect ratio; false: stretch the whole image
    crops: int = 0  # native-resolution crops beside the whole image, 0..5; training also draws squares of sizes between


@dataclass(frozen=True)
class ReportConfig:
    """What a training shows besides its figures; no result depends on it."""

    resave_images: int = 150  # random test images for the report's table of re-saves; 0: none
    summary: bool = False  # print the layers of the network before the training
    speed: bool = False  # also measure how many images per second the network predicts on Keras


@dataclass(frozen=True)
class Config:
    """Everything that a result depends on, except the images themselves."""

    image_size: int = 224  # width and height in pixels, 32..1024
    weights: str = "auto"  # of the backbone: auto, imagenet, pretrained, none or a file
    seed: int = 0  # same seed, same machine: same result
    data: DataConfig = field(default_factory=DataConfig)
    neutralize: NeutralizeConfig = field(default_factory=NeutralizeConfig)  # the files' own traits
    views: ViewsConfig = field(default_factory=ViewsConfig)  # of an image: the whole, crops
    network: NetworkConfig = field(default_factory=NetworkConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


_RETIRED = {"cluster"}  # keys that model files of earlier versions carry and that never decided a result
_RENAMED = {"training.views": "training.augmented_versions"}  # in model files and YAML files of earlier versions


def load(path: Path | None, overrides: dict[str, Any] | None = None) -> Config:
    """Return the defaults, changed by a YAML file, changed by flags.

    Args:
        path: the YAML file, or None.
        overrides: dotted keys (`training.epochs`) and values of the flags that were given.

    Raises:
        ConfigError: the file can't be read, or a key or value is invalid; the key is named.
    """
    tree = _translated(_read_yaml(path)) if path else {}
    _parse(Config, tree, str(path))  # what is wrong from here on, the flags brought
    for dotted, value in (overrides or {}).items():
        _set(tree, _RENAMED.get(dotted, dotted).split("."), value)
    config = _parse(Config, tree, "options")
    for key in ("epochs", "learning_rate", "fine_tune", "fine_tune_epochs", "time_limit_minutes", "batch_size"):
        if config.training.phases and f"training.{key}" in (overrides or {}):
            flag = "--" + key.removesuffix("_minutes").replace("_", "-")
            raise ConfigError(
                f"training.{key} ({flag}): has no effect, as {path} lists training.phases: edit them there"
            )
    if "training.time_limit_minutes" in (overrides or {}) and config.training.fine_tune != "auto":
        raise ConfigError(
            f"--time-limit: applies to --fine-tune auto only, found {config.training.fine_tune}:"
            " leave out one of the two"
        )
    check(config)
    return config


def as_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as plain dictionaries and lists, for YAML and JSON."""
    return _plain(dataclasses.asdict(config))


def from_dict(tree: dict[str, Any], where: str) -> Any:
    """Return the configuration from what `as_dict` returned; `where` names the file in errors."""
    kept = {key: value for key, value in tree.items() if key not in _RETIRED}
    return _parse(Config, _translated(kept), where)


def _translated(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree with the present names of renamed keys; where both stand, the old one stays, to be refused."""
    tree = dict(tree)
    for before, now in _RENAMED.items():
        section, old, new = *before.split("."), now.split(".")[1]
        keys = tree.get(section)
        if isinstance(keys, dict) and old in keys and new not in keys:
            tree[section] = {new if key == old else key: value for key, value in keys.items()}
    return tree


def dumps(config: Config) -> str:
    """Return the configuration as YAML."""
    return yaml.safe_dump(as_dict(config), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: can't read the configuration: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected YAML, found {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(tree).__name__}")
    return tree


def _set(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{key}: expected keys and values, found {below!r}")
        tree = below
    tree[keys[-1]] = value


def _parse(kind: Any, value: Any, where: str) -> Any:
    """Return `value` as an object of the type `kind`, with every key and value checked."""
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return expect(value in arguments and not isinstance(value, bool), value, where, " | ".join(map(str, arguments)))
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _parse(arguments[0], value, where)
    if origin is tuple:
        expect(isinstance(value, (list, tuple)), value, where, "a list")
        return tuple(_parse(arguments[0], item, f"{where}[{number}]") for number, item in enumerate(value))
    return _parse_scalar(kind, value, where)


def _parse_dataclass(kind: Any, value: Any, where: str) -> Any:
    expect(isinstance(value, dict), value, where, "keys and values")
    kinds = typing.get_type_hints(kind)
    for key in value:
        if key not in kinds:
            near = difflib.get_close_matches(str(key), kinds, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(kinds)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
    return kind(**{key: _parse(kinds[key], item, f"{where}: {key}") for key, item in value.items()})


def _parse_scalar(kind: type, value: Any, where: str) -> Any:
    if kind is bool:
        return expect(isinstance(value, bool), value, where, "true or false")
    if isinstance(value, bool):  # True is an int to Python, never to a user
        return expect(False, value, where, f"a value of type {kind.__name__}")
    if kind is float:
        try:
            number = float(value)  # PyYAML reads 1e-3 as a string
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        expect(math.isfinite(number), value, where, "a number")
        return number
    return expect(isinstance(value, kind), value, where, {int: "a whole number", str: "text"}[kind])


def expect(good: bool, value: Any, where: str, expected: str) -> Any:
    """Return the value if it is good, else raise ConfigError with the key and what was expected."""
    if not good:
        raise ConfigError(f"{where}: expected {expected}, found {value!r}")
    return value


def check(config: Config) -> None:
    """Raise ConfigError, which names the key, where a value has the right type but an invalid range or combination."""
    _in_range(config, 0, 2**32 - 1, "seed")
    _in_range(config, *SIZES_PX, "image_size")
    _in_range(config.neutralize, 8, 4096, "side_px")
    _in_range(config.views, 0, 5, "crops")
    _in_range(config.neutralize, 1, 100, "quality")
    _in_range(config.augmentation.resaving, 0.0, 1.0, *vars(config.augmentation.resaving))
    _in_range(config.augmentation, 0.0, 180.0, "rotation_degrees")
    _in_range(config.augmentation, 0.0, 0.5, "shift", "brightness")
    shares = config.data.shares
    good = len(shares) == 3 and min(shares) > 0 and abs(sum(shares) - 1) < 1e-6
    expect(good, list(shares), "data.shares", "three numbers above 0 that add up to 1, for train, val and test")
    _in_range(config.data, 0.001, 10**6, "cache_gb")
    _in_range(config.report, 0, 10**9, "resave_images")
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
    known = ("auto", *NORMALIZATIONS[network.name])
    expected = f"{' or '.join(known)} for {network.name}"
    expect(network.normalization in known, network.normalization, "network.normalization", expected)


def _check_depth(network: NetworkConfig, image_size: int) -> None:
    """Check the depth of the plain CNN: each block halves the feature maps, and one pixel must remain."""
    if network.name == "cnn":
        deepest = image_size.bit_length() - 1
        blocks = f"at most {deepest} blocks for {image_size} pixels"
        expect(len(network.filters) <= deepest, len(network.filters), "network.filters", blocks)


def _check_training(training: TrainingConfig) -> None:
    _in_range(training, 1, 10**6, "epochs", "batch_size", "fine_tune_epochs", "plateau_patience", "validation_steps")
    _in_range(training, 0, 10**6, "patience", "augmented_versions")
    _in_range(training, 1e-9, 10.0, "learning_rate", "fine_tune_learning_rate")
    _in_range(training, 0.0, 10**6, "time_limit_minutes")
    _in_range(training, 0, 1000, "unseen_sources")
    expect(training.unseen_sources != 1, 1, "training.unseen_sources", "0 or at least 2")
    _in_range(training, 0.0, 1.0, "warmup", "weight_decay", "source_balance", "plateau_factor")
    _in_range(training, 0.0, 0.5, "label_smoothing")
    _in_range(training, 0.0, 0.99999, "average_weights")
    decays = training.optimizer == "adamw" or training.weight_decay == 0
    expect(decays, training.optimizer, "training.optimizer", "adamw, as weight_decay is given")
    compatible = training.schedule != "plateau" or training.warmup == 0
    expect(compatible, training.warmup, "training.warmup", "0, as the schedule is plateau")


def _check_phases_alone(training: TrainingConfig) -> None:
    """Refuse keys that have no effect, since each phase has its own."""
    for key in ("epochs", "learning_rate", "fine_tune", "time_limit_minutes", "fine_tune_epochs",
                "fine_tune_learning_rate"):  # fmt: skip
        value = getattr(training, key)
        without = not training.phases or value == getattr(type(training), key)
        expect(without, value, f"training.{key}", "none beside training.phases: say it in each of them")


def _check_phase(config: Config, phase: PhaseConfig, where: str) -> None:
    expect(phase.epochs >= 1, phase.epochs, f"{where}.epochs", "a whole number of at least 1")
    expect(0 < phase.learning_rate <= 10, phase.learning_rate, f"{where}.learning_rate", "a number above 0, up to 10")
    for key in ("batch_size", "images_per_epoch"):
        value = getattr(phase, key)
        expect(value is None or value >= 1, value, f"{where}.{key}", "a whole number of at least 1")
    key, warmup = f"{where}.warmup", phase.warmup
    if warmup is None:
        key, warmup = "training.warmup", config.training.warmup
    expect(0 <= warmup <= 1, warmup, key, "0 to 1")
    compatible = (phase.schedule or config.training.schedule) != "plateau" or warmup == 0
    expect(compatible, warmup, key, f"0, as {where}.schedule is plateau")
    size = phase.image_size or config.image_size
    expect(SIZES_PX[0] <= size <= SIZES_PX[1], size, f"{where}.image_size", f"{SIZES_PX[0]} to {SIZES_PX[1]} pixels")
    _check_depth(config.network, size)
    same = not config.network.flattens or size == config.image_size
    expect(same, size, f"{where}.image_size", f"{config.image_size}, as flattened maps fit one size only")


def _in_range(section: Any, low: float, high: float, *keys: str) -> None:
    for key in keys:
        value = getattr(section, key)
        expect(value is None or low <= value <= high, value, key, f"{low:g} to {high:g}")
