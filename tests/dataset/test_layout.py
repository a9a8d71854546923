"""Which folder counts as what: layouts as public sets have them, and names that must never be guessed."""

from __future__ import annotations

import pytest

from fakereal.dataset.class_table import table_lines
from fakereal.dataset.layout import MAX_SOURCES, LabelRules, Place, read_layout
from fakereal.errors import ConfigError, DataError
from fakereal.labels import NAMES

IMAGES = 7  # in each folder


def counts_of(folders):
    """The numbers of images for a text of folders such as `train/fake train/real`; `_` in place of a space."""
    return {tuple(folder.replace("~", " ").split("/")): IMAGES for folder in folders.split()}


def read(folders, **rules):
    """What each folder counts as: `fake`, `fake train`, `fake train midjourney`, or `-` where it is not used."""
    found = read_layout(counts_of(folders), LabelRules(**rules), "data")
    texts = {}
    for folder, place in found.items():
        label = NAMES[place.label] if isinstance(place, Place) else "-"
        more = (place.split, place.source) if isinstance(place, Place) else ()
        texts["/".join(folder)] = " ".join([label, *(word for word in more if word)])
    return texts


def asked(folders, **rules):
    """The one line that refuses a layout."""
    with pytest.raises(DataError) as caught:
        read(folders, **rules)
    assert "\n" not in str(caught.value)
    return str(caught.value)


