"""Development tool: the image sets behind models/pretrained.h5 -> one folder that train_model.py takes.

    python -m tools.assemble_pretraining_set --sets SETS --cifake-split models/cifake_run/split.csv --output DIR

SETS holds the unpacked sets, `cifake/train|test/REAL|FAKE` and `<set>/real|fake`; DIR gets
`train|val|test/<set>/<class>/`.
CIFAKE's official test pictures are not taken: they judge the result. What the first step (configs/cifake.yaml) learnt
from stays in train, what it chose by becomes val and test, so that no picture is ever learnt from and chosen by.
Of the other sets, some give their labels away by size or JPEG table; of those both classes go through the same crop,
reduction and JPEG encoding, which ends the old 8x8 grid and table. All files of the small sets are encoded anew, at a
quality that the content's hash chooses, not the class.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import os
import sys
from pathlib import Path

from PIL import Image

from fakereal.files import write_atomic
from fakereal.labels import NAMES, label_of_folder
from fakereal.runtime import parallel_map

SIDE_PX = {"humanfaces": 133, "shoes": 180, "lfw_faceswap": 187, "ciplab": 448, "ziad": 168}
"""Sets with a leak: the side, three quarters of the smaller class's, to which both classes are reduced."""
KEPT_SIZE = ("dualcue", "visionprobe")
"""Sets whose classes have the same sizes and tables: encoded anew, not resized."""
SHARES = (0.7, 0.15)
"""Of train and validation in the small sets; the rest is for testing."""
_QUALITIES = (80, 97)


def main() -> int:
    """Runs the tool; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True, metavar="DIR", help="the unpacked image sets")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the result goes")
    parser.add_argument("--cifake-split", type=Path, required=True, metavar="FILE", help="split.csv of the first step")
    options = parser.parse_args()
    with open(options.cifake_split, newline="", encoding="utf-8") as file:
        learnt = {row["sha256"] for row in csv.DictReader(file) if row["split"] == "train"}
    jobs = [(name, path) for name in ("cifake", *KEPT_SIZE, *SIDE_PX) for path in pictures(options.sets, name)]
    for _ in parallel_map(lambda job: place(*job, options.output, learnt), jobs, "assembling"):
        pass
    print(options.output)
    return 0


def pictures(sets: Path, name: str) -> list[Path]:
    """Returns a set's pictures in a fixed order."""
    folder = sets / name / "train" if name == "cifake" else sets / name
    return sorted(path for path in folder.rglob("*") if path.is_file() and label_of_folder(path.parent.name) in (0, 1))


def place(name: str, path: Path, output: Path, learnt: set[str]) -> None:
    """Puts one picture where the first step had it, or where its content's hash says."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).digest()
    draw = int.from_bytes(digest[:8]) / 2**64
    if name == "cifake":
        split = "train" if digest.hex() in learnt else "val" if draw < 0.5 else "test"
    else:
        split = "train" if draw < SHARES[0] else "val" if draw < sum(SHARES) else "test"
    target = output / split / name / NAMES[label_of_folder(path.parent.name)] / f"{path.stem}.jpg"
    target.parent.mkdir(parents=True, exist_ok=True)
    if name == "cifake":
        target.unlink(missing_ok=True)
        os.link(path, target)
    else:
        quality = _QUALITIES[0] + digest[8] % (_QUALITIES[1] - _QUALITIES[0] + 1)
        write_atomic(target, neutral(data, SIDE_PX.get(name), quality))


def neutral(data: bytes, side_px: int | None, quality: int) -> bytes:
    """Returns a picture as a JPEG that tells nothing of how it was stored before."""
    with Image.open(io.BytesIO(data)) as image:
        image = image.convert("RGB")
    if side_px:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((side_px, side_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
