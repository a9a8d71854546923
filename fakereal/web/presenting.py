"""What is shown of an analysis: a JSON object for programs, words and pictures for people."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from fakereal.labels import FAKE, NAMES
from fakereal.model.heatmap import heatmap, paint
from fakereal.model.scoring import DECIMALS, UNCERTAIN
from fakereal.predict.results import details_of
from fakereal.predictions_json import dumps
from fakereal.web.analysis import Analysis

ADVISORY = (
    "A verdict is a hint, never a proof. The detector errs, most of all on kinds of pictures that it has not learnt"
    " from. Do not accuse a person, reject a submission or publish a claim because of it."
)
"""Stands on the page and in the API, as in the model card."""

VARIANT_NAMES = {
    "jpeg90": "saved as JPEG, quality 90",
    "jpeg70": "saved as JPEG, quality 70",
    "jpeg50": "saved as JPEG, quality 50",
    "scale0.5": "scaled to half and back",
    "blur1": "blurred by 1 pixel",
}
"""The re-saves of `stability.VARIANTS`, for people."""

_HEATMAP_PX = 112  # longer side; the browser scales it smoothly


def as_json(analysis: Analysis) -> dict[str, Any]:
    """Returns what the API says of one picture: the row of `--details`, and what the page shows beside it."""
    facts, p_fake = analysis.facts, analysis.calibrated_p_fake
    return {
        **details_of(analysis.result),
        "calibrated_p_fake": None if p_fake is None else round(p_fake, DECIMALS),
        "calibrated_p_real": None if p_fake is None else round(1.0 - p_fake, DECIMALS),
        "file": {
            "bytes": facts.file_bytes,
            "camera": facts.camera,
            "taken": facts.taken,
            "software": facts.software,
            "hints": list(facts.hints),
        },
        "stability": _stability(analysis),
        "explanation": _explanation(analysis) if analysis.evidence is not None else None,
    }


def document(analyses: Sequence[Analysis]) -> str:
    """Returns the text of predictions.json."""
    return dumps([analysis.result.prediction for analysis in analyses])


def _stability(analysis: Analysis) -> dict[str, Any] | None:
    if analysis.stable is None:
        return None
    variants = [
        {"variant": each.name, "prediction": NAMES[each.label], "calibrated_p_fake": round(each.p_fake, DECIMALS)}
        for each in analysis.variants
    ]
    return {"stable": analysis.stable, "variants": variants}


def _explanation(analysis: Analysis) -> dict[str, Any]:
    return {
        "method": "Grad-CAM",
        "label": NAMES[analysis.result.label],
        "overlay": heat_uri(analysis),
    }


def heat_uri(analysis: Analysis) -> str:
    """Returns the heatmap of what speaks for the picture's label as a data URI, to be laid over the whole picture."""
    width, height = analysis.shown.size
    scale = _HEATMAP_PX / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return _data_uri(paint(heatmap(analysis.evidence, analysis.result.label), size), "PNG")


def picture_uri(image: Image.Image) -> str:
    """Returns a picture as a data URI."""
    return _data_uri(image, "JPEG", quality=85)


def _data_uri(image: Image.Image, kind: str, **options: object) -> str:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def heat_is_empty(analysis: Analysis) -> bool:
    """Says whether nothing in the picture speaks for its label."""
    return not np.any(heatmap(analysis.evidence, analysis.result.label))


def percent(share: float) -> str:
    """Returns a probability as people read it; none is ever certain."""
    if share < 0.01:
        return "<1 %"
    return ">99 %" if share > 0.99 else f"{100 * share:.0f} %"


def in_words(analysis: Analysis) -> str:
    """Returns the verdict as a sentence."""
    p_fake = analysis.calibrated_p_fake
    verdict, label = analysis.result.verdict, analysis.result.label
    if verdict == UNCERTAIN:
        return f"Too close to call; it leans towards {NAMES[label]}."
    share = p_fake if label == FAKE else 1.0 - p_fake
    return f"{_sureness(share)} {NAMES[label]}."


def _sureness(share: float) -> str:
    for least, words in ((0.97, "Very likely"), (0.85, "Likely"), (0.7, "Probably")):
        if share >= least:
            return words
    return "Slightly more likely" if share >= 0.5 else "By this model's threshold"


def file_size(count: int) -> str:
    """Returns a file's size as people read it."""
    return (
        f"{count / 2**20:.1f} MB"
        if count >= 2**20
        else f"{count / 2**10:.1f} kB"
        if count >= 2**10
        else f"{count} bytes"
    )
