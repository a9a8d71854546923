"""Write a detector in a format that runs elsewhere, without TensorFlow: on phones, in browsers, in other languages.

Examples:
  python -m fakereal export models/pretrained.h5 --format litert
  python -m fakereal export models/my_trained_model.h5 --format onnx --output detector.onnx
  python -m fakereal export models/my_trained_model.h5 --format openvino --int8 --data data/clean

The result is held against the model first, and written only where it gives the same answers. Beside it, FILE.json says
what goes in, what comes out and how a label is made of it. onnx and openvino need requirements-export.txt.
"""

from __future__ import annotations

import argparse
from pathlib import Path

FORMATS = ("litert", "onnx", "openvino")


def add_arguments(options: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = options.add_argument
    add("model", type=Path, metavar="MODEL", help="the model file")
    add("--format", choices=FORMATS, required=True, help="whose format: .tflite, .onnx, or .xml with .bin")
    add("--output", type=Path, metavar="FILE", help="the result (default: beside the model, under its name)")
    add("--int8", action="store_true", help="whole numbers: a third of the size, judged on --data")
    add("--data", type=Path, metavar="DIR", help="labelled pictures for --int8: half set its ranges, half judge it")
    add("--foreign-model", action="store_true", help="the model is a plain Keras file of another program")


def run(arguments: argparse.Namespace) -> int:
    """Converts, judges and writes."""
    from fakereal.engines.export import ExportConfig, run

    return run(ExportConfig(**{key: value for key, value in vars(arguments).items() if key != "run"}))
