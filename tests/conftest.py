"""Fixtures for all tests: tiny generated images, and the development image sets where they are available."""

from __future__ import annotations

import contextlib
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakereal.runtime import set_quiet

ROOT = Path(__file__).parents[1]
_ARCHIVES = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the user's cache and that of the tests apart."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))


@pytest.fixture(autouse=True)
def messages_shown() -> None:
    """Undo what a test of --quiet, in the same process, left behind."""
    set_quiet(False)


def make_labeled_images(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Write 40x40 noise, mostly bright in folders of reals and mostly dark in folders of fakes; return the folder."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            gray = rng.normal(150 if name.endswith("real") else 105, 30)
            array = np.clip(rng.normal(gray, 20, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(array).save(folder / name / f"{number}.png")
    return folder


@contextlib.contextmanager
def as_a_user_without_rights(folder: Path) -> Iterator[None]:
    """Run as a user without rights, even where the tests run as root; that user gets the folder."""
    if os.geteuid() != 0:
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that a user without rights can reach, which pytest's own is not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name).resolve()


@pytest.fixture
def make_image() -> Callable[..., Path]:
    """A function that writes an image whose pixels depend on the seed: `make_image(path, seed, **save)`."""

    def make(path: Path, seed: int = 0, size: tuple[int, int] = (32, 32), mode: str = "RGB", **save: object) -> Path:
        rng = np.random.default_rng(seed)
        small = rng.integers(0, 256, size=(4, 4, 3), dtype=np.uint8)  # smooth, so that lossy formats stay close
        image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **save)
        return path

    return make


@pytest.fixture
def make_folder(make_image: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A function that writes images, all different: `make_folder({"train/real": 5, "train/fake": 4})`."""

    def make(counts: dict[str, int], name: str = "images", suffix: str = ".png") -> Path:
        seed = 0
        for folder, count in counts.items():
            for number in range(1, count + 1):
                make_image(tmp_path / name / folder / f"{number}{suffix}", seed)
                seed += 1
        return tmp_path / name

    return make


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with random weights, as train_model.py would save it."""
    from small_networks import built, write

    return write(tmp_path_factory.mktemp("model") / "small.h5", built(5))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder for folders of images to separate."""
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The output of a separation; it does not exist yet."""
    return tmp_path / "clean"


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that unpacks a development image set, once per session, and returns its folder."""
    unpacked: dict[str, Path] = {}

    def find(name: str) -> Path:
        archive = _ARCHIVES / f"{name}.tar.xz"
        if not archive.is_file():
            pytest.skip(f"the image set {name} is not in ../shared/data")
        if name not in unpacked:
            folder = tmp_path_factory.mktemp("data")
            with tarfile.open(archive) as file:
                file.extractall(folder, filter="data")
            unpacked[name] = folder / name
        return unpacked[name]

    find.archives = _ARCHIVES
    return find
