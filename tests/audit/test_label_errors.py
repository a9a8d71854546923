import json
import shlex
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from separation_sets import separate, separated
from small_networks import brightness_network, write

import image_separate
from fakereal.audit import label_errors
from fakereal.config import Config, NetworkConfig
from fakereal.dataset.layout import LabelRules
from fakereal.dataset.scan import scan
from fakereal.errors import DataError
from fakereal.model import model_file, networks
from fakereal.preprocessing import Preprocessing


def labels_and_features(count=200, overlap=0.5, wrong=0.1):
    """Two clouds of features, with some labels swapped: features, labels as given, which are wrong."""
    rng = np.random.default_rng(3)
    true = np.repeat([0, 1], count // 2)
    features = rng.normal(0.0, overlap, (count, 6)) + true[:, None]
    swapped = np.zeros(count, dtype=bool)
    swapped[rng.choice(count, int(wrong * count), replace=False)] = True
    return features.astype(np.float32), np.where(swapped, 1 - true, true), swapped


def scored(features, labels, **options):
    return label_errors.score_labels(features, labels, np.arange(len(labels)), **{"folds": 5, "seed": 0, **options})


# Scores from features


@pytest.fixture(scope="module")
def separable():
    """What is found among images that are easy to separate, a tenth of them with the wrong label."""
    features, labels, _ = labels_and_features()
    return scored(features, labels)


def test_swapped_labels_among_separable_images_are_found_and_counted(separable):
    _, _, swapped = labels_and_features()
    found = separable
    assert np.mean(found.suspected[swapped]) >= 0.9
    assert np.mean(swapped[found.suspected]) >= 0.9
    assert found.estimate.interval[0] <= swapped.sum() <= found.estimate.interval[1]
    assert np.all(found.p_given[found.suspected] < 0.5)
    assert found.estimate.trial.recall > 0.7


def test_correct_labels_of_separable_images_are_not_suspected():
    features, labels, _ = labels_and_features(overlap=0.1, wrong=0.0)
    found = scored(features, labels)
    assert not found.suspected.any()
    assert (found.estimate.expected, found.estimate.interval[0]) == (0, 0)
    assert found.estimate.auc == 1.0


def test_where_the_features_are_useless_the_interval_begins_at_0():
    features, labels, _ = labels_and_features(overlap=100.0)
    found = scored(features, labels)
    assert found.estimate.clean_auc < label_errors.RELIABLE_AUC
    assert found.estimate.interval[0] == 0
    assert found.estimate.interval[1] > 50


@pytest.mark.parametrize("wrong", [0.0, 0.1, 0.3])
def test_hard_images_make_a_classifier_weak_and_wrong_labels_do_not(wrong):
    rng = np.random.default_rng(1)
    true = np.repeat([0, 1], 1000)
    labels = np.where(rng.random(2000) < wrong, 1 - true, true)
    sure = np.clip(np.where(true == 1, 0.9, 0.1) + rng.normal(0, 0.05, 2000), 0, 1)
    vague = np.clip(np.where(true == 1, 0.55, 0.45) + rng.normal(0, 0.1, 2000), 0, 1)
    assert label_errors.clean_auc(labels, sure) >= label_errors.RELIABLE_AUC
    assert label_errors.clean_auc(labels, vague) < label_errors.RELIABLE_AUC


def test_the_same_seed_gives_the_same_scores_and_another_other_folds(separable):
    features, labels, _ = labels_and_features()
    first, again, other = separable, scored(features, labels), scored(features, labels, seed=1)
    assert np.array_equal(first.p_given, again.p_given)
    assert first.estimate == again.estimate
    assert not np.array_equal(first.p_given, other.p_given)


def test_a_group_is_never_predicted_by_its_own_copies():
    # Features are noise, but every image has a copy with the same label: only a leak between folds could separate them.
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(60, 200)), 2, axis=0)
    labels = np.repeat(rng.integers(0, 2, 60), 2)
    together = label_errors.score_labels(features, labels, np.repeat(np.arange(60), 2), 5, 0)
    apart = label_errors.score_labels(features, labels, np.arange(120), 5, 0)
    assert apart.estimate.auc > 0.9
    assert together.estimate.auc < 0.7


def test_a_rare_class_and_fewer_images_than_folds_are_scored_too():
    features, labels, _ = labels_and_features(count=60)
    rare = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:3]])
    assert scored(features[rare], labels[rare]).suspected.shape == (len(rare),)


