"""`--explain DIR`: for every predicted picture an overlay that shows which regions speak for its label (Grad-CAM)."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fakereal.errors import ImageRefused
from fakereal.files import write_whole
from fakereal.labels import NAMES
from fakereal.model import scoring
from fakereal.model.heatmap import Explains, heatmap, overlay, seen_part
from fakereal.model.scoring import Decision
from fakereal.predict import pipeline
from fakereal.predict.inputs import Item
from fakereal.predict.pipeline import Outcome
from fakereal.preprocessing import Preprocessing, decode

_CAPTION_PX = 26
_LONGEST_NAME_BYTES = 200  # of a file system's usual 255


@dataclass(frozen=True)
class Overlays:
    """Where overlays go, and what they need beside the pictures."""

    folder: Path
    explainer: Explains
    preprocessing: Preprocessing
    decision: Decision
    names: Mapping[str, str]  # of each picture's overlay, see `overlay_names`

    def outcomes(self, items: Iterable[Item], batch_size: int, variants: Sequence[str] = ()) -> Iterator[Outcome]:
        """Like `pipeline.outcomes`, with the same outputs from the same pass, and writes each batch's overlays."""
        with (
            ThreadPoolExecutor(pipeline.workers(), thread_name_prefix="overlay") as pool,
            closing(pipeline.batches(items, self.preprocessing, batch_size, variants)) as ready,
        ):
            for batch, rows in ready:
                found = [self.explainer.explain(images) for images in rows]
                outcomes = list(pipeline.answered(batch, [p for each in found for p in each.p_real]))
                readable = [outcome for outcome, each in zip(outcomes, batch, strict=True) if each.images]
                evidence = [each for explanation in found for each in explanation.evidence][:: 1 + len(variants)]
                # A disk that is full must stop the run: `list` lets the error through.
                list(pool.map(self._write, readable, evidence))
                yield from outcomes

    def _write(self, outcome: Outcome, evidence: np.ndarray) -> None:
        if outcome.p_real is None:
            return
        try:
            image, _ = decode(outcome.item.open(), self.preprocessing.decode_px)
        except ImageRefused:  # gone or changed since it was predicted
            return
        content = io.BytesIO()
        self._picture(image, outcome.p_real, evidence).save(content, "JPEG", quality=90)
        write_whole(self.folder / self.names[outcome.item.name], content.getvalue())

    def _picture(self, image: Image.Image, p_real: float, evidence: np.ndarray) -> Image.Image:
        """Returns the picture, the same with its heatmap beside it, and above them what is shown."""
        label = int(scoring.labels(np.float64(p_real), self.decision))
        sure = float(scoring.confidence(np.float64(p_real), self.decision))
        shown = seen_part(image, self.preprocessing)
        sheet = Image.new("RGB", (max(2 * shown.width, 330), shown.height + _CAPTION_PX), "white")
        sheet.paste(shown, (0, _CAPTION_PX))
        sheet.paste(overlay(shown, heatmap(evidence, label)), (shown.width, _CAPTION_PX))
        caption = f"{NAMES[label]} ({100 * sure:.0f} %); coloured: what speaks for {NAMES[label]}"
        ImageDraw.Draw(sheet).text((6, 5), caption, "black", ImageFont.load_default(14))
        return sheet


def overlay_names(names: Iterable[str]) -> dict[str, str]:
    """Returns a file name for each picture's relative path, all different, also where upper and lower case are one."""
    plain = {name: name.replace("/", "__") + "_gradcam.jpg" for name in names}
    count = Counter(name.casefold() for name in plain.values())
    return {
        name: wanted
        if count[wanted.casefold()] == 1 and len(wanted.encode(errors="surrogateescape")) <= _LONGEST_NAME_BYTES
        else _with_hash(name, wanted)
        for name, wanted in plain.items()
    }


def _with_hash(name: str, wanted: str) -> str:
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]
    return f"{wanted[:40]}__{digest}_gradcam.jpg"
