"""Ctrl-C is neither lost nor in the way of what it must not break: real signals to this very process."""

import os
import signal
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_networks import SIZE_PX, built, noise_images, write

from fakereal import __main__ as door
from fakereal import runtime
from fakereal.cli import run_cli
from fakereal.config import Config, DataConfig
from fakereal.dataset.neutralize import preprocessing_of
from fakereal.dataset.scan import scan
from fakereal.engines import conversion
from fakereal.engines import export as exporting
from fakereal.evaluation.evaluate import predict_records
from fakereal.evaluation.report import _evidence
from fakereal.model import gradcam
from fakereal.model.metadata import read_metadata
from fakereal.predict.run import PredictConfig, predict_remaining
from fakereal.runtime import (
    capture_output,
    check_interrupt,
    deferred_interrupts,
    interrupt_requested,
    interrupts_at_checks_only,
)
from fakereal.training import cache as training_cache
from fakereal.training import features, loop, trainer
from fakereal.training.input_pipeline import EpochSampler


@pytest.fixture(autouse=True)
def python_s_own_handler():
    """A shell may have started the tests with Ctrl-C switched off; whatever held it here must have put it back."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    after = signal.signal(signal.SIGINT, before)
    assert (after, interrupt_requested(), runtime._deferrals) == (signal.default_int_handler, False, [])


@pytest.fixture(scope="module")
def images(make_set, tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set"), count=80)


def press():
    signal.raise_signal(signal.SIGINT)


def test_held_it_is_noted_and_said_and_waits(capfd):
    with deferred_interrupts("finishing the current file ..."):
        assert not interrupt_requested()
        press()
        assert interrupt_requested()
    assert capfd.readouterr().err == "finishing the current file ...\n"
    assert not interrupt_requested()  # nobody looked: it is gone with the work


def test_a_second_one_acts_at_once():
    with deferred_interrupts("wait"):
        press()
        with pytest.raises(KeyboardInterrupt):
            press()


def test_checks_raise_it_once_and_hold_the_next_one():
    with interrupts_at_checks_only():
        check_interrupt()
        press()
        with pytest.raises(KeyboardInterrupt):
            check_interrupt()
        check_interrupt()
        press()  # the first one was answered, so this is no second one
        with pytest.raises(KeyboardInterrupt):
            check_interrupt()


def test_one_that_nobody_looked_for_is_raised_on_the_way_out():
    done = []

    def work():
        with interrupts_at_checks_only():
            press()
            done.append("all")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all"]


def test_an_error_on_the_way_out_counts_more_than_it():
    def work():
        with interrupts_at_checks_only():
            press()
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()


def test_one_inside_another_speaks_for_itself_and_leaves_the_outer_one_in_force(capfd):
    with deferred_interrupts("outer"):
        with interrupts_at_checks_only():
            press()
            with pytest.raises(KeyboardInterrupt):
                check_interrupt()
        press()
        assert interrupt_requested()
    assert capfd.readouterr().err.splitlines()[1:] == ["outer"]


def test_where_it_is_ignored_it_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts_at_checks_only():
        press()
        assert not interrupt_requested()
    assert signal.signal(signal.SIGINT, signal.default_int_handler) == signal.SIG_IGN


def test_another_thread_leaves_it_alone():
    seen = []

    def work():
        with interrupts_at_checks_only():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_it_is_said_also_where_libraries_are_held_back(capfd):
    with deferred_interrupts("wait"), capture_output():
        os.write(2, b"a library's note")
        press()
    assert capfd.readouterr().err == "wait\n"


def test_a_closed_stderr_is_no_error_inside_the_work(capfd):
    with capfd.disabled():
        kept = os.dup(2)
        reader, writer = os.pipe()
        os.close(reader)  # as `| tee` ends with the same Ctrl-C
        os.dup2(writer, 2)
        try:
            with deferred_interrupts("wait"):
                press()
                assert interrupt_requested()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(writer)


class Dying:
    """Python drops what is raised in a destructor: a Ctrl-C that falls there was lost, and the training went on."""

    def __del__(self):
        press()


@pytest.fixture(scope="module")
def model():
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, activation="sigmoid")])
    network.compile("sgd", "binary_crossentropy")
    return network


def batches(count, at, by):
    """A dataset of `count` batches of two rows; as the network asks for number `at`, `by` is called."""
    seen = []

    def load(number):
        seen.append(int(number))
        if number == at:
            by()
        return np.zeros((2, 4), np.float32)

    def row(number):
        rows = tf.ensure_shape(tf.numpy_function(load, [number], tf.float32), (2, 4))
        return rows, tf.zeros((2, 1))

    return tf.data.Dataset.range(count).map(row), seen


@pytest.mark.parametrize("how", [press, Dying], ids=["pressed", "pressed in a destructor"])
def test_fit_ends_after_the_batch_in_which_it_was_pressed(model, how):
    seen = []

    def on_batch(batch, logs):
        seen.append(batch)
        if batch == 2:
            how()

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=on_batch)
    x = tf.data.Dataset.from_tensor_slices((np.zeros((40, 4)), np.zeros((40, 1)))).batch(2)
    with interrupts_at_checks_only():
        with pytest.raises(KeyboardInterrupt):
            loop.fit(model, x, callbacks=[callback])
        assert seen == [0, 1, 2]
        assert loop.fit(model, x)["loss"]  # the model can be used afterwards, all its functions whole


def send():
    os.kill(os.getpid(), signal.SIGINT)  # from TensorFlow's thread; Python answers in the main one


def test_predict_ends_early_and_gives_nothing_rather_than_a_part(model):
    x, seen = batches(500, 3, send)
    with interrupts_at_checks_only():
        with pytest.raises(KeyboardInterrupt):
            loop.predict(model, x)
        assert len(seen) < 500
        assert loop.predict(model, batches(5, -1, send)[0]).shape == (10,)


def test_features_end_after_a_batch_of_them(images, tmp_path):
    config = Config()
    preprocessing = preprocessing_of(config, 32)
    records = scan(images, preprocessing).records
    done = []

    class Part:
        engine = "test"

        def features(self, images):
            press()
            done.append(len(images))
            return np.zeros((len(images), 4), np.float32)

    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    with training_cache.open_cache(DataConfig(cache_dir=str(tmp_path))) as cache, interrupts_at_checks_only():
        rows = cache.rows("features of a test", (4,), "float32")
        decoded = features.ImageBatches(network, preprocessing, config.augmentation, None)
        feed = features.CachedFeatureBatches(features.SplitNetwork(Part(), network, rows), rows, decoded, 0, 2)
        with pytest.raises(KeyboardInterrupt):
            feed.training(records, EpochSampler(0, 0, 0), 16)
    assert len(done) == 1
    assert done[0] < len(records)


@pytest.mark.parametrize(("again", "at", "seen"), [(0, 1, [32]), (None, 6, [32] * 6), (7, 4, [32] * 4)])
def test_an_evaluation_ends_after_a_batch(images, again, at, seen):
    preprocessing = preprocessing_of(Config(), 32)
    records = scan(images, preprocessing).records
    done = []

    class Network:
        def p_real(self, images):
            if len(done) + 1 == at:
                press()
            done.append(len(images))
            return np.full(len(images), 0.5)

    with pytest.raises(KeyboardInterrupt):
        predict_records(Network(), preprocessing, images, records, engine="test", batch_size=32, resave_images=again)
    assert done == seen


@pytest.fixture
def train_with(monkeypatch, images, train_here, tmp_path):
    """A function that trains three epochs; what it is given is called as the second begins."""
    epochs, real = [], loop.fit

    def train(at_epoch_2):
        def fit(*arguments):
            epochs.append(1)
            if len(epochs) == 2:
                at_epoch_2()
            return real(*arguments)

        monkeypatch.setattr(loop, "fit", fit)
        return train_here(images, tmp_path / "model.h5", epochs=3)

    return train


def test_a_training_ends_also_where_it_was_pressed_in_a_destructor(train_with, capsys):
    outcome = train_with(Dying)
    assert outcome.interrupted
    assert len(outcome.detector.metadata.history) == 1
    assert outcome.output.exists()
    assert "the best model so far is kept, measured and saved" in capsys.readouterr().err


def test_pressed_twice_a_training_promises_no_model_and_leaves_none(train_with, tmp_path, capsys):
    def twice():
        press()
        press()

    with pytest.raises(KeyboardInterrupt):
        train_with(twice)
    assert not (tmp_path / "model.h5").exists()
    assert (tmp_path / "model_run" / "checkpoint.npz").exists()
    assert "is kept" not in capsys.readouterr().err


def test_pressed_after_the_last_epoch_the_model_is_measured_and_saved(images, tmp_path, monkeypatch, train_here):
    monkeypatch.setattr(trainer, "save_checkpoint", lambda *_: press())
    outcome = train_here(images, tmp_path / "model.h5", epochs=1)
    assert outcome.interrupted
    assert outcome.output.exists()


def test_pressed_while_the_model_is_exported_the_model_is_new_and_no_report_is_of_the_one_before(
    images, tmp_path, monkeypatch, train_here
):
    before = train_here(images, tmp_path / "model.h5", epochs=1)
    report, old = before.folder / "report.html", (before.folder / "report.html").read_bytes()
    monkeypatch.setitem(conversion._CONVERTERS, "litert", pressing(conversion._CONVERTERS["litert"]))
    with pytest.raises(KeyboardInterrupt):
        train_here(images, tmp_path / "model.h5", epochs=2)
    assert len(read_metadata(tmp_path / "model.h5").history) == 2
    assert not any((before.folder / name).exists() for name in ("report.html", "metrics.json", "cost.json"))
    assert report.with_name("report.html.bak").read_bytes() == old


def test_prediction_ends_with_what_it_has_in_the_journal(images, tmp_path, monkeypatch):
    kept = []

    class Kept:
        def __contains__(self, number):
            return False

        def __len__(self):
            return 0

        def add(self, some):
            press()
            kept.extend(some)

    class Predictor:
        def predict(self, items, config):
            yield from items

    class Some(list):
        def reading_order(self):
            return range(len(self))

    with pytest.raises(KeyboardInterrupt):
        predict_remaining(Kept(), Some("abcdefg"), Predictor(), PredictConfig(batch_size=3))
    assert [number for number, _ in kept] == [0, 1, 2]


def pressing(function, at=1):
    """The function itself; at its call number `at` Ctrl-C is pressed first."""
    calls = []

    def call(*arguments, **named):
        calls.append(1)
        if len(calls) == at:
            press()
        return function(*arguments, **named)

    return call


def export(model):
    return run_cli(door.main, ["export", str(model), "--format", "litert"])


def test_an_export_ends_after_the_conversion_and_writes_nothing(tmp_path, monkeypatch, capfd):
    model = write(tmp_path / "mine.h5", built(7))
    with monkeypatch.context() as patched:
        patched.setitem(conversion._CONVERTERS, "litert", pressing(conversion._CONVERTERS["litert"]))
        assert export(model) == 130
    assert capfd.readouterr().err.splitlines()[-2:] == [runtime._STOP_NOTE, "interrupted"]
    assert list(tmp_path.iterdir()) == [model]
    assert export(model) == 0  # the converter can be used afterwards


def test_an_export_that_has_begun_to_write_finishes_its_files(tmp_path, monkeypatch):
    model = write(tmp_path / "mine.h5", built(7))
    monkeypatch.setattr(exporting, "write_atomic", pressing(exporting.write_atomic))
    assert export(model) == 130
    assert {path.name for path in tmp_path.iterdir()} == {"mine.h5", "mine.tflite", "mine.tflite.json"}


def test_heatmaps_of_a_report_end_after_a_batch(monkeypatch):
    seen = []

    def explain(self, images):
        seen.append(len(images))
        press()
        return real(self, images)

    network, images, real = built(7), list(noise_images(24)), gradcam.GradCamExplainer.explain
    monkeypatch.setattr(gradcam.GradCamExplainer, "explain", explain)
    with pytest.raises(KeyboardInterrupt):
        _evidence(network, images)
    assert seen == [8]
    monkeypatch.undo()
    assert np.shape(_evidence(network, images)) == (24, SIZE_PX // 4, SIZE_PX // 4)


def test_explained_predictions_end_once_the_graph_is_built(images, tmp_path, monkeypatch, capfd):
    model = write(tmp_path / "mine.h5", built(7))
    call = ["predict", str(images / "fake"), "--model", str(model), "--explain", str(tmp_path / "why")]
    with monkeypatch.context() as patched:
        patched.setattr(gradcam, "_last_maps_layer", pressing(gradcam._last_maps_layer))
        assert run_cli(door.main, call) == 130
    assert capfd.readouterr().err.splitlines()[-2:] == [runtime._STOP_NOTE, "interrupted"]
    assert not (tmp_path / "why").exists()
    assert run_cli(door.main, call) == 0
    assert len(list((tmp_path / "why").iterdir())) == 80