# Images


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model file whose base is a tiny network with random weights: it separates bright from dark only."""
    keras.utils.set_random_seed(0)
    config = Config(image_size=32, network=NetworkConfig(name="cnn", filters=(4,)))
    detector = model_file.Detector(
        networks.build(config.network, 32), model_file.Metadata(config=config, preprocessing=Preprocessing(32))
    )
    path = tmp_path_factory.mktemp("base") / "base.h5"
    model_file.save(path, detector)
    return str(path)


def bright_and_dark(root: Path, folders: dict[str, int], count=14, wrong=(3,)):
    """Fill class folders with dark (label 0) and bright images; those numbered `wrong` are of the other kind."""
    rng = np.random.default_rng(0)
    for folder, label in folders.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(1, count + 1):
            bright = label != (number in wrong)
            pixels = rng.integers(150, 250, (8, 8, 3)) if bright else rng.integers(0, 100, (8, 8, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / folder / f"{number}.png")
    return root


def names(records, root):
    return {record.path.relative_to(root).as_posix() for record in records}


def test_images_in_the_wrong_folder_are_found_and_separated_into_the_right_one(tmp_path, base):
    root = bright_and_dark(tmp_path / "set", {"fake": 0, "real": 1})
    (root / "real" / "note.txt").write_text("no image")
    (root / "real" / "15.png").write_bytes(b"broken")
    dataset = scan(root, Preprocessing(32))
    found = label_errors.find_label_errors(dataset, base=base)
    assert names((suspect.record for suspect in found.suspects), root) == {"fake/3.png", "real/3.png"}
    assert [(suspect.given, suspect.suggested) for suspect in found.suspects] in ([(0, 1), (1, 0)], [(1, 0), (0, 1)])
    assert all(suspect.p_given < 0.5 for suspect in found.suspects)

    written = label_errors.write_predictions(found, dataset, tmp_path / "report" / "label_errors")
    assert [path.name for path in written] == ["fake.json", "real.json"]
    assert json.loads(written[1].read_text())[14]["error"] == "text, not an image"
    code = separate(root, "--predictions", written[0].parent, "--output", tmp_path / "clean", "--mode", "copy")
    assert code == 1  # 15.png can't be read
    clean = separated(tmp_path / "clean")
    assert len(clean) == 28
    assert {"real_images/fake__3.png", "fake_images/real__3.png"} <= clean


@pytest.fixture
def brightness_base(tmp_path):
    """A base model that calls dark images fake."""
    network, config = brightness_network()
    write(tmp_path / "base.h5", network, name=config)
    return str(tmp_path / "base.h5")


def test_labels_that_all_run_against_the_base_model_are_said(tmp_path, brightness_base):
    """Out of fold, a classifier learns swapped labels as well as right ones: only the base model knows better."""
    right = scan(bright_and_dark(tmp_path / "right", {"fake": 0, "real": 1}), Preprocessing(32))
    swapped = scan(bright_and_dark(tmp_path / "swapped", {"fake": 1, "real": 0}), Preprocessing(32))
    found = label_errors.find_label_errors(swapped, base=brightness_base)
    (said,) = [line for line in label_errors.summary(found) if "seem to be swapped" in line]
    assert said.startswith("warning: the labels seem to be swapped against the shipped model: AUC 0.0")
    assert label_errors.as_json(found, swapped.root)["swapped"] == said.partition("model: ")[2]
    found = label_errors.find_label_errors(right, base=brightness_base)
    assert not any("swapped against" in line for line in label_errors.summary(found))
    assert label_errors.as_json(found, right.root)["swapped"] == ""


def test_the_given_test_split_is_neither_checked_nor_written(tmp_path, base):
    folders = {"train/fake": 0, "train/real": 1, "test/fake": 0, "test/real": 1}
    root = bright_and_dark(tmp_path / "set", folders)
    dataset = scan(root, Preprocessing(32))
    found = label_errors.find_label_errors(dataset, base=base)
    assert (found.checked, len(found.left_out)) == (28, 28)
    assert all(suspect.record.split == "train" for suspect in found.suspects)
    folder = tmp_path / "label_errors"
    written = label_errors.write_predictions(found, dataset, folder)
    assert [path.relative_to(folder).as_posix() for path in written] == ["train/fake.json", "train/real.json"]
    (command,) = label_errors.separation_commands(written, dataset, folder)
    assert f"image_separate.py {root}/train --predictions {folder}/train --output data/clean/train" in command
    assert any("28 images) was not checked" in line for line in label_errors.summary(found))


def test_too_few_images_are_refused_with_how_many_there_are(tmp_path, base):
    dataset = scan(bright_and_dark(tmp_path / "set", {"fake": 0, "real": 1}, count=9), Preprocessing(32))
    with pytest.raises(DataError, match="got 9 fake and 9 real"):
        label_errors.find_label_errors(dataset, base=base)


# Prediction JSONs


def no_suspects(dataset):
    trial = label_errors.Trial(1, 1, 1, 0)
    estimate = label_errors.Estimate(0, (0, 1), 0.99, 0.99, trial)
    return label_errors.LabelErrors((), len(dataset.records), estimate, ())


def test_files_with_one_number_are_named_by_their_path_so_that_separation_takes_them(tmp_path):
    root = bright_and_dark(tmp_path / "set", {"fake": 0, "real": 1, "fake/deep": 0}, count=2)
    Image.new("RGB", (9, 9)).save(root / "fake" / "1.jpg")
    Image.new("RGB", (9, 9), "red").save(root / "fake" / "caf\u00e9.png")
    dataset = scan(root, Preprocessing(32))
    written = label_errors.write_predictions(no_suspects(dataset), dataset, tmp_path / "label_errors")
    entries = json.loads(written[0].read_text())
    keys = [entry.get("index", entry.get("image")) for entry in entries]
    assert keys == [2, "1.jpg", "1.png", "caf\u00e9.png", "deep/1.png", "deep/2.png"]
    code = separate(root, "--predictions", tmp_path / "label_errors", "--output", tmp_path / "clean", "--mode", "copy")
    assert code == 0
    assert len(separated(tmp_path / "clean")) == 8


def test_a_class_folder_below_sources_has_its_json_at_the_same_place(tmp_path):
    root = bright_and_dark(tmp_path / "set", {"a/fake": 0, "a/real": 1, "b/1_fake": 0}, count=1)
    dataset = scan(root, Preprocessing(32))
    written = label_errors.write_predictions(no_suspects(dataset), dataset, tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "a/fake.json",
        "a/real.json",
        "b/1_fake.json",
    ]
    assert len(label_errors.separation_commands(written, dataset, tmp_path)) == 2


def test_folders_that_the_user_mapped_and_labels_of_a_file_can_be_separated_too(tmp_path):
    root = bright_and_dark(tmp_path / "set", {"cats": 0, "dogs": 1}, count=2)
    dataset = scan(root, Preprocessing(32), LabelRules(classes=("cats=fake", "dogs=real")))
    written = label_errors.write_predictions(no_suspects(dataset), dataset, tmp_path / "mapped")
    assert [path.name for path in written] == ["cats.json", "dogs.json"]

    flat = bright_and_dark(tmp_path / "flat", {".": 0}, count=4)
    (tmp_path / "labels.csv").write_text("id,label\n1,fake\n2,real\n3,real\n4,real\n")
    dataset = scan(flat, Preprocessing(32), LabelRules(labels_file=tmp_path / "labels.csv"))
    written = label_errors.write_predictions(no_suspects(dataset), dataset, tmp_path / "listed")
    (command,) = label_errors.separation_commands(written, dataset, tmp_path / "listed")
    options = shlex.split(command)[2:]
    assert image_separate.main([*options[:-3], str(tmp_path / "clean"), *options[-2:]]) == 0
    assert len(separated(tmp_path / "clean")) == 4


def test_a_report_lists_the_suspects_by_name(tmp_path):
    root = bright_and_dark(tmp_path / "set", {"fake": 0, "real": 1}, count=1)
    dataset = scan(root, Preprocessing(32))
    trial = label_errors.Trial(4, 3, 20, 11)
    suspect = label_errors.Suspect(dataset.records[0], 0, 1, 0.25, 0.3)
    estimate = label_errors.Estimate(1, (0, 2), 0.6, 0.7, trial)
    found = label_errors.LabelErrors((suspect,), 2, estimate, ())
    listed = label_errors.as_json(found, root)
    assert listed["suspects"] == [
        {"image": "fake/1.png", "given": "fake", "suggested": "real", "p_given": 0.25, "score": 0.3}
    ]
    assert not listed["reliable"]
    json.dumps(listed, allow_nan=False)
    assert any("let people decide" in line for line in label_errors.summary(found))
