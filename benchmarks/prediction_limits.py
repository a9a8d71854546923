"""Decoding alone, and the network alone: the lower limits of prediction time for prediction_speed.py, which runs them.

Each starts as predict_and_save_json.py does and then does only one of the two things that the script overlaps.

    python -m benchmarks.prediction_limits decode FOLDER MODEL.h5 auto
    python -m benchmarks.prediction_limits network FOLDER MODEL.h5 auto
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import numpy as np

from fakereal.engines.engine import open_network
from fakereal.model.metadata import read_own
from fakereal.predict import pipeline
from fakereal.predict.inputs import list_images

_BATCH = 32


def main() -> None:
    """Do one of the two for every image of a folder."""
    way, folder, model, engine = sys.argv[1:]
    listing = list_images(folder)
    if way == "decode":
        preprocessing = read_own(Path(model), False).preprocessing
        with closing(pipeline.decode_batches(listing.items, preprocessing, _BATCH)) as ready:
            print(sum(len(batch.decoded) for batch in ready))
        return
    opened = open_network(Path(model), engine)
    preprocessing = opened.metadata.preprocessing
    first, _ = preprocessing.decode(next(Path(folder).iterdir()))
    views = len(preprocessing.views(first))  # the others have its size
    shape = (_BATCH * views, *2 * [preprocessing.image_size_px], 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for _ in range(-(-len(listing.items) // _BATCH)):
        opened.network.p_real(images)
    print(len(listing.items))


if __name__ == "__main__":
    main()
