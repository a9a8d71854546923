import pytest

from fakereal.labels import FAKE, REAL, label_of_folder, label_of_name


@pytest.mark.parametrize(
    "name",
    ["fake", "FAKE", "fake_images", "Fake Images", "1_fake", "ai", "AI-generated", "tampered", "GAN", "deepfakes"],
)
def test_a_fake_folder_is_known_by_its_usual_names(name):
    assert label_of_folder(name) == FAKE


@pytest.mark.parametrize("name", ["real", "REAL", "real_images", "0_real", "genuine", "Nature", "authentic", "photos"])
def test_a_real_folder_is_known_by_its_usual_names(name):
    assert label_of_folder(name) == REAL


@pytest.mark.parametrize("name", ["", "images", "train", "unreal", "real_and_fake", "0", "1_", "cats"])
def test_other_folders_are_no_class_folders(name):
    assert label_of_folder(name) is None


def test_only_the_two_words_are_predictions():
    assert (label_of_name(" Fake "), label_of_name("REAL"), label_of_name("ai")) == (FAKE, REAL, None)
