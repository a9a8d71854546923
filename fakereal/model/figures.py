"""Everything that a report shows, as one tree of plain values, without times: `metrics.json`."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from fakereal.labels import FAKE, NAMES, REAL
from fakereal.model import curves
from fakereal.model.judging import Judged
from fakereal.model.metrics import measure
from fakereal.model.model_file import Detector
from fakereal.model.scoring import DECIMALS, Decision, calibrate, calibrated_p_fake, confidence, verdicts
from fakereal.model.scoring import labels as labels_from

MISTAKES = 24
"""Of the wrong labels, so many are shown, the most confident ones first."""


@dataclass(frozen=True)
class Subject:
    """What was judged, in words for people."""

    model: str  # the file
    model_sha256: str  # of its content
    data: str  # the folder
    pictures: str  # which of its pictures
    command: str  # that gives this report again
    notes: tuple[str, ...] = ()  # what a reader has to know: what was left out, what is not known


def figures(judged: Judged, detector: Detector, subject: Subject) -> dict[str, Any]:
    """Returns the whole tree; probabilities and shares are 0..1, intervals are pairs (low, high) of 95 %."""
    metadata, labels, p_real = detector.metadata, judged.labels, judged.p_real
    decision = metadata.decision
    p_fake = calibrated_p_fake(p_real, decision)
    return {
        "subject": dataclasses.asdict(subject),
        "model": {**_model(detector), "engine": judged.engine},
        "data": _data(judged),
        "decision": dataclasses.asdict(decision),
        "metrics": measure(labels, p_real, decision),
        "metrics_at_0.5": measure(labels, p_real, Decision(temperature=decision.temperature)),
        "calibration": _calibration(labels, p_real, decision),
        "band": _band(labels, p_real, decision),
        "by_source": by_source(judged, decision),
        "resaves": _resaves(judged, decision),
        "curves": {
            "roc": curves.roc(labels, p_fake),
            "precision_recall": curves.precision_recall(labels, p_fake),
        },
        "mistakes": _mistakes(judged, decision),
        "audit": metadata.data.get("audit"),  # of the pictures of its training
        "training": {
            "data": _without_audit(metadata.data),
            "history": list(metadata.history),
            "versions": metadata.versions,
        },
    }


def _without_audit(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != "audit"}


def rows(judged: Judged, decision: Decision) -> list[dict[str, Any]]:
    """Returns a row a picture, for `predictions.csv`; columns that prediction's details have too mean the same."""
    p_real = judged.p_real
    answers = labels_from(p_real, decision), verdicts(p_real, decision), confidence(p_real, decision), p_real
    columns = zip(judged.records, *answers, strict=True)
    return [
        {
            "path": record.path.relative_to(judged.root).as_posix(),
            "sha256": record.sha256,
            "source": record.source,
            "label": NAMES[record.label],
            "prediction": NAMES[predicted],
            "verdict": verdict,
            "confidence": round(float(sure), DECIMALS),
            "p_fake": round(1.0 - float(p), DECIMALS),
            "p_real": float(p),
        }
        for record, predicted, verdict, sure, p in columns
    ]


def _model(detector: Detector) -> dict[str, Any]:
    metadata = detector.metadata
    return {
        "network": metadata.config.network.name,
        "weights": metadata.base_weights,
        "parameters": int(detector.model.count_params()),
        "image_size_px": metadata.preprocessing.image_size_px,
        "preprocessing": metadata.preprocessing.fingerprint,
    }


def _data(judged: Judged) -> dict[str, Any]:
    lines = sorted(f"{record.sha256} {record.label}" for record in judged.records)
    return {
        "images": len(judged.records),
        "fake": int(np.sum(judged.labels == FAKE)),
        "real": int(np.sum(judged.labels == REAL)),
        "fingerprint": hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
    }


def _calibration(labels: np.ndarray, p_real: np.ndarray, decision: Decision) -> dict[str, Any]:
    tree = {}
    for name, temperature in (("before", 1.0), ("after", decision.temperature)):
        bins = curves.reliability(labels, 1.0 - calibrate(p_real, temperature))
        tree[name] = {
            "temperature": temperature,
            "expected_calibration_error": round(curves.calibration_error(bins), 6),
            "bins": [dataclasses.asdict(each) for each in bins],
        }
    return tree


def _band(labels: np.ndarray, p_real: np.ndarray, decision: Decision) -> dict[str, Any]:
    sure = np.array([verdict in NAMES for verdict in verdicts(p_real, decision)])
    right = labels_from(p_real, decision) == labels
    return {
        "low": decision.band[0],
        "high": decision.band[1],
        "coverage": round(float(np.mean(sure)), 6),
        "accuracy_outside": _mean(right[sure]),
        "accuracy_inside": _mean(right[~sure]),
    }


def _mean(values: np.ndarray) -> float | None:
    return round(float(np.mean(values)), 6) if len(values) else None


def by_source(judged: Judged, decision: Decision) -> dict[str, Any]:
    """Returns the figures of each source; of one that has a single class only, its share of right labels."""
    sources = np.array([record.source for record in judged.records])
    table: dict[str, Any] = {}
    for source in sorted(set(sources)) if len(set(sources)) > 1 else ():
        chosen = sources == source
        labels, p_real = judged.labels[chosen], judged.p_real[chosen]
        if len(set(labels)) == 2:
            table[str(source)] = measure(labels, p_real, decision)
        else:
            right = float(np.mean(labels_from(p_real, decision) == labels))
            table[str(source)] = {"images": len(labels), "only": NAMES[labels[0]], "accuracy": round(right, 6)}
    return table


def _resaves(judged: Judged, decision: Decision) -> dict[str, Any] | None:
    if not judged.resaved:
        return None
    labels, p_real = judged.labels[judged.resaved_of], judged.p_real[judged.resaved_of]
    if len(set(labels)) < 2:
        return None
    table = {name: _resave(labels, p_real, outputs, decision) for name, outputs in judged.resaved.items()}
    return {"images": len(labels), "as_is": measure(labels, p_real, decision), "saved_again": table}


def _resave(labels: np.ndarray, before: np.ndarray, p_real: np.ndarray, decision: Decision) -> dict[str, Any]:
    """Returns the figures after saving again, and how many labels it flipped; `before` is p_real as it was."""
    as_is, now = labels_from(before, decision), labels_from(p_real, decision)
    flips = {
        "flipped": now != as_is,
        "flipped_to_fake": (now == FAKE) & (as_is == REAL),
        "flipped_to_real": (now == REAL) & (as_is == FAKE),
        "flipped_to_wrong": (now != as_is) & (now != labels),
        "verdict_changed": np.array(verdicts(before, decision)) != np.array(verdicts(p_real, decision)),
    }
    return {**measure(labels, p_real, decision), **{name: int(mask.sum()) for name, mask in flips.items()}}


def _mistakes(judged: Judged, decision: Decision) -> list[dict[str, Any]]:
    table = rows(judged, decision)
    wrong = [number for number, row in enumerate(table) if row["label"] != row["prediction"]]
    wrong.sort(key=lambda number: -table[number]["confidence"])
    return [table[number] for number in wrong[:MISTAKES]]
