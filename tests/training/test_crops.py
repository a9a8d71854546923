"""A network with crops is measured on all its views, as prediction sees an image."""

import csv
from pathlib import Path

import numpy as np

from fakereal import config
from fakereal.config import NetworkConfig, ReportConfig, TrainingConfig, ViewsConfig
from fakereal.dataset.scan import scan
from fakereal.evaluation.evaluate import predict_records
from fakereal.preprocessing import Preprocessing
from fakereal.training import run


def test_a_network_with_crops_is_measured_on_all_views_and_knows_what_is_unlike_them(make_set, tmp_path):
    asked = config.Config(
        32, "none", data=config.DataConfig(str(make_set(tmp_path / "set", size=64)), cache_dir="none"),
        views=ViewsConfig(crops=1), network=NetworkConfig(name="cnn", filters=(4,)),
        training=TrainingConfig(epochs=1, fine_tune="all", batch_size=16), report=ReportConfig(resave_images=0),
    )  # fmt: skip
    trained = run.train_and_report(asked, tmp_path / "m.h5")
    metadata = trained.detector.metadata
    assert metadata.prototypes is not None
    rows = {row["sha256"]: row for row in csv.DictReader((trained.folder / "predictions.csv").open())}
    assert len(rows) == metadata.metrics["test"]["images"]
    tested = [each for each in scan(tmp_path / "set", Preprocessing()).records if each.sha256 in rows]
    predicted = predict_records(trained.detector, metadata.preprocessing, Path(), tested, "keras", 16, resave_images=0)
    stored = np.array([float(rows[each.sha256]["p_real"]) for each in tested])
    assert np.abs(stored - predicted.p_real).max() < 1e-5
