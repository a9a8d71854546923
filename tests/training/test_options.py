"""The options of train_model.py: each reaches the training, and a wrong value is refused with the option's name."""

import numpy as np
import pytest

import train_model
from fakereal import config
from fakereal.cli import run_cli
from fakereal.dataset.split import scan_and_split
from fakereal.model.metadata import read_metadata
from fakereal.training import options, run, trainer
from fakereal.training.checkpoint import TrainingState, load_state, save_checkpoint

TINY = ["--network", "cnn", "--weights", "none", "--image-size", "32", "--batch-size", "16", "--no-audit",
        "--cache-dir", "none"]  # fmt: skip


@pytest.fixture
def train(images, tmp_path):
    """A function that trains by options in this process and returns what the model file records."""

    def train(*more):
        output = tmp_path / "model.h5"
        assert run_cli(train_model.main, ["--data", str(images), "--output", str(output), *TINY, *more]) == 0
        return read_metadata(output)

    return train


def test_the_networks_are_those_of_the_configuration():
    assert tuple(config.NORMALIZATIONS) == options.NETWORKS


def test_a_mistyped_network_is_refused_with_its_option(capsys):
    with pytest.raises(SystemExit) as ended:
        train_model.main(["--network", "efficientnet"])
    assert ended.value.code == 2
    expected = "--network: expected one of efficientnetb0, efficientnetb4, vgg16, cnn, got 'efficientnet' (all options:"
    assert capsys.readouterr().err.startswith(f"error: argument {expected}")


def test_mistyped_weights_are_refused_with_their_option(images, tmp_path, capsys):
    call = ["--data", str(images), "--output", str(tmp_path / "m.h5"), "--weights", "imagnet"]
    assert run_cli(train_model.main, call) == 2
    assert capsys.readouterr().err == (
        "error: weights (--weights): expected auto, imagenet, pretrained, none or a file, found 'imagnet', which does"
        " not exist\n"
    )


def test_patience_ends_the_training_early(train):
    metadata = train("--epochs", "30", "--learning-rate", "1", "--patience", "2")
    losses = [row["val_calibrated_loss"] for row in metadata.history]
    assert metadata.config.training.patience == 2
    assert len(losses) == losses.index(min(losses)) + 1 + 2 < 30


def test_class_weights_give_both_classes_the_same_say(make_set, tmp_path, train):
    data = make_set(tmp_path / "set")
    for path in list((data / "fake").iterdir())[12:]:
        path.unlink()
    plain, weighted = (train("--data", str(data), "--epochs", "1", *more) for more in ([], ["--class-weights"]))
    _, split = scan_and_split(weighted.config)
    fake, real = weighted.data["train"]["fake"], weighted.data["train"]["real"]
    weights = trainer._class_weights(split)
    assert weights[0] * fake == pytest.approx(weights[1] * real) == pytest.approx((fake + real) / 2)
    assert weighted.config.training.class_weights
    assert not plain.config.training.class_weights
    assert plain.history[0]["loss"] != weighted.history[0]["loss"]


def test_mixed_precision_trains_in_bfloat16_and_saves_float32(train, monkeypatch):
    seen, real = [], trainer._phase_network

    def build(*arguments):
        seen.append(real(*arguments))
        return seen[-1]

    monkeypatch.setattr(trainer, "_phase_network", build)
    metadata = train("--epochs", "1", "--mixed-precision")
    assert metadata.config.training.mixed_precision
    convolution, output = seen[0].get_layer("base").get_layer("conv_1"), seen[0].get_layer("p_real")
    assert (convolution.compute_dtype, convolution.kernel.dtype, output.compute_dtype) == (
        "bfloat16", "float32", "float32")  # fmt: skip
    assert np.isfinite(metadata.history[0]["val_loss"])


def test_the_summary_lists_the_layers_inside_the_backbone_and_what_is_trained(train, capsys):
    train("--epochs", "1", "--summary")
    shown, _, figures = capsys.readouterr().out.partition("Non-trainable params:")
    assert all(name in shown for name in ("normalization", "conv_1", "conv_3", "p_real", "Trainable params: "))
    assert figures.lstrip().startswith("0 ")  # from random weights, all layers are trained
    assert "F1 on" in figures.splitlines()[-1]


def test_a_resumed_run_says_where_it_continues(tmp_path, capsys):
    row = {"phase": 1, "val_loss": 0.7}
    history = [row | {"val_calibrated_loss": loss} for loss in (0.66, 0.61234, 0.65)]
    state = TrainingState(phase=1, epoch=1, origin={"description": "ImageNet (Keras)"}, history=history)
    save_checkpoint(tmp_path / "checkpoint.npz", "identity", state)
    assert load_state(tmp_path / "checkpoint.npz", "identity").history == history
    assert capsys.readouterr().err == (
        "resuming after epoch 1 of phase 2: 3 epochs are done, lowest validation loss 0.6123, weights: ImageNet (Keras)"
        f" ({tmp_path / 'checkpoint.npz'})\n"
    )
    assert load_state(tmp_path / "none.npz", "identity") is None
    assert "no checkpoint at" in capsys.readouterr().err


@pytest.mark.parametrize(("small", "weights", "warned"), [(40, "pretrained", True), (20, "pretrained", True),
                         (19, "pretrained", False), (40, "imagenet", False)])  # fmt: skip
def test_figures_of_the_shipped_base_on_images_as_small_as_cifake_are_called_optimistic(
    make_set, tmp_path, capsys, small, weights, warned
):
    make_set(tmp_path / "set", count=small, size=32)
    if small < 40:
        make_set(tmp_path / "set" / "more", count=40 - small, size=48)
    whole = config.Config(weights=weights, data=config.DataConfig(str(tmp_path / "set")))
    _, split = scan_and_split(whole)
    caveat = run._base_caveat(whole, split)
    assert ("trained on CIFAKE" in caveat.get("base_caveat", "")) == warned
    assert ("warning: the shipped backbone was trained on CIFAKE" in capsys.readouterr().err) == warned


@pytest.mark.slow
def test_the_report_of_such_a_training_calls_its_figures_optimistic(images, tmp_path, capsys):
    output = tmp_path / "model.h5"
    call = ["--data", str(images), "--output", str(output), "--weights", "pretrained", "--fine-tune", "none",
            "--epochs", "1", "--image-size", "32", "--cache-dir", "none"]  # fmt: skip
    assert run_cli(train_model.main, call) == 0
    assert "warning: the shipped backbone was trained on CIFAKE" in capsys.readouterr().err
    assert (
        "Optimistic: the shipped backbone was trained on CIFAKE" in (tmp_path / "model_run" / "report.html").read_text()
    )
