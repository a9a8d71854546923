"""A frozen part that is computed once gives the same training; with a small residual base, to be quick."""

import dataclasses

import keras
import numpy as np
import pytest
from small_networks import SIZE_PX, residual_base

from fakereal import config
from fakereal.config import AugmentationConfig, NetworkConfig, PhaseConfig, TrainingConfig
from fakereal.dataset.scan import scan
from fakereal.engines import conversion, litert_join
from fakereal.engines import engine as engine_module
from fakereal.engines.engine import open_network
from fakereal.engines.export import export_beside
from fakereal.engines.formats import RUNTIMES
from fakereal.errors import DataError
from fakereal.model import model_file, networks
from fakereal.model.metadata import Metadata
from fakereal.model.model_file import Detector
from fakereal.model.out_of_distribution import fit_prototypes
from fakereal.model.weights import BaseWeights
from fakereal.preprocessing import Preprocessing
from fakereal.training import checkpoint, features, run, trainer
from fakereal.training.cache import RowCache


@pytest.fixture(autouse=True)
def small_base(monkeypatch):
    monkeypatch.setattr(networks, "_base", residual_base)
    monkeypatch.setattr(run, "load_base", lambda *_: BaseWeights("made for the test", pretrained=True))


def built(scope):
    keras.utils.set_random_seed(0)
    model = networks.build(NetworkConfig(dense=(5,)), SIZE_PX)
    networks.set_trainable(model, scope, learn_batch_norm=False)
    return model


STILL = AugmentationConfig(horizontal_flip=False, rotation_degrees=0.0)


def noise(count=7):
    return np.random.default_rng(0).integers(0, 256, (count, SIZE_PX, SIZE_PX, 3)).astype("float32")


@pytest.mark.parametrize(("scope", "shape"), [("head", (6,)), ("last20", (8, 8, 6))])
def test_the_two_parts_together_are_the_network(scope, shape):
    model = built(scope)
    parts = features.split_network(model)
    assert parts.frozen.output_shape[1:] == shape
    assert parts.frozen.trainable_variables == []
    assert {id(each) for each in parts.trained.trainable_variables} == {id(each) for each in model.trainable_variables}
    through = parts.trained.predict(parts.frozen.predict(noise(), verbose=0), verbose=0)
    assert through == pytest.approx(model.predict(noise(), verbose=0), abs=1e-6)


def test_nothing_is_cut_where_everything_learns():
    assert features.split_network(built("all")) is None


def test_other_weights_below_the_boundary_have_another_fingerprint_and_those_above_do_not():
    model = built("last20")
    first = features.split_network(model).fingerprint()
    model.get_layer(networks.OUTPUT).set_weights([each + 1 for each in model.get_layer(networks.OUTPUT).get_weights()])
    assert features.split_network(built("last20")).fingerprint() == first
    stem = model.get_layer(networks.BASE).get_layer("stem")
    stem.set_weights([each + 1e-4 for each in stem.get_weights()])
    assert features.split_network(model).fingerprint() != first


def recipe(data, cache, augmented_versions, augmentation=STILL, **options):
    """Head and last layers, with everything switched on that has to stay the same."""
    phases = (PhaseConfig("head", 3, 1e-2), PhaseConfig("last20", 3, 1e-3, images_per_epoch=30))
    learning = TrainingConfig(batch_size=16, augmented_versions=augmented_versions, class_weights=True,
                              label_smoothing=0.05, schedule="cosine", average_weights=0.5, phases=phases,
                              **options)  # fmt: skip
    return config.Config(
        SIZE_PX,
        "pretrained",
        data=config.DataConfig(str(data), cache_dir=str(cache)),
        network=NetworkConfig(dense=(5,)),
        augmentation=augmentation,
        training=learning,
        report=config.ReportConfig(resave_images=0),
    )


def trained(data, output, *arguments, **options):
    return run.train_and_report(recipe(data, *arguments, **options), output)


def weights_of(outcome):
    return outcome.detector.model.get_weights()


def losses_of(outcome):
    return [row["val_loss"] for row in outcome.detector.metadata.history]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(weights_of(one), weights_of(other), strict=True))


