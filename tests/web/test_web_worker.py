import contextlib
import dataclasses
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from web_apps import ROOT, SIZE_PX, Brightness

import predict_and_save_json as door
from fakereal.runtime import start_keras
from fakereal.web.http import BusyError
from fakereal.web.service import MAX_BATCH, Worker


def image(gray: int) -> np.ndarray:
    return np.full((SIZE_PX, SIZE_PX, 3), gray, np.uint8)


@pytest.fixture
def started():
    """A function that starts a worker, and afterwards stops all of them."""
    workers = []

    def start(network, queue=1000, **options) -> Worker:
        workers.append(Worker(network, SIZE_PX, queue, **options))
        workers[-1].start()
        workers[-1].wait_until_warm()
        return workers[-1]

    yield start
    for worker in workers:
        worker.stop(10)


def test_every_image_gets_its_own_answer(started):
    worker = started(Brightness())
    with worker.admit(100) as admission:
        answers = [admission.submit(image(gray)) for gray in range(100)]
        assert [answer.result(10).p_real for answer in answers] == pytest.approx([gray / 255 for gray in range(100)])


def test_images_that_wait_are_computed_together(started):
    free, counts = threading.Event(), []
    network = Brightness()
    worker = started(network, observe=counts.append)
    network.wait = lambda: free.wait(10)
    with worker.admit(41) as admission:
        first = admission.submit(image(0))
        while not counts:
            time.sleep(0.001)
        others = [admission.submit(image(gray)) for gray in range(40)]
        free.set()
        for answer in (first, *others):
            answer.result(10)
    assert counts[0] == 1
    assert counts[1] == MAX_BATCH
    assert sum(counts) == 41
    assert set(network.sizes) <= {2, 3, 4, 6, 8, 12, 16, 24, MAX_BATCH}


def test_only_who_asks_for_evidence_gets_it(started):
    worker = started(Brightness())
    with worker.admit(2) as admission:
        plain, explained = admission.submit(image(9)), admission.submit(image(200), explain=True)
        assert plain.result(10).evidence is None
        assert explained.result(10).evidence.shape == (4, 4)


def test_a_lone_image_does_not_wait_for_others(started):
    worker = started(Brightness())
    started_s = time.perf_counter()
    for _ in range(20):
        with worker.admit(1) as admission:
            admission.submit(image(1)).result(10)
    assert (time.perf_counter() - started_s) / 20 < 0.02


def test_no_more_is_admitted_than_there_is_room(started):
    worker = started(Brightness(), queue=3)
    with worker.admit(2):
        with pytest.raises(BusyError, match="2 of 3 places are taken"):
            worker.admit(2)
        with worker.admit(1):
            assert worker.admitted == 3
    assert worker.admitted == 0


def test_a_request_larger_than_the_queue_has_it_for_itself(started):
    worker = started(Brightness(), queue=3)
    with worker.admit(1), pytest.raises(BusyError):
        worker.admit(50)
    with worker.admit(50) as admission:
        with pytest.raises(BusyError):
            worker.admit(1)
        answers = [admission.submit(image(gray)) for gray in range(50)]
        assert answers[49].result(10).p_real == pytest.approx(49 / 255)
    assert worker.admitted == 0


def test_room_is_given_back_whatever_happens_to_the_request(started):
    worker = started(Brightness(), queue=2)
    with contextlib.suppress(ZeroDivisionError), worker.admit(2) as admission:
        admission.submit(image(1))
        raise ZeroDivisionError
    assert worker.admitted == 0
    started_s = time.perf_counter()
    with worker.admit(1) as admission:
        admission.submit(image(3)).result(10)
    assert time.perf_counter() - started_s < 1  # nobody is waited for who never comes


def test_what_was_cancelled_costs_the_network_nothing(started):
    free = threading.Event()
    network = Brightness()
    worker = started(network)
    network.wait = lambda: free.wait(10)
    network.sizes.clear()
    with worker.admit(40) as admission:
        first = admission.submit(image(0))
        time.sleep(0.1)
        assert all(admission.submit(image(1)).cancel() for _ in range(39))
        free.set()
        first.result(10)
    worker.stop(10)
    assert network.sizes == [2]


def test_stopping_answers_what_was_admitted_and_then_admits_nothing(started):
    network = Brightness()
    worker = started(network)
    with worker.admit(2) as admission:
        network.wait = lambda: time.sleep(0.2)
        early = admission.submit(image(9))
        stopper = threading.Thread(target=worker.stop, args=(10,))
        stopper.start()
        time.sleep(0.1)
        with pytest.raises(BusyError):
            worker.admit(1)
        late = admission.submit(image(10))
        assert early.result(10).p_real < late.result(10).p_real
    stopper.join()
    assert not worker.alive


