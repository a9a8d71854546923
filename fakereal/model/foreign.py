"""Keras files of other programs: what their pixels and outputs mean, and why some of them can't be read.

Nothing heavy is imported at the top: the commands take their options from here.
"""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fakereal.cli import parse_count
from fakereal.errors import ModelFileError
from fakereal.labels import FAKE, NAMES, REAL

SCALES = {"0-255": (1.0, 0.0), "0-1": (1 / 255, 0.0), "-1-1": (1 / 127.5, -1.0)}
"""Range of the pixels that a network was trained on -> factor and offset from 0..255."""

_ONE_OUTPUT = {"p_real": REAL, "p_fake": FAKE, "logit_real": REAL, "logit_fake": FAKE}
_SOFTMAX = "softmax:"
_SAME = 1e-3  # probabilities closer than this count as equal
_NEARLY_ALL, _ENOUGH_OUTPUTS = 0.95, 4
_TENSORFLOW_LAYERS = ("TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer", "ClassMethod", "InstanceMethod")


@dataclass(frozen=True)
class ForeignModel:
    """What the pixels and the outputs of a Keras file mean, which such a file does not say itself."""

    output: str = "p_real"  # p_real, p_fake, logit_real, logit_fake, or softmax: and the class of each output
    scale: str = "0-255"  # one of SCALES
    size_px: int | None = None  # width and height of the images; None: as the file says

    @property
    def classes(self) -> tuple[int, ...]:
        """The label that each output is the score of."""
        if self.output in _ONE_OUTPUT:
            return (_ONE_OUTPUT[self.output],)
        return tuple(map(NAMES.index, self.output.removeprefix(_SOFTMAX).split(",")))

    @property
    def is_logit(self) -> bool:
        """Whether one output is a logit, any number, in place of a probability."""
        return self.output.startswith("logit_")

    @property
    def key(self) -> str:
        """The settings in one word, for caches and journals."""
        return f"{self.output} {self.scale} {self.size_px or ''}".strip()

    @property
    def note(self) -> str:
        """One line that says how the model is used."""
        return (
            f"foreign model: its output is taken as {_meaning(self.output)}, from RGB pixels in"
            f" {self.scale.replace('-1-1', '-1..1').replace('0-', '0..')} (change it with --foreign-output and"
            " --foreign-scale)"
        )


def _meaning(output: str) -> str:
    kind, _, name = output.partition("_")
    if name:
        return f"the {'logit' if kind == 'logit' else 'probability'} of {name.upper()}"
    return f"the probabilities of {', '.join(output.removeprefix(_SOFTMAX).upper().split(','))}"


@dataclass
class OutputSpread:
    """How the outputs of a network spread, which shows pixels in a range that it was not trained on."""

    count: int = 0
    extreme: int = 0  # outputs of 0 or 1, to within _SAME
    low: float = 1.0
    high: float = 0.0

    @classmethod
    def of(cls, p_real: Iterable[float]) -> OutputSpread:
        """Return the spread of outputs."""
        spread = cls()
        for p in p_real:
            spread.add(p)
        return spread

    def add(self, p_real: float) -> None:
        """Count one output."""
        self.count += 1
        self.extreme += min(p_real, 1.0 - p_real) < _SAME
        self.low, self.high = min(self.low, p_real), max(self.high, p_real)

    @property
    def doubt(self) -> str:
        """One line on what is suspicious about the outputs, with the likely cause; empty where nothing is."""
        if self.count < _ENOUGH_OUTPUTS:
            return ""
        if self.high - self.low < _SAME:
            found = f"all {self.count:,} outputs are the same (p_real {self.low:.3f})"
        elif self.extreme >= _NEARLY_ALL * self.count:
            found = f"{self.extreme:,} of {self.count:,} outputs are 0 or 1"
        else:
            return ""
        return f"{found}: the model probably expects pixels of another range; try another --foreign-scale"