KNOWN = {
    # name of a public set or habit: folders -> what they count as
    "the plain layout": ("fake real", "fake | real"),
    "upper case (CIFAKE)": (
        "train/FAKE train/REAL test/FAKE test/REAL",
        "fake train | real train | fake test | real test",
    ),
    "images": ("fake_images real_images", "fake | real"),
    "faces and art": ("fake_faces real_art", "fake | real"),
    "CASIA": ("Au Tp", "real | fake"),
    "FaceForensics++": (
        "original_sequences/youtube manipulated_sequences/Deepfakes manipulated_sequences/Face2Face",
        "real youtube | fake Deepfakes | fake Face2Face",
    ),
    "original and forged": ("original forged", "real | fake"),
    "pristine and manipulated": ("pristine manipulated", "real | fake"),
    "original and deepfake": ("original deepfake", "real | fake"),
    "original and faceswap": ("original faceswap", "real | fake"),
    "original and edited": ("original edited", "real | fake"),
    "CNNDetection": (
        "progan/cat/0_real progan/cat/1_fake stylegan/car/0_real stylegan/car/1_fake",
        "real progan/cat | fake progan/cat | real stylegan/car | fake stylegan/car",
    ),
    "CNNDetection's test": (
        "deepfake/0_real deepfake/1_fake gaugan/0_real gaugan/1_fake",
        "real deepfake | fake deepfake | real gaugan | fake gaugan",
    ),
    "Celeb-DF": ("Celeb-real Celeb-synthesis YouTube-real", "real | fake | real"),
    "real and fake face detection": (
        "real_and_fake_face/training_real real_and_fake_face/training_fake",
        "real train | fake train",
    ),
    "ImageNet in CamelCase": ("ImageNet_real fake-ImageNet", "real | fake"),
    "AiArtData": ("AiArtData/AiArtData RealArt/RealArt", "fake AiArtData | real RealArt"),
    "fakeV2": ("fakeV2/fake-v2 real", "fake fake-v2 | real"),
    "GenImage": (
        "sdv5/train/ai sdv5/train/nature sdv5/val/ai sdv5/val/nature adm/train/ai adm/train/nature",
        "fake train sdv5 | real train sdv5 | fake val sdv5 | real val sdv5 | fake train adm | real train adm",
    ),
    "class above generator": (
        "fake/midjourney fake/sdxl real/coco",
        "fake midjourney | fake sdxl | real coco",
    ),
    "source above class": ("laion/fake laion/real ffhq/fake", "fake laion | real laion | fake ffhq"),
    "a source whose name ends like a class": (
        "train/maskin_fake/fake train/maskin_real/real val/web/fake val/web/real",
        "fake train maskin_fake | real train maskin_real | fake val web | real val web",
    ),
    "one wrapper is no source": ("archive/dataset/fake archive/dataset/real", "fake | real"),
    "split and class in one name": (
        "train_fake train_real test_fake test_real",
        "fake train | real train | fake test | real test",
    ),
    "class before split in one name": ("fake_train real_train real-val", "fake train | real train | real val"),
    "split below class": ("fake/train fake/test real/train", "fake train | fake test | real train"),
    "train_set and test_set": (
        "train_set/fake train_set/real test_set/fake test_set/real",
        "fake train | real train | fake test | real test",
    ),
    "training_data and testing": (
        "Training_Data/fake Training_Data/real TESTING/fake TESTING/real",
        "fake train | real train | fake test | real test",
    ),
    "dev is validation": ("train/fake train/real dev/fake dev/real", "fake train | real train | fake val | real val"),
    "eval alone is a test": (
        "train/fake train/real eval/fake eval/real",
        "fake train | real train | fake test | real test",
    ),
    "eval beside test is validation": ("train/fake eval/fake test/real", "fake train | fake val | real test"),
    "dev and eval": ("train/fake dev/fake eval/real", "fake train | fake val | real test"),
    "years": ("train2017/fake train2017/real val2017/fake", "fake train | real train | fake val"),
    "AI in front of anything": ("AI_SD_baroque AI_LD_baroque real_art", "fake | fake | real"),
    "AI_generated": ("AI_generated REAL", "fake | real"),
    "ai-generated-images": ("ai-generated-images real-images", "fake | real"),
    "CamelCase": ("FakeFaces RealFaces", "fake | real"),
    "AIGenerated": ("AIGenerated Authentic", "fake | real"),
    "ai and human": ("ai human", "fake | real"),
    "AI and photos": ("train/AI train/photos val/photos", "fake train | real train | real val"),
    "artificial and nature": ("artificial nature", "fake | real"),
    "synthetic and camera": ("synthetic camera", "fake | real"),
    "ai and non-ai": ("ai non-ai", "fake | real"),
    "fake and not_fake": ("fake not_fake", "fake | real"),
    "real and not_real": ("not_real real", "fake | real"),
    "the same word in both names": ("fake_shoes real_shoes", "fake | real"),
    "the hackathon set": ("fake_cifake_images real_cifake_images test", "fake | real | -"),
    "a test without classes": ("set/fake set/real set/test set", "fake | real | - | -"),
    "known words last": ("midjourney_fake coco_real", "fake | real"),
    "edited inside a weak name": ("faceswap/original faceswap/swapped", "real | fake"),
    "a test beside all others": (
        "images/fake images/real test_set/fake test_set/real",
        "fake images | real images | fake test | real test",
    ),
    "numbers": ("fake1 fake2 real1", "fake | fake | real"),
    "a digit in front says nothing": ("0_fake 1_real", "fake | real"),
    "140k real and fake faces": (
        "real_vs_fake/real-vs-fake/train/fake real_vs_fake/real-vs-fake/train/real",
        "fake train | real train",
    ),
    "people are the content below a class": ("fake/people real/people", "fake people | real people"),
    "nature is the content below a class": (
        "fake/nature fake/cities real/nature",
        "fake nature | fake cities | real nature",
    ),
    "a folder of both classes is a source": (
        "faceswap/real faceswap/fake photos/real photos/fake",
        "real faceswap | fake faceswap | real photos | fake photos",
    ),
    "AI photos are fakes": ("ai_photos generated_people real", "fake | fake | real"),
    "real photos are reals": ("fake real_photos", "fake | real"),
    "buckets are no sources": ("fake/0001 fake/0002 real/images", "fake | fake | real"),
    "a folder of splits is no split": (
        "training/train/fake training/train/real training/test/fake",
        "fake train | real train | fake test",
    ),
    "spaces": ("Fake~Images Real~Images", "fake | real"),
}


@pytest.mark.parametrize(("folders", "expected"), KNOWN.values(), ids=KNOWN)
def test_a_known_layout_is_read(folders, expected):
    assert " | ".join(read(folders).values()) == expected


