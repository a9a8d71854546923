import dataclasses
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from small_networks import SIZE_PX, built, noise_images, write

import predict_and_save_json as door
from fakereal.cli import ENGINES
from fakereal.config import NetworkConfig
from fakereal.engines import engine as engines_engine
from fakereal.engines import parity
from fakereal.engines.conversion_cache import Conversion, find_conversion, store_conversion
from fakereal.engines.engine import open_network
from fakereal.engines.formats import RUNTIMES
from fakereal.errors import EngineRefused, ModelFileError
from fakereal.model.calibration import DecisionRule
from fakereal.model.foreign import ForeignModel
from fakereal.runtime import start_keras

PRETRAINED = ROOT / "models" / "pretrained.h5"
ENTRY = Conversion({".tflite": b"network"}, SIZE_PX, "words", {"pictures": 16})


@pytest.fixture
def model(small_model) -> Path:
    return small_model


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """The engines' part of a cache of the test's own, still empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fakereal" / "engines"


@pytest.fixture
def without_litert(monkeypatch):
    monkeypatch.setitem(RUNTIMES, "litert", dataclasses.replace(RUNTIMES["litert"], package="no-such-package"))
    monkeypatch.setattr(engines_engine, "FAST", ("litert",))


# which engine


def test_every_engine_that_can_be_asked_for_is_known():
    assert {"auto", "keras", "litert"} < set(ENGINES)
    assert (engines_engine.AUTO, engines_engine.KERAS) == ("auto", "keras")
    assert set(engines_engine.FAST) < set(RUNTIMES)


@pytest.mark.parametrize("wanted", ["auto", "openvino"])
def test_a_fast_engine_gives_the_outputs_of_keras(model, wanted):
    if wanted == "openvino":
        pytest.importorskip("openvino")
    opened = open_network(model, wanted)
    assert opened.engine.startswith({"auto": "litert "}.get(wanted, wanted))
    assert opened.metadata == open_network(model, "keras").metadata
    expected = open_network(model, "keras").network.p_real(noise_images())
    assert np.abs(opened.network.p_real(noise_images()) - expected).max() < 1e-6
    assert np.ptp(expected) > 1e-3


def test_an_output_depends_on_no_other_image_nor_on_their_number(model):
    network = open_network(model).network
    images = np.concatenate([noise_images(), np.zeros((3, SIZE_PX, SIZE_PX, 3), np.uint8)])
    together = network.p_real(images)
    order = np.random.default_rng(1).permutation(len(images))
    assert np.array_equal(network.p_real(images[order]), together[order])
    assert [network.p_real(image[None])[0] for image in images] == together.tolist()
    assert network.p_real(images[:0]).shape == (0,)


def test_several_threads_may_ask_one_network_at_once(model):
    network, images = open_network(model).network, noise_images(20)
    expected = network.p_real(images)
    with ThreadPoolExecutor(4) as pool:
        assert all(np.array_equal(found, expected) for found in pool.map(network.p_real, [images] * 12))


def test_without_the_package_keras_is_taken_and_the_reason_told(model, without_litert):
    opened = open_network(model)
    assert opened.engine.startswith("keras")
    assert "no-such-package is not installed: pip install -r requirements.txt" in opened.description
    with pytest.raises(EngineRefused, match="--engine litert: package no-such-package is not installed"):
        open_network(model, "litert")


def test_a_converted_network_that_gives_other_outputs_is_refused_once_and_for_all(model, own_cache, monkeypatch):
    from fakereal.engines import conversion

    other, real, calls = built(6), conversion.convert, []
    monkeypatch.setattr(conversion, "convert", lambda model, name: calls.append(name) or real(other, name))
    monkeypatch.setattr(engines_engine, "FAST", ("litert",))
    first, second = open_network(model), open_network(model)
    assert first.engine.startswith("keras")
    assert "p_real differs from Keras by" in first.description
    assert (second.description, calls) == (first.description, ["litert"])
    with pytest.raises(EngineRefused, match="use --engine auto"):
        open_network(model, "litert")


@pytest.mark.parametrize("failing", ["converting", "starting"])
def test_a_conversion_that_fails_is_tried_again_by_the_next_run(model, own_cache, monkeypatch, failing):
    from fakereal.engines import conversion

    def fail(*ignored):
        raise MemoryError("no room")

    monkeypatch.setattr(engines_engine, "FAST", ("litert",))
    with monkeypatch.context() as patch:
        if failing == "converting":
            patch.setitem(conversion._CONVERTERS, "litert", fail)
        else:
            patch.setitem(RUNTIMES, "litert", dataclasses.replace(RUNTIMES["litert"], open=fail))
        opened = open_network(model)
        assert opened.engine.startswith("keras")
        assert "no room" in opened.description
    assert open_network(model).engine.startswith("litert")


def test_a_network_gets_no_more_threads_than_it_was_given(model):
    assert open_network(model, threads=1).network.threads == 1


def test_a_model_file_that_cannot_be_used_is_refused_whatever_the_engine(tmp_path):
    for wanted in ENGINES:
        with pytest.raises(ModelFileError, match="no such model file"):
            open_network(tmp_path / "none.h5", wanted)
    with pytest.raises(ModelFileError, match="ending in"):
        open_network(tmp_path / "model.pt")


def test_a_foreign_model_is_converted_too_but_only_where_it_is_allowed(tmp_path, own_cache, capsys):
    start_keras()
    import keras

    layers = [keras.Input((48, 48, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Rescaling(1 / 255)]
    foreign = keras.Sequential([*layers, keras.layers.Dense(1, activation="sigmoid")])
    foreign.save(tmp_path / "foreign.keras")
    for _ in range(2):
        opened = open_network(tmp_path / "foreign.keras", foreign=ForeignModel())
        assert opened.engine.startswith("litert")
        assert opened.metadata.preprocessing.image_size_px == 48
        assert opened.load_detector().p_real(noise_images(1, size=48)).shape == (1,)
        assert capsys.readouterr().err.count(ForeignModel().note) == 1
    expected = foreign.predict_on_batch(noise_images(size=48).astype(np.float32))[:, 0]
    assert opened.network.p_real(noise_images(size=48)) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ModelFileError, match="add --foreign-model"):
        open_network(tmp_path / "foreign.keras")


# the cache


def test_the_second_run_converts_nothing_and_imports_no_tensorflow(model, own_cache, tmp_path):
    assert "differs from Keras by at most" in open_network(model).description
    code = (
        "import sys; from pathlib import Path; from fakereal.engines.engine import open_network;"
        f"o = open_network(Path({str(model)!r})); print(o.description); print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    words, modules = done.stdout.splitlines()
    assert words == open_network(model).description
    assert "differs" not in words
    assert done.stderr == ""
    assert not {"'tensorflow'", "'keras'", "'sklearn'", "'scipy'"} & set(modules.strip("[]").split(", "))


@pytest.mark.parametrize("damage", ["content", "record", "missing"])
def test_a_damaged_entry_is_noticed_and_rebuilt(model, own_cache, capsys, damage):
    expected = open_network(model).network.p_real(noise_images())
    (entry,) = own_cache.iterdir()
    file = entry / ("record.json" if damage == "record" else "network.tflite")
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    else:
        content[len(content) // 2] ^= 255
        file.write_bytes(content)
    capsys.readouterr()
    assert np.array_equal(open_network(model).network.p_real(noise_images()), expected)
    assert "it will be rebuilt" in capsys.readouterr().err
    assert find_conversion(*identity_of(entry)).files


def identity_of(entry: Path) -> tuple[str, str, str]:
    sha256, engine, version, _ = entry.name.split("-")
    return sha256, engine, version


def test_where_nothing_can_be_kept_the_run_continues(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert open_network(model).engine.startswith("litert")
    assert "is not writable" in capsys.readouterr().err


def test_of_runs_that_keep_the_same_entry_at_once_one_is_kept_whole(own_cache):
    contents = [bytes([number]) * 100_000 for number in range(8)]
    barrier = threading.Barrier(len(contents))

    def keep(content):
        barrier.wait()
        store_conversion("a" * 64, "litert", "1", dataclasses.replace(ENTRY, files={".tflite": content}))

    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(keep, contents))
    assert find_conversion("a" * 64, "litert", "1").files[".tflite"] in contents
    assert len(list(own_cache.iterdir())) == 1


def test_another_model_engine_or_version_has_an_entry_of_its_own(own_cache):
    store_conversion("a" * 64, "litert", "1", ENTRY)
    assert find_conversion("a" * 64, "litert", "1") == ENTRY
    for other in (("b" * 64, "litert", "1"), ("a" * 64, "openvino", "1"), ("a" * 64, "litert", "2")):
        assert find_conversion(*other) is None


def test_old_entries_make_room_and_what_kills_left_is_removed(own_cache):
    stale = own_cache / "killed.part"
    stale.mkdir(parents=True)
    os.utime(stale, (0, 0))
    for number in range(25):
        store_conversion(f"{number:064}"[::-1], "litert", "1", ENTRY)
        os.utime(own_cache / f"{f'{number:064}'[::-1][:32]}-litert-1-3", (number + 1, number + 1))
    assert not stale.exists()
    assert len(list(own_cache.iterdir())) == 20
    assert find_conversion(f"{24:064}"[::-1], "litert", "1") == ENTRY


def test_an_entry_that_another_run_removes_meanwhile_is_no_failure(own_cache, monkeypatch, capsys):
    store_conversion("a" * 64, "litert", "1", ENTRY)
    (own_cache / "gone").symlink_to(own_cache / "nowhere")  # listed, but its state can't be asked for
    store_conversion("b" * 64, "litert", "1", ENTRY)
    assert capsys.readouterr().err == ""


# the gates


def test_calibration_images_are_the_same_each_time_and_all_different():
    once, again = parity.parity_images(40), parity.parity_images(40)
    assert (once.dtype, once.shape) == (np.uint8, (16, 40, 40, 3))
    assert np.array_equal(once, again)
    assert len({picture.tobytes() for picture in once}) == 16


def test_outputs_may_differ_by_less_than_a_thousandth_and_less_than_their_range():
    expected = np.linspace(0.1, 0.9, 16)[:, None]
    assert parity.compare_outputs(expected, expected + 9e-4).passed
    assert not parity.compare_outputs(expected, expected + 1.1e-3).passed
    assert not parity.compare_outputs(expected, np.full((16, 1), np.nan)).passed
    sure = 1 - np.linspace(0, 1e-4, 16)[:, None]
    assert parity.compare_outputs(sure, sure + 5e-6).passed
    assert not parity.compare_outputs(sure, np.ones((16, 1))).passed


def test_the_out_of_distribution_score_must_agree_too():
    expected = np.stack([np.linspace(0.1, 0.9, 16), np.linspace(0.3, 3.0, 16)], axis=1)
    within, beyond, broken = (expected + np.array([0, change]) for change in (0.019, 0.021, np.nan))
    assert parity.compare_outputs(expected, within).passed
    refused = parity.compare_outputs(expected, beyond)
    assert not refused.passed
    assert "score differs from Keras by 0.021" in refused.description
    assert not parity.compare_outputs(expected, broken).passed
    assert not parity.compare_outputs(expected, expected[:, :1]).passed


def test_each_feature_of_a_frozen_part_may_differ_by_half_a_percent_of_its_own_range():
    expected = np.random.default_rng(0).normal(0, [1000.0, 0.1, 0.0], (16, 4, 4, 3))
    for within, beyond in (([10, 0, 0], [100, 0, 0]), ([0, 1e-3, 0], [0, 1e-2, 0]), ([0, 0, 1e-3], [0, 0, 1e-2])):
        assert parity.compare_features(expected, expected + np.array(within)).passed
        assert not parity.compare_features(expected, expected + np.array(beyond)).passed
    assert not parity.compare_features(expected, np.full(expected.shape, np.nan)).passed
    assert not parity.compare_features(expected, expected[..., 0]).passed
    assert not parity.compare_features(expected, np.broadcast_to(expected.mean(axis=0), expected.shape)).passed
    assert parity.compare_features(np.zeros((16, 3)), np.zeros((16, 3))).passed


def test_int8_may_change_one_label_in_two_hundred_and_lose_a_fifth_of_a_point():
    labels = np.arange(1000) % 2
    expected = np.where(labels, 0.9, 0.1)
    for flips, passed in ((0, True), (2, True), (3, False)):  # each flip makes a right label wrong
        found = expected.copy()
        found[:flips] = 1 - found[:flips]
        assert parity.compare_labels(expected, found, labels, DecisionRule()).passed == passed
    wrong = 1 - expected  # the other way round it gets better with each flip, but answers otherwise
    for flips, passed in ((5, True), (6, False)):
        found = wrong.copy()
        found[:flips] = 1 - found[:flips]
        finding = parity.compare_labels(wrong, found, labels, DecisionRule())
        assert finding.passed == passed
        assert f"{100 - flips / 10:.2f} % of 1,000 labels" in finding.description
    assert not parity.compare_labels(expected, np.full(1000, np.nan), labels, DecisionRule()).passed


# in the script


def rows_of(model, folder, output, *options):
    details = output.with_suffix(".csv.json")
    arguments = ["--input", str(folder), "--model", str(model), "--output", str(output), "--details", str(details)]
    assert door.main([*arguments, *options]) == 0
    return json.loads(details.read_text())


def test_the_script_says_which_engine_it_takes_and_explaining_changes_no_digit(model, make_image, tmp_path, capsys):
    for number in range(1, 6):
        make_image(tmp_path / "in" / f"{number}.png", number)
    plain = rows_of(model, tmp_path / "in", tmp_path / "plain.json")
    assert "engine: LiteRT" in capsys.readouterr().err
    explained = rows_of(model, tmp_path / "in", tmp_path / "explained.json", "--explain", str(tmp_path / "why"))
    assert explained == plain
    assert len(list((tmp_path / "why").iterdir())) == 5
    keras = rows_of(model, tmp_path / "in", tmp_path / "keras.json", "--engine", "keras")
    assert "engine: Keras" in capsys.readouterr().err
    assert [row["p_real"] for row in keras] == pytest.approx([row["p_real"] for row in plain], abs=2e-6)


# real networks


@pytest.mark.slow
def test_vgg_is_converted_too(tmp_path):
    network = NetworkConfig(name="vgg16")
    opened = open_network(write(tmp_path / "vgg.h5", built(1, network, 64), 64, network))
    assert opened.engine.startswith("litert")


@pytest.mark.slow
def test_the_shipped_detector_keeps_its_outputs_and_starts_in_a_second(tmp_path):
    images = parity.parity_images(160)
    expected = open_network(PRETRAINED, "keras").network.p_real(images)
    assert np.abs(open_network(PRETRAINED).network.p_real(images) - expected).max() < 1e-4
    Image.fromarray(images[8]).save(tmp_path / "1.png")
    command = [sys.executable, ROOT / "predict_and_save_json.py", "--model", PRETRAINED, "--input", tmp_path / "1.png"]
    before = os.times()
    subprocess.run([*command, "--output", tmp_path / "p.json"], check=True, capture_output=True)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert seconds < 1.5