def parse_output(text: str) -> str:
    """Argument type: the meaning of a foreign model's output, see `ForeignModel`."""
    names = text.removeprefix(_SOFTMAX).lower().split(",")
    if text.startswith(_SOFTMAX) and set(names) == set(NAMES):
        return _SOFTMAX + ",".join(names)
    if text in _ONE_OUTPUT:
        return text
    raise argparse.ArgumentTypeError(
        f"expected {', '.join(_ONE_OUTPUT)}, or softmax: with the class of each output such as softmax:fake,real,"
        f" got {text!r}"
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about foreign models to a parser, whose `foreign` is then a ForeignModel; by default None."""
    parser._negative_number_matcher = re.compile(r"-\.?\d")  # as Python 3.14: else `-1-1` would count as an option
    add = parser.add_argument
    add("--foreign-model", action=_ForeignOption, nargs=0, help="accept a Keras model file that another program saved")
    output_help = (
        "meaning of its output: p_real, p_fake, logit_real, logit_fake, or softmax: and the class of each output, such"
        " as softmax:fake,real (default: p_real)"
    )
    add("--foreign-output", action=_ForeignOption, type=parse_output, metavar="MEANING", help=output_help)
    scale_help = "range of the pixel values that it was trained on (default: 0-255)"
    add("--foreign-scale", action=_ForeignOption, choices=tuple(SCALES), help=scale_help)
    size_help = "width and height of its images in pixels, where the file doesn't say"
    add("--foreign-size", action=_ForeignOption, type=parse_count, metavar="PX", help=size_help)


class _ForeignOption(argparse.Action):
    """Collect the options in one ForeignModel; each of them accepts a foreign file."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        self._field = {"foreign_scale": "scale", "foreign_output": "output", "foreign_size": "size_px"}.get(dest)
        super().__init__(option_strings, "foreign", **options)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        before = getattr(namespace, "foreign", None) or ForeignModel()
        namespace.foreign = replace(before, **{self._field: values}) if self._field else before


def check_architecture(path: Path) -> None:
    """Raise ModelFileError where a Keras file holds no network, or code in place of Keras' own layers.

    Only JSON is read. Keras would refuse most of these files too, with long or dangerous advice: to allow the code.
    """
    config, version = _architecture(path)
    if config is None:
        raise ModelFileError(
            f"{path}: holds weights but no network (as save_weights writes it): save the whole model with model.save()"
        )
    for layer in _layers(config):
        if reason := _why_unreadable(layer):
            name = (layer.get("config") or {}).get("name") or layer.get("name") or "?"
            raise ModelFileError(
                f"{path}: layer {name!r} is {reason}: build the model from Keras' own layers and save it again"
                f"{f' (it was saved by Keras {version})' if version else ''}"
            )


def _architecture(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the network's configuration, None where the file has none, and the version of Keras that saved it."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            return config, json.loads(archive.read("metadata.json")).get("keras_version", "")
    import h5py

    with h5py.File(path, "r") as file:
        config, version = (_text(file.attrs.get(key)) for key in ("model_config", "keras_version"))
    return (json.loads(config) if config else None), version


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def _layers(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the configuration of a model and of all layers in it, at any depth."""
    yield entry
    inside = entry.get("config")
    found = inside if isinstance(inside, list) else (inside or {}).get("layers", ())  # a list: Sequential of Keras 1
    wrapped = [inside["layer"]] if isinstance(inside, dict) and isinstance(inside.get("layer"), dict) else []
    for layer in [*found, *wrapped]:
        if isinstance(layer, dict):
            yield from _layers(layer)


def _why_unreadable(layer: dict[str, Any]) -> str:
    """Return what a layer is that can't be read, empty for one of Keras' own layers."""
    name, module, registered = (str(layer.get(key) or "") for key in ("class_name", "module", "registered_name"))
    if name == "Lambda":
        return "a Lambda, whose code is never run"
    if name in _TENSORFLOW_LAYERS:
        function = (layer.get("config") or {}).get("function") or name
        return f"the TensorFlow function {function}, which Keras 3 can't read"
    own = module.split(".")[0] == "keras" if module or registered else ">" not in name
    return "" if own else f"of the custom class {(registered or name).split('>')[-1]}, whose code is not in the file"
