"""Ctrl-C is neither lost nor in the way of what it must not break: real signals to this very process."""

import os
import signal
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_training import make_set

from fakereal.config import Config, DataConfig
from fakereal.data.neutralize import preprocessing_of
from fakereal.data.scan import scan
from fakereal.interrupts import check, held, only_at_checks, pressed
from fakereal.model import feed as feeds
from fakereal.model import judging, keras_loops, row_cache
from fakereal.model.input_pipeline import Draw


@pytest.fixture(autouse=True)
def python_s_own_handler():
    """A shell may have started the tests with Ctrl-C switched off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # whatever held it has put it back
    signal.signal(signal.SIGINT, before)


def press():
    signal.raise_signal(signal.SIGINT)


def test_held_it_is_noted_and_said_and_waits(capfd):
    with held("finishing the current file ..."):
        assert not pressed()
        press()
        assert pressed()
    assert capfd.readouterr().err == "finishing the current file ...\n"
    assert not pressed()  # nobody looked: it is gone with the work


def test_a_second_one_acts_at_once():
    with held("wait"):
        press()
        with pytest.raises(KeyboardInterrupt):
            press()


def test_checks_raise_it_once_and_hold_the_next_one():
    with only_at_checks():
        check()
        press()
        with pytest.raises(KeyboardInterrupt):
            check()
        check()
        press()  # the first one was answered, so this is no second one
        with pytest.raises(KeyboardInterrupt):
            check()


def test_one_that_nobody_looked_for_is_raised_on_the_way_out():
    done = []

    def work():
        with only_at_checks():
            press()
            done.append("all")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all"]


def test_an_error_on_the_way_out_counts_more_than_it():
    def work():
        with only_at_checks():
            press()
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()


def test_one_inside_another_speaks_for_itself_and_leaves_the_outer_one_in_force(capfd):
    with held("outer"):
        with only_at_checks():
            press()
            with pytest.raises(KeyboardInterrupt):
                check()
        press()
        assert pressed()
    assert capfd.readouterr().err.splitlines()[1:] == ["outer"]


def test_where_it_is_ignored_it_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with only_at_checks():
        press()
        assert not pressed()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_another_thread_leaves_it_alone():
    seen = []

    def work():
        with only_at_checks():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


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
    with only_at_checks():
        with pytest.raises(KeyboardInterrupt):
            keras_loops.fit(model, {"x": x}, [callback])
        assert seen == [0, 1, 2]
        assert keras_loops.fit(model, {"x": x})["loss"]  # the model can be used afterwards, all its functions whole


def send():
    os.kill(os.getpid(), signal.SIGINT)  # from TensorFlow's thread; Python answers in the main one


def test_predict_ends_early_and_gives_nothing_rather_than_a_part(model):
    x, seen = batches(500, 3, send)
    with only_at_checks():
        with pytest.raises(KeyboardInterrupt):
            keras_loops.predict(model, x)
        assert len(seen) < 500
        assert keras_loops.predict(model, batches(5, -1, send)[0]).shape == (10,)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set"), count=80)


def test_features_end_after_a_batch_of_them(pictures, tmp_path):
    config = Config()
    preprocessing = preprocessing_of(config, 32)
    records = scan(pictures, preprocessing).records
    done = []

    class Part:
        engine = "test"

        def activations(self, images):
            done.append(len(images))
            press()
            return np.zeros((len(images), 4), np.float32)

    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    with row_cache.opened(DataConfig(cache_dir=str(tmp_path))) as cache, only_at_checks():
        rows = cache.rows("features of a test", (4,), "float32")
        feed = feeds.ActivationFeed(
            network, Part(), rows, feeds.PictureFeed(network, preprocessing, config.augmentation, None), 0, 2
        )
        with pytest.raises(KeyboardInterrupt):
            feed.training(records, Draw(0, 0, 0), 16)
    assert len(done) == 1
    assert done[0] < len(records)


def test_judging_ends_after_a_batch(pictures):
    preprocessing = preprocessing_of(Config(), 32)
    records = scan(pictures, preprocessing).records
    done = []

    class Network:
        def p_real(self, images):
            done.append(len(images))
            press()
            return np.full(len(images), 0.5)

    with pytest.raises(KeyboardInterrupt):
        judging.judge(
            Network(), preprocessing, pictures, records, engine="test", batch_size=32, resave_images=0, seed=0
        )
    assert done == [32]