@pytest.fixture(scope="module")
def anew(images, tmp_path_factory):
    """The plain way: everything computed in every epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "_base", residual_base)
        patch.setattr(run, "load_base", lambda *_: BaseWeights("made for the test", pretrained=True))
        return trained(images, tmp_path_factory.mktemp("anew") / "m.h5", "none", augmented_versions=0)


@pytest.mark.parametrize(("worth", "engine"), [pytest.param(1000, "Keras", marks=pytest.mark.slow), (1, "LiteRT")])
def test_without_augmentation_the_weights_are_those_of_the_plain_way(
    images, tmp_path, anew, capsys, monkeypatch, worth, engine
):
    monkeypatch.setattr(engine_module, "MIN_IMAGES_TO_CONVERT", worth)
    once = trained(images, tmp_path / "m.h5", tmp_path / "cache", augmented_versions=4)
    for ours, theirs in zip(weights_of(once), weights_of(anew), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert losses_of(once) == pytest.approx(losses_of(anew), abs=1e-4)
    assert capsys.readouterr().err.count(f"features of 1 version of each image computed once by {engine}") == 2


def test_only_layers_whose_features_are_not_cached_are_trained_in_a_network_of_their_own(images, tmp_path, monkeypatch):
    built_for, real = [], trainer._phase_network
    monkeypatch.setattr(
        trainer, "_phase_network", lambda run, phase, size: built_for.append(phase.train) or real(run, phase, size)
    )
    for versions, expected in ((1, ["last20"]), (0, ["head", "last20"])):
        built_for.clear()
        trained(images, tmp_path / f"{versions}.h5", tmp_path / "cache", augmented_versions=versions)
        assert built_for == expected


@pytest.mark.slow
def test_the_cache_of_a_run_before_or_none_at_all_changes_no_bit(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engine_module, "MIN_IMAGES_TO_CONVERT", 1)
    turned = AugmentationConfig()
    first, again, without = (
        trained(images, tmp_path / f"{number}.h5", cache, 2, turned)
        for number, cache in enumerate([tmp_path / "cache", tmp_path / "cache", "none"])
    )
    assert same(first, again)
    assert same(first, without)
    assert capsys.readouterr().err.count("features of 2 versions of each image found in the cache") == 2


@pytest.mark.slow
def test_a_damaged_cache_changes_no_bit(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engine_module, "MIN_IMAGES_TO_CONVERT", 1)
    first = trained(images, tmp_path / "1.h5", tmp_path / "cache", 1)
    for path in (tmp_path / "cache").rglob("*.rows"):
        content = bytearray(path.read_bytes())
        content[100] ^= 255
        path.write_bytes(content)
    assert same(first, trained(images, tmp_path / "2.h5", tmp_path / "cache", 1))
    assert "discarding" in capsys.readouterr().err


def test_the_first_view_is_the_picture_itself_and_the_others_differ(images, tmp_path):
    from fakereal.training.input_pipeline import EpochSampler

    records = scan(images, Preprocessing(SIZE_PX)).records[:5]
    whole = config.Config(SIZE_PX, augmentation=AugmentationConfig(), training=TrainingConfig(augmented_versions=3))
    feed = features.choose_batch_source(built("head"), whole, Preprocessing(SIZE_PX), RowCache(tmp_path, 10**9), 5)

    def rows(epoch):
        ((rows, _),) = feed.training(records, EpochSampler(0, 0, epoch), 8).as_numpy_iterator()
        return rows[np.argsort(EpochSampler(0, 0, epoch).order(records))]

    ((plain, _),) = feed.plain(records, 8).as_numpy_iterator()
    assert np.array_equal(rows(0), plain)
    assert not np.array_equal(rows(1), plain)
    assert not np.array_equal(rows(1), rows(2))
    assert np.array_equal(rows(1), rows(4))


def test_a_network_in_two_parts_has_the_outputs_of_the_whole(tmp_path):
    model, cache = built("head"), RowCache(tmp_path, 10**9)
    source = features.choose_batch_source(model, config.Config(SIZE_PX), Preprocessing(SIZE_PX), cache, 5)
    pictures = noise(40).astype(np.uint8)
    first = source.network.p_real(pictures)
    assert first == pytest.approx(model.predict(pictures.astype("float32"), verbose=0).reshape(-1), abs=1e-6)
    assert np.array_equal(source.network.p_real(pictures[3:5]), first[3:5])


def test_an_image_passes_through_the_frozen_part_once_also_in_the_next_run(tmp_path, monkeypatch):
    model, pictures, passed, found = built("head"), noise(3).astype(np.uint8), [], []
    real = features.KerasFrozenPart.features
    monkeypatch.setattr(
        features.KerasFrozenPart, "features", lambda self, images: passed.append(len(images)) or real(self, images)
    )
    for chosen in ([0, 1, 0], [1, 2, 0]):
        cache = RowCache(tmp_path, 10**9)
        source = features.choose_batch_source(model, config.Config(SIZE_PX), Preprocessing(SIZE_PX), cache, 5)
        found.append(source.network.p_real(pictures[chosen]))
        cache.flush()
    assert passed == [2, 1]
    assert np.array_equal(found[0], found[1][[2, 0, 2]])


@pytest.mark.parametrize(("writing_s", "written"), [(0.001, 5), (1.0, 1)])
def test_checkpoints_of_quick_epochs_take_at_most_a_tenth_of_the_time(monkeypatch, writing_s, written):
    clock = [0.0]

    def save(state):
        clock[0] += writing_s
        saved.append(clock[0])

    saved: list[float] = []
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    writer = checkpoint.CheckpointWriter(save)
    for _ in range(5):
        clock[0] += 0.1  # an epoch
        writer.write(checkpoint.TrainingState())
    assert len(saved) == written
    writer.write(checkpoint.TrainingState(), always=True)
    assert len(saved) == written + 1


def test_features_that_would_not_fit_are_computed_anew_and_that_is_said(tmp_path, capsys):
    feed = features.choose_batch_source(
        built("last20"), config.Config(SIZE_PX), Preprocessing(SIZE_PX), RowCache(tmp_path, 1000), 5
    )
    assert isinstance(feed, features.ImageBatches)
    assert "more than data.cache_gb" in capsys.readouterr().err


@pytest.mark.parametrize(("before", "now", "expected"), [(2, 0, "no more room"), (0, 2, "too small")])
def test_a_run_goes_on_with_the_kind_of_pictures_that_it_began_with(before, now, expected):
    checkpoint.check_versions(2, 2)
    with pytest.raises(DataError, match=expected):
        checkpoint.check_versions(before, now)


def test_a_checkpoint_with_other_variables_than_those_that_are_trained_is_refused(tmp_path):
    model, cache = built("head"), RowCache(tmp_path, 10**9)
    source = features.choose_batch_source(model, config.Config(SIZE_PX), Preprocessing(SIZE_PX), cache, 5)
    source.model.compile("adam", "binary_crossentropy")
    of_all = [np.asarray(variable) for variable in trainer._variables(model)]
    state = checkpoint.TrainingState(augmented_versions=2, current=of_all)
    with pytest.raises(checkpoint.CheckpointRefused, match="leave out --resume to start over"):
        trainer._restore(state, source)


@pytest.mark.slow
def test_a_cache_that_has_become_too_small_is_told_by_a_run_that_goes_on(images, tmp_path, monkeypatch):
    steps = iter(range(3))
    epoch = trainer._run_epoch

    def stop_in_the_second_epoch(*arguments):
        if next(steps) == 1:
            raise SystemExit  # as a kill would
        epoch(*arguments)

    monkeypatch.setattr(trainer, "_run_epoch", stop_in_the_second_epoch)
    with pytest.raises(SystemExit):
        trained(images, tmp_path / "m.h5", tmp_path / "cache", augmented_versions=2)
    small = recipe(images, tmp_path / "other", augmented_versions=2)
    small = dataclasses.replace(small, data=dataclasses.replace(small.data, cache_gb=1e-6))
    with pytest.raises(DataError, match="for which the cache has no more room"):
        run.train_and_report(small, tmp_path / "m.h5", resume=True)


# the frozen part on a faster engine


def fastest(cache, images=10_000, model=None):
    parts = features.split_network(model or built("last20"))
    return parts, features.fastest_frozen_part(parts.frozen, parts.fingerprint(), images, cache)


def test_a_converted_frozen_part_gives_the_features_of_keras_and_is_converted_once(tmp_path, capsys):
    parts, part = fastest(tmp_path)
    assert part.engine.startswith("LiteRT ")
    expected = parts.frozen.predict(noise(40), verbose=0)
    found = part.features(noise(40))
    assert (found.dtype, found.shape) == (np.float32, expected.shape)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.array_equal(fastest(tmp_path)[1].features(noise(40)), found)
    assert capsys.readouterr().err.count("converting") == 1


def test_a_converted_frozen_part_with_other_features_is_refused_once_and_for_all(tmp_path, capsys, monkeypatch):
    real, other, calls = conversion.convert, built("last20"), []
    stem = other.get_layer(networks.BASE).get_layer("stem")
    stem.set_weights([each * 1.01 for each in stem.get_weights()])
    wrong = features.split_network(other).frozen
    monkeypatch.setattr(features, "convert", lambda model, name: calls.append(name) or real(wrong, name))
    for _ in range(2):
        assert fastest(tmp_path)[1].engine == "Keras"
        assert "not LiteRT: features differ from Keras by" in capsys.readouterr().err
    assert calls == ["litert"]


@pytest.mark.parametrize("scope", ["head", "last20"])
@pytest.mark.parametrize("scored", [True, False])
def test_a_converted_part_and_the_rest_are_joined_to_the_whole_network(tmp_path, scope, scored, monkeypatch):
    parts, part = fastest(tmp_path, model=(model := built(scope)))
    prototypes = fit_prototypes(*(np.random.default_rng(n).random((30, 5)) for n in (1, 2)), 0) if scored else None
    detector = Detector(model, Metadata(config.Config(SIZE_PX), Preprocessing(SIZE_PX), prototypes=prototypes))
    backbone = features.SplitNetwork(part, parts.trained, None).converted_backbone(prototypes)
    converted, real = [], conversion.convert
    monkeypatch.setattr(conversion, "convert", lambda model, name: converted.append(model) or real(model, name))
    model_file.save(tmp_path / "m.h5", detector)
    export_beside(tmp_path / "m.h5", detector, backbone)
    assert converted == [backbone.head]
    network = open_network(tmp_path / "m.tflite").network
    assert network.outputs(noise()) == pytest.approx(detector.outputs(noise()), abs=1e-5)
    assert network.outputs(noise()).shape[1] == 1 + scored


def test_where_the_joined_network_gives_other_outputs_the_whole_one_is_converted(tmp_path, monkeypatch):
    parts, part = fastest(tmp_path, model=(model := built("head")))
    detector = Detector(model, Metadata(config.Config(SIZE_PX), Preprocessing(SIZE_PX)))
    backbone = features.SplitNetwork(part, parts.trained, None).converted_backbone(None)
    output = model.get_layer(networks.OUTPUT)
    output.set_weights([10 * each for each in output.get_weights()])
    wrong = conversion.convert(backbone.head, "litert")
    output.set_weights([each / 10 for each in output.get_weights()])
    real = conversion.convert
    monkeypatch.setattr(conversion, "convert", lambda m, name: wrong if m is backbone.head else real(m, name))
    model_file.save(tmp_path / "m.h5", detector)
    export_beside(tmp_path / "m.h5", detector, backbone)
    found = open_network(tmp_path / "m.tflite").network.p_real(noise())
    assert found == pytest.approx(detector.p_real(noise()), abs=1e-5)


def test_networks_that_do_not_fit_are_not_joined():
    parts = features.split_network(built("head"))
    lower, upper = (conversion.convert(each, "litert")[".tflite"] for each in (parts.frozen, parts.trained))
    with pytest.raises(ValueError, match="don't fit each other"):
        litert_join.join(upper, lower)


def test_a_few_pictures_are_not_worth_converting_for(tmp_path, capsys):
    assert fastest(tmp_path, images=engine_module.MIN_IMAGES_TO_CONVERT - 1)[1].engine == "Keras"
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_or_in_16_bits_keras_computes_the_features(tmp_path, monkeypatch, capsys):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = built("last20")
    finally:
        keras.config.set_dtype_policy("float32")
    assert fastest(tmp_path, model=model)[1].engine == "Keras"
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(RUNTIMES, "litert", dataclasses.replace(RUNTIMES["litert"], package="no-such-package"))
    assert fastest(tmp_path)[1].engine == "Keras"
    said = capsys.readouterr().err
    assert "features are computed by Keras, not LiteRT: package no-such-package is not installed: pip install" in said


@pytest.mark.parametrize("scope", ["head", "last20", "all"])
def test_features_are_those_of_the_whole_network_whatever_part_of_it_is_cached(scope, images, tmp_path):
    model, records = built(scope), scan(images, Preprocessing(SIZE_PX)).records[:10]
    still = config.Config(SIZE_PX, augmentation=STILL)
    cache = RowCache(tmp_path / "cache", 10**9)
    source = features.choose_batch_source(model, still, Preprocessing(SIZE_PX), cache, len(records))
    assert isinstance(source, features.ImageBatches) == (scope == "all")
    pixels = np.stack([Preprocessing(SIZE_PX).read(record.path) for record in records]).astype("float32")
    p_real, by_hash = source.outputs(records, 4, {record.sha256 for record in records[2:]})
    assert np.array_equal(p_real, source.predict(records, 4))
    assert by_hash.keys() == {record.sha256 for record in records[2:]}
    base = np.stack([by_hash[record.sha256] for record in records[2:]])
    pixels = pixels[2:]
    for found, layer in (
        (base, model.get_layer(networks.FEATURES).output),
        (features.penultimate(model, base), model.get_layer(networks.OUTPUT).input),
    ):
        expected = keras.Model(model.inputs, layer).predict(pixels, verbose=0)
        assert np.ptp(expected) > 0
        assert found == pytest.approx(expected, abs=1e-5)
    assert source.outputs([], 4)[0].shape == (0,)
