import dataclasses
from pathlib import Path

import pytest
import yaml

from fakereal import config
from fakereal.config import Config
from fakereal.errors import ConfigError


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_flags_beat_the_file_and_the_file_beats_the_defaults(tmp_path):
    path = write(tmp_path, "seed: 7\ntraining: {epochs: 3, batch_size: 8}\n")
    loaded = config.load(path, {"training.epochs": 5})
    assert (loaded.seed, loaded.training.epochs, loaded.training.batch_size) == (7, 5, 8)
    assert loaded.training.learning_rate == Config().training.learning_rate


def test_a_flag_can_set_a_key_back_to_nothing_but_only_where_nothing_is_meant(tmp_path):
    path = write(tmp_path, "training: {validation_steps: 10}\n")
    assert config.load(path, {"training.validation_steps": None}).training.validation_steps is None
    with pytest.raises(ConfigError, match="epochs: expected a whole number, found None"):
        config.load(path, {"training.epochs": None})


def test_a_wrong_flag_is_not_blamed_on_the_file(tmp_path):
    path = write(tmp_path, "training: {epochs: 3}\n")
    with pytest.raises(ConfigError, match=r"^options: training: epochs: expected a whole number, found 'x'$"):
        config.load(path, {"training.epochs": "x"})
    with pytest.raises(ConfigError, match=r"^options: network: name: expected efficientnetb0 \| "):
        config.load(path, {"network.name": "efficientnet"})
    with pytest.raises(ConfigError, match=r"recipe\.yaml: training: epochs: expected a whole number, found 'x'$"):
        config.load(write(tmp_path, "training: {epochs: x}\n"), {"seed": 1})


def test_an_unknown_key_names_the_nearest_known_one(tmp_path):
    with pytest.raises(ConfigError, match="unknown key 'learning_rat'; did you mean 'learning_rate'"):
        config.load(write(tmp_path, "training: {learning_rat: 0.1}\n"))


def test_1e_minus_3_is_a_number_although_yaml_reads_it_as_text(tmp_path):
    path = write(tmp_path, "training: {learning_rate: 1e-3}\n")
    assert isinstance(yaml.safe_load(path.read_text())["training"]["learning_rate"], str)
    assert config.load(path).training.learning_rate == 0.001


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training: {epochs: true}\n", "expected a value of type int, found True"),
        ("training: {epochs: 2.5}\n", "expected a whole number, found 2.5"),
        ("training: {epochs: 0}\n", "epochs: expected 1 to 1e+06, found 0"),
        ("training: {optimizer: lion}\n", "expected adam | adamw | sgd, found 'lion'"),
        ("training: {class_weights: 1}\n", "expected true or false, found 1"),
        ("network: {dropout: 1.5}\n", "dropout: expected 0 to 0.95, found 1.5"),
        ("network: {dropout: .nan}\n", "network: dropout: expected a number, found nan"),
        ("network: [1]\n", "expected keys and values"),
        ("image_size: 16\n", "image_size: expected 32 to 1024, found 16"),
        ("data: {shares: [0.8, 0.2]}\n", "data.shares: expected three numbers above 0 that add up to 1"),
        ("data: {shares: [0.8, 0.2, 0.2]}\n", "data.shares: expected three numbers above 0 that add up to 1"),
        ("seed: -1\n", "seed: expected 0 to"),
        ("training: {patience: -1}\n", "patience: expected 0 to"),
        ("training: {learning_rate: .inf}\n", "learning_rate: expected a number, found inf"),
        ("training: {weight_decay: 0.1}\n", "expected adamw, as weight_decay is given"),
        ("training: {phases: [{image_size: 5}]}\n", "training.phases[0].image_size: expected 32 to 1024 pixels"),
        ("training: {phases: [{warmup: 2}]}\n", "training.phases[0].warmup: expected 0 to 1, found 2"),
        ("training: {phases: [{images_per_epoch: 0}]}\n", "training.phases[0].images_per_epoch: expected a whole"),
        ("network: {dense: [0]}\n", "expected whole numbers of at least 1, found 0"),
        ("network: {name: cnn}\ntraining: {phases: [{image_size: 64}]}\n", "as flattened maps fit one size only"),
        (
            "network: {name: cnn, filters: [4, 4, 4, 4, 4, 4]}\nimage_size: 32\n",
            "expected at most 5 blocks for 32 pixels, found 6",
        ),
        (
            "network: {name: cnn, pooling: avg, filters: [4, 4, 4, 4, 4, 4]}\ntraining: {phases: [{image_size: 32}]}\n",
            "expected at most 5 blocks for 32 pixels, found 6",
        ),
        ("training: {epochs: 3, phases: [{epochs: 2}]}\n", "training.epochs: expected none beside training.phases"),
        ("training: {fine_tune: all, phases: [{}]}\n", "training.fine_tune: expected none beside training.phases"),
        ("- 1\n", "expected keys and values, found list"),
        ("a: [\n", "expected YAML"),
    ],
)
def test_a_bad_value_is_refused_with_its_place(tmp_path, text, expected):
    with pytest.raises(ConfigError) as caught:
        config.load(write(tmp_path, text))
    assert expected in str(caught.value)