ASKED = {
    # folders -> what the line says
    "digits": (
        "0 1",
        "can't tell whether 0 (7 images), 1 (7 images) are fake or real: say it with --class 0=fake|real|skip",
    ),
    "digits in splits": (
        "train/0 train/1 test/0 test/1",
        "can't tell whether 0 (14 images), 1 (14 images) are fake or real",
    ),
    "unknown words": ("cats dogs", "can't tell whether cats (7 images), dogs (7 images) are fake or real"),
    "photos below a generator": (
        "real fake midjourney/photos",
        "can't tell whether midjourney/photos (7 images) is fake or real",
    ),
    "photos beside fake and real": ("fake real photos", "can't tell whether photos (7 images) is fake or real"),
    "human below a generator": (
        "real fake stylegan2/human",
        "can't tell whether stylegan2/human (7 images) is fake or real",
    ),
    "people below a generator": (
        "ai nature biggan/people",
        "can't tell whether biggan/people (7 images) is fake or real",
    ),
    "Real-ESRGAN beside reals": ("real fake Real-ESRGAN", "can't tell whether Real-ESRGAN (7 images) is fake or real"),
    "Real-ESRGAN beside fakes": ("fake Real-ESRGAN/x4", "can't tell whether Real-ESRGAN/x4 (7 images) is fake or real"),
    "RealESRGAN in CamelCase": ("fake RealESRGAN", "can't tell whether RealESRGAN (7 images) is fake or real"),
    "realistic_vision": (
        "fake real realistic_vision",
        "can't tell whether realistic_vision (7 images) is fake or real",
    ),
    "unreal": ("fake real unreal", "can't tell whether unreal (7 images) is fake or real"),
    "un-real": ("fake real un-real", "can't tell whether un-real (7 images) is fake or real"),
    "photo-real": ("fake real photo-real", "can't tell whether photo-real (7 images) is fake or real"),
    "real_estate": ("fake real_estate", "can't tell whether real_estate (7 images) is fake or real"),
    "a generator as third class": (
        "real midjourney sdxl",
        "can't tell whether midjourney (7 images), sdxl (7 images) are fake or real",
    ),
    "a third class": ("real fake edited", "can't tell whether edited (7 images) is fake or real"),
    "two words for reals": (
        "ai photos camera",
        "can't tell whether photos (7 images), camera (7 images) are fake or real",
    ),
    "both words in one name": (
        "fake real real_and_fake",
        "can't tell whether real_and_fake (7 images) is fake or real",
    ),
    "human_ai": ("human_ai real", "can't tell whether human_ai (7 images) is fake or real"),
    "human_generated": ("ai human_generated", "can't tell whether human_generated (7 images) is fake or real"),
    "not_real_estate": ("real not_real_estate", "not_real_estate (7 images) is fake or real"),
    "non-human": ("human non-human", "human (7 images), non-human (7 images) are fake or real"),
    "ai-free": ("ai ai-free", "ai-free (7 images) is fake or real"),
    "without AI": ("ai photos_without_ai", "photos_without_ai (7 images) is fake or real"),
    "user_generated": ("ai user_generated", "user_generated (7 images) is fake or real"),
    "AI images of humans": ("ai/human ai/ai_art real", "ai/human (7 images) is in a fake and in a real folder"),
    "held out beside classes": ("fake real holdout/fake holdout/real", "can't tell which split holdout (14 images) is"),
    "held-out": ("fake real held-out/fake", "can't tell which split held-out (7 images) is"),
    "ai-detection": ("ai-detection real", "can't tell whether ai-detection (7 images) is fake or real"),
    "real in fake": ("fake/real fake/old real", "fake/real (7 images) is in a fake and in a real folder"),
    "ground truth": ("Au Tp Groundtruth", "can't tell whether Groundtruth (7 images) is fake or real"),
    "a third folder": ("fake real elsewhere", "can't tell whether elsewhere (7 images) is fake or real"),
    "unknown split": (
        "train/fake train/real holdout/fake holdout/real",
        "can't tell which split holdout (14 images) is: say it with --split-folder holdout=train|val|test|skip",
    ),
    "eval beside val and test": (
        "train/fake val/fake test/fake eval/real",
        "can't tell which split eval (7 images) is: say it with --split-folder eval=train|val|test|skip",
    ),
    "a name with a space": ("fake real odd~ones", "--class 'odd ones'=fake|real|skip"),
    "a split with another word": (
        "train/fake train/real test_hard/fake",
        "can't tell which split test_hard (7 images) is",
    ),
    "train_val": ("train_val/fake train_val/real test/fake", "can't tell which split train_val (14 images) is"),
    "two splits": ("train/fake/test train/real", "train/fake/test (7 images) is in folders of several splits"),
    "splits in an unknown folder": (
        "cats/train cats/test dogs/train",
        "can't tell whether cats (14 images), dogs (7 images) are fake or real",
    ),
    "unlabeled folder below splits": (
        "train/fake train/real test/1 test/2",
        "can't tell whether test/1 (7 images), test/2 (7 images) are fake or real",
    ),
}


@pytest.mark.parametrize(("folders", "expected"), ASKED.values(), ids=ASKED)
def test_an_unclear_layout_is_asked_about_and_never_guessed(folders, expected):
    assert expected in asked(folders)


def test_the_folder_of_a_test_is_never_trained_on():
    assert read("real fake test_set/real test_set/fake") == {
        "real": "real",
        "fake": "fake",
        "test_set/real": "real test",
        "test_set/fake": "fake test",
    }