def test_a_size_of_batch_that_rounds_otherwise_is_never_used(started):
    class Rounding(Brightness):
        def p_real(self, images):
            return super().p_real(images) + 1e-9 * (len(images) in (2, 8))

    network = Rounding()
    worker = started(network)
    network.sizes.clear()
    for count in (1, 3, 5, 9):
        with worker.admit(count) as admission:
            for answer in [admission.submit(image(7)) for _ in range(count)]:
                answer.result(10)
    assert not {2, 8} & set(network.sizes)


def test_a_network_that_can_not_start_tells_who_waits():
    class Broken:
        def p_real(self, images):
            raise MemoryError("no room")

    worker = Worker(Broken(), SIZE_PX, 10)
    worker.start()
    with pytest.raises(MemoryError):
        worker.wait_until_warm()
    assert not worker.ready


# the same answers as the script's


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    start_keras()
    import keras

    from fakereal.config import Config, NetworkConfig
    from fakereal.model import model_file, networks
    from fakereal.model.calibration import DecisionRule
    from fakereal.preprocessing import Preprocessing

    keras.utils.set_random_seed(5)
    config = Config(image_size=64, network=NetworkConfig(name="cnn", filters=(4, 8)))
    metadata = model_file.Metadata(config, Preprocessing(64), DecisionRule(temperature=1.5, band=(0.49, 0.51)))
    path = tmp_path_factory.mktemp("model") / "small.h5"
    model_file.save(path, model_file.Detector(networks.build(config.network, 64), metadata))
    return path


def same_as_the_script(model: Path, folder: Path, together: int) -> None:
    import io

    from fakereal.engines.engine import open_network
    from fakereal.web.app import create_app
    from fakereal.web.service import from_opened

    details = folder.parent / "details.json"
    command = ["--input", str(folder), "--model", str(model), "--details", str(details)]
    door.main([*command, "--output", str(folder.parent / "p.json")])
    expected = {row["image"]: row for row in json.loads(details.read_text())}
    predictor = from_opened(open_network(model), model)
    predictor.worker.wait_until_warm()
    app = create_app(predictor).test_client()
    files = sorted(folder.iterdir())
    found = {}
    for start in range(0, len(files), together):
        parts = [(io.BytesIO(path.read_bytes()), path.name) for path in files[start : start + together]]
        for row in app.post("/api/predict", data={"image": parts}).json["predictions"]:
            found[row["image"]] = {key: row[key] for key in expected[row["image"]]}
    predictor.stop()
    assert found == expected
    assert len({row["p_fake"] for row in found.values()}) > 1


@pytest.mark.parametrize("together", [1, 3, 20])
def test_a_file_has_the_p_fake_that_the_script_gives_it_to_the_last_digit(model, make_image, tmp_path, together):
    for number in range(1, 24):
        suffix = ("png", "jpg", "webp")[number % 3]
        make_image(tmp_path / "in" / f"{number}.{suffix}", number, (40 + number, 90))
    same_as_the_script(model, tmp_path / "in", together)


def test_where_keras_runs_on_another_backend_there_are_verdicts_without_heatmaps(model, monkeypatch, capsys):
    import keras

    from fakereal.engines.engine import open_network
    from fakereal.web.service import from_opened

    opened = open_network(model)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    predictor = from_opened(opened, model)
    try:
        predictor.worker.wait_until_warm()
        assert not predictor.worker.explains
        with predictor.worker.admit(1) as admission:
            assert 0 < admission.submit(np.zeros((64, 64, 3), np.uint8)).result(10).p_real < 1
    finally:
        predictor.stop()
    assert "no heatmaps: explanations: expected the TensorFlow backend, found jax" in capsys.readouterr().err


@pytest.mark.slow
def test_the_shipped_detector_too_says_the_same_here_and_there(make_image, tmp_path):
    for number in range(1, 12):
        make_image(tmp_path / "in" / f"{number}.png", number, (100 + number, 90))
    same_as_the_script(ROOT / "models" / "pretrained.h5", tmp_path / "in", 5)


def test_the_public_facts_count_sources_but_name_no_folder_and_tell_all_limits_of_the_verdict(model):
    from fakereal.engines.engine import open_network
    from fakereal.web.app import create_app
    from fakereal.web.service import from_opened

    record = {
        "images": 9, "verdicts": 0, "fake_sources": ["jane_private"], "real_sources": ["her_phone", "his_phone"],
        "test_by_source": {"jane_private": {}},
    }  # fmt: skip
    opened = open_network(model)
    decision = dataclasses.replace(opened.metadata.decision, band=(0.5, 0.5), shorter_side_px=(8, 4096))
    metadata = dataclasses.replace(opened.metadata, decision=decision, metrics={"unseen_sources": record})
    predictor = from_opened(dataclasses.replace(opened, metadata=metadata), model)
    app = create_app(predictor).test_client()
    answer, page = app.get("/api/model"), app.get("/model").text
    predictor.stop()
    assert answer.json["unseen_sources"] == {"images": 9, "verdicts": 0, "fake_sources": 1, "real_sources": 2}
    assert answer.json["decision"]["shorter_side_px"] == [8, 4096]
    assert "jane" not in answer.text
    assert "<dd>images unlike the training images</dd>" in page