def test_the_effective_configuration_reads_back_as_itself(tmp_path):
    text = "training: {phases: [{train: all, epochs: 2}]}\naugmentation: {resaving: {share: 0.3}}\n"
    loaded = config.load(write(tmp_path, text), {"data.path": "x"})
    assert config.load(write(tmp_path, config.dumps(loaded))) == loaded
    assert loaded.training.phases[0].train == "all"


def test_every_option_of_the_configuration_is_explained():
    source = Path(config.__file__).read_text().splitlines()
    names = {field.name for kind in vars(config).values() if dataclasses.is_dataclass(kind)
             for field in dataclasses.fields(kind)}  # fmt: skip
    obvious = {"seed", "data", "network", "augmentation", "training", "resaving", "name", "epochs", "learning_rate",
               "batch_size", "optimizer", "fine_tune_epochs", "fine_tune_learning_rate", "horizontal_flip",
               "vertical_flip", "path", "neutralize", "report"}  # fmt: skip
    bare = [line for line in source if ": " in line and " = " in line and line.startswith("    ")
            and line.split(":")[0].strip() in names - obvious and "  # " not in line]  # fmt: skip
    assert bare == []


@pytest.mark.parametrize(
    ("key", "value"), [("epochs", 1), ("learning_rate", 1), ("fine_tune", "all"), ("batch_size", 1)]
)
def test_a_flag_that_a_recipe_with_phases_would_ignore_is_refused(tmp_path, key, value):
    path = write(tmp_path, "training: {phases: [{epochs: 2}]}\n")
    with pytest.raises(
        ConfigError, match=rf"{key} \(--{key.replace('_', '-')}\): has no effect, as .* lists training.phases"
    ):
        config.load(path, {f"training.{key}": value})


@pytest.mark.parametrize("dotted", ["training.views", "training.augmented_versions"])
def test_a_key_of_earlier_versions_is_read_under_its_present_name(tmp_path, dotted):
    file = tmp_path / "c.yaml"
    file.write_text(f"training: {{{dotted.split('.')[1]}: 3, epochs: 2}}\n")
    expected = config.TrainingConfig(augmented_versions=3, epochs=2)
    assert config.load(file).training == expected
    tree = config.as_dict(config.load(file))
    tree["training"] = {dotted.split(".")[1] if key == "augmented_versions" else key: value
                        for key, value in tree["training"].items()}  # fmt: skip
    assert config.from_dict(tree, "model").training == expected
    assert config.load(file, {dotted: 4}).training.augmented_versions == 4


def test_an_old_key_beside_the_new_one_is_refused(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("training: {views: 3, augmented_versions: 2}\n")
    with pytest.raises(ConfigError, match="unknown key 'views'"):
        config.load(file)