ANSWERED = {
    "digits": ("0 1", {"classes": ("0=real", "1=fake")}, "real | fake"),
    "a name at several places": (
        "train/0 train/1 test/0",
        {"classes": ("0=real", "1=fake")},
        "real train | fake train | real test",
    ),
    "a path": ("real midjourney/photos", {"classes": ("midjourney/photos=fake",)}, "real | fake midjourney"),
    "the folder above": ("real midjourney/photos", {"classes": ("midjourney=fake",)}, "real | fake photos"),
    "skip": ("real fake masks", {"classes": ("masks=skip",)}, "real | fake | -"),
    "any case": ("real fake Masks", {"classes": ("masks=SKIP",)}, "real | fake | -"),
    "a pattern for all that name no class": (
        "AI_SD_baroque baroque rococo",
        {"classes": ("*=real",)},
        "fake | real | real",
    ),
    "patterns in their order": (
        "real sd_15 sd_21 other",
        {"classes": ("sd_*=fake", "*=skip")},
        "real | fake | fake | -",
    ),
    "against the name": ("fake real", {"classes": ("fake=real", "real=fake")}, "real | fake"),
    "both classes in one path": ("fake/real real", {"classes": ("fake/real=fake",)}, "fake | real"),
    "a split": (
        "train/fake train/real holdout/fake holdout/real",
        {"split_folders": ("holdout=test",)},
        "fake train | real train | fake test | real test",
    ),
    "a split that is none": ("fake/coco real/val2017", {"split_folders": ("val2017=train",)}, "fake coco | real train"),
    "a skipped split": (
        "train/fake train/real old/fake",
        {"split_folders": ("old=skip",)},
        "fake train | real train | -",
    ),
    "two splits": (
        "train/fake/test train/real",
        {"split_folders": ("train/fake/test=train",)},
        "fake train | real train",
    ),
}


@pytest.mark.parametrize(("folders", "rules", "expected"), ANSWERED.values(), ids=ANSWERED)
def test_what_the_user_says_settles_it(folders, rules, expected):
    assert " | ".join(read(folders, **rules).values()) == expected


def test_a_name_that_is_mapped_against_the_class_around_it_is_asked_about():
    line = asked("real/photos midjourney/photos fake", classes=("photos=fake",))
    assert "real/photos (7 images) is in a fake and in a real folder" in line


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"classes": ("cats=fake",)}, "--class cats=fake: no folder of this name; there are fake, real"),
        ({"classes": ("cat*=fake",)}, "--class cat*=fake: no folder matches; there are fake, real"),
        ({"classes": ("fake=false",)}, "--class: expected NAME=fake|real|skip, got 'fake=false'"),
        ({"classes": ("fake",)}, "--class: expected NAME=fake|real|skip, got 'fake'"),
        ({"classes": ("fake=fake", "fake=real")}, "--class: fake is given as fake and as real: keep one"),
        ({"split_folders": ("fake=dev",)}, "--split-folder: expected NAME=train|val|test|skip, got 'fake=dev'"),
        ({"split_folders": ("dev=val",)}, "--split-folder dev=val: no folder of this name; there are fake, real"),
    ],
)
def test_a_rule_that_fits_nothing_is_one_line(rules, expected):
    with pytest.raises(ConfigError) as caught:
        read("fake real", **rules)
    assert str(caught.value) == expected


def table(folders):
    counts = counts_of(folders)
    places = read_layout(counts, LabelRules(), "data")
    return table_lines("data", {(folder, place): counts[folder] for folder, place in places.items()})


def test_the_table_says_what_each_folder_counts_as():
    assert table("train/fake/sdxl train/fake/flux train/real test") == [
        "data: which folder counts as what",
        "  folder            class     split  source  images",
        "  test/             not used  -      -            7",
        "  train/fake/flux/  fake      train  flux         7",
        "  train/fake/sdxl/  fake      train  sdxl         7",
        "  train/real/       real      train  -            7",
    ]


@pytest.mark.parametrize(
    ("folders", "row"),
    [
        (" ".join(f"fake/g{n} real/s{n}" for n in range(40)), "  fake/   fake   -      40 sources     280"),
        (" ".join(f"g{n}/fake g{n}/real" for n in range(40)), "  .../fake/  fake   -      40 sources     280"),
        (" ".join(f"AI_{n} real/s{n}" for n in range(40)), "  (all)   fake   -      -              280"),
    ],
)
def test_the_table_of_many_folders_is_short(folders, row):
    lines = table(folders)
    assert row in lines
    assert len(lines) <= 20


def test_very_many_folders_in_a_class_are_no_sources():
    persons = " ".join(f"real/person{n}" for n in range(MAX_SOURCES + 1))
    assert set(read(f"fake/sdxl {persons}").values()) == {"fake sdxl", "real"}
