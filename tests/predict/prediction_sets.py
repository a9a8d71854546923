"""Images in folders and archives to predict, and a network whose output follows from the pixels."""

import io
import tarfile
import zipfile
from pathlib import Path

from PIL import Image

from fakereal.predict import pipeline
from fakereal.predict.results import decide


class Brightness:
    """A network that calls bright images real; it remembers the shapes of its batches."""

    def __init__(self):
        self.shapes = []

    def p_real(self, images):
        self.shapes.append(images.shape)
        return images.mean(axis=(1, 2, 3)) / 255


def png(gray: int = 200) -> bytes:
    """A gray PNG."""
    content = io.BytesIO()
    Image.new("RGB", (20, 10), (gray,) * 3).save(content, "PNG")
    return content.getvalue()


def write(path: Path, content: bytes) -> Path:
    """Write a file, and the folders that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    """Write a zip archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def tarred(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar archive, compressed as its suffix says."""
    kind = path.suffix.lstrip(".")
    with tarfile.open(path, "w:" + (kind if kind != "tar" else "")) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def predict(listing, network, preprocessing, decision, batch_size):
    """The results of a listing."""
    return decide(list(pipeline.predict_batches(listing.items, network, preprocessing, batch_size)), decision)
