"""Prediction where one machine is too small: images in object stores, workers on a Ray cluster, results in parts."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from prediction_sets import Brightness

from fakereal.decoding import MAX_FILE_BYTES
from fakereal.errors import ConfigError, DataError, ImageRefused
from fakereal.model.calibration import DecisionRule
from fakereal.predict import containers, ray
from fakereal.predict.inputs import list_images
from fakereal.predict.journal import to_json
from fakereal.predict.results import decide, save
from fakereal.predict.run import STDOUT, PredictConfig, Predictor, complete
from fakereal.preprocessing import Preprocessing

ROOT = Path(__file__).resolve().parents[2]


PREDICTOR = Predictor(Brightness(), Preprocessing(32), DecisionRule(), {"engine": "brightness 1"})


def predicted(source, output, **options):
    """Predicts into `output`, and returns the bytes of the document and of the details."""
    config = PredictConfig(input=(str(source),), output=output, details=output.with_suffix(".csv"), **options)
    complete(config, list_images(config.inputs, config.recursive), PREDICTOR)
    return output.read_bytes(), config.details.read_bytes()


@pytest.fixture
def pictures(make_image, tmp_path):
    """Twelve numbered images, two named ones, one of them deeper, a broken one, an empty one and a text file."""
    folder = tmp_path / "pictures"
    for number in range(1, 13):
        make_image(folder / f"{number}.png", number)
    make_image(folder / "more" / "deep.jpg", 13)
    make_image(folder / "shallow.webp", 14)
    (folder / "broken.png").write_bytes((folder / "1.png").read_bytes()[:50])
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def memory(pictures):
    """The same images in a store of fsspec's that lies in memory; a new one for each test."""
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (requirements-scale.txt)")
    store = f"memory://{uuid.uuid4().hex}/set"
    system, root = fsspec.core.url_to_fs(store)
    system.put(f"{pictures}/", f"{root}/", recursive=True)
    return store


def test_what_a_worker_says_of_other_images_is_refused(pictures):
    items = list(list_images((pictures,)).items)[:3]
    outcomes = list(PREDICTOR.predict(items, PredictConfig()))
    lines = [to_json(outcome) for outcome in outcomes]
    assert ray.parse_chunk(items, "\n".join(lines)) == outcomes
    for wrong in (lines[::-1], lines[:2], [*lines, lines[0]]):
        with pytest.raises(DataError, match=r"--ray: a worker returned another order .*expected .* got .*--resume"):
            ray.parse_chunk(items, "\n".join(wrong))


@pytest.mark.parametrize("recursive", [False, True])
def test_a_store_gives_the_bytes_that_a_folder_gives(pictures, memory, tmp_path, recursive):
    local = predicted(pictures, tmp_path / "local.json", recursive=recursive)
    assert predicted(memory, tmp_path / "stored.json", recursive=recursive) == local
    assert len(json.loads(local[0])) == 15 + recursive


def test_what_a_store_holds_beside_images_is_listed(memory):
    listing = list_images((memory,))
    assert (listing.other_files, listing.skipped_folders) == (("notes.txt",), ("more/",))
    assert list_images((memory,), recursive=True).skipped_folders == ()


def test_one_object_of_a_store_can_be_predicted(memory, tmp_path):
    document, _ = predicted(f"{memory}/7.png", tmp_path / "one.json")
    assert [entry["index"] for entry in json.loads(document)] == [7]
    with pytest.raises(DataError, match=r"notes\.txt: expected a folder or an image") as refused:
        list_images((f"{memory}/notes.txt",))
    assert str(refused.value).count("expected") == 1


def test_a_store_and_a_folder_can_be_predicted_together(pictures, memory):
    names = [item.name for item in list_images((memory, str(pictures))).items]
    assert len(names) == 30
    assert len(set(names)) == 30


def test_an_object_that_goes_while_images_are_read_keeps_its_place_with_the_reason(memory):
    listing = list_images((memory,))
    system, root = containers.connect_store(memory)
    system.rm(f"{root}/3.png")
    with pytest.raises(ImageRefused, match="nothing there"):
        next(item for item in listing.items if item.key == 3).open()


def test_an_object_larger_than_an_image_may_be_is_refused_before_it_fills_the_memory(memory, monkeypatch):
    monkeypatch.setattr(containers, "MAX_FILE_BYTES", 100)
    assert MAX_FILE_BYTES > 100
    with pytest.raises(ImageRefused, match="got more"):
        containers.ObjectStore(memory).read("1.png")


def test_a_store_can_be_sent_to_another_process(memory, pictures):
    item = next(item for item in list_images((memory,)).items if item.key == 5)
    again = pickle.loads(pickle.dumps(item))
    assert again.open() == (pictures / "5.png").read_bytes()
    assert again.stamp() == item.stamp() is not None  # --resume goes on


@pytest.mark.parametrize(
    ("address", "told"), [("memory://nothing/here", "nothing there"), ("what://bucket/set", "fsspec knows|package")]
)
def test_an_address_without_images_or_meaning_is_refused_in_one_line(address, told):
    pytest.importorskip("fsspec", reason="fsspec is not installed (requirements-scale.txt)")
    with pytest.raises((ConfigError, DataError), match=told) as refused:
        list_images((address,))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("package", "call"), [
    ("fsspec", lambda: list_images(("s3://bucket/set",))),
    ("ray", lambda: ray.connect_ray("auto").__enter__()),
])  # fmt: skip
def test_without_the_package_one_line_says_what_to_install(monkeypatch, package, call):
    containers.connect_store.cache_clear()
    for name in (package, f"{package}.data"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install -r requirements-scale\.txt"):
        call()


def test_where_no_cluster_is_one_line_says_so_at_once():
    pytest.importorskip("ray.data", reason="ray[data] is not installed (requirements-scale.txt)")
    started = time.monotonic()
    with pytest.raises(DataError, match=r"no Ray cluster at 127\.0\.0\.1:1 .*refused"):
        ray.connect_ray("127.0.0.1:1").__enter__()
    assert time.monotonic() - started < 20


@pytest.fixture(scope="module")
def bucket():
    """An S3 bucket of a server on this machine."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (requirements-scale.txt)")
    moto = pytest.importorskip("moto.server", reason="moto is not installed (requirements-scale.txt)")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
                   "AWS_ENDPOINT_URL": f"http://{host}:{port}"}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        containers.connect_store.cache_clear()
        containers.connect_store("s3://pictures")[0].mkdir("pictures")
        yield "s3://pictures"
    server.stop()


@pytest.mark.slow
def test_an_s3_bucket_gives_the_bytes_that_a_folder_gives(bucket, pictures, tmp_path):
    system, root = containers.connect_store(bucket)
    system.put(f"{pictures}/", f"{root}/set/", recursive=True)
    for recursive in (False, True):
        local = predicted(pictures, tmp_path / f"local{recursive}.json", recursive=recursive)
        assert predicted(f"{bucket}/set", tmp_path / f"stored{recursive}.json", recursive=recursive) == local
    with pytest.raises(DataError):
        list_images(("s3://no-such-bucket/set",))


def test_parts_hold_every_row_once_and_leave_none_of_an_earlier_run(pictures, tmp_path, monkeypatch):
    listing = list_images((pictures,))
    outcomes = list(PREDICTOR.predict(listing.items, PredictConfig()))
    results = decide(outcomes, DecisionRule())
    folder = tmp_path / "out_parts"
    for rows, files in ((4, 4), (10, 2)):
        monkeypatch.setattr(ray, "SHARD_ROWS", rows)
        tally = save(ray.write_shards(results, tmp_path / "out.json"), tmp_path / "out.json", tmp_path / "all.jsonl")
        assert tally.total == len(results)
        parts = sorted(folder.iterdir())
        assert [part.name for part in parts] == [f"part-{number:06d}.jsonl" for number in range(files)]
        assert b"".join(part.read_bytes() for part in parts) == (tmp_path / "all.jsonl").read_bytes()


@pytest.mark.parametrize("output", [None, STDOUT])
def test_without_a_file_for_the_predictions_a_cluster_writes_no_parts(pictures, tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    listing = list_images((pictures,))
    config = PredictConfig(output=output)
    predictor = ray.RayPredictor(**vars(PREDICTOR))
    results = list(predictor.decide(PREDICTOR.predict(listing.items, config), config))
    assert len(results) == len(listing.items)
    assert not list(tmp_path.glob("*_parts"))


@pytest.fixture
def cluster(monkeypatch):
    """A Ray cluster of two nodes, each with its own raylet, on this machine."""
    pytest.importorskip("ray.data", reason="ray[data] is not installed (requirements-scale.txt)")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    options = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    yield cluster
    cluster.shutdown()


def workers_of(cluster):
    """The processes that hold a network on one of the nodes of this cluster."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
    raylets = {str(info.process.pid) for node in cluster.list_all_nodes() for info in node.all_processes["raylet"]}
    return [int(pid) for pid, parent, name in rows if parent in raylets and name.startswith("ray::MapWorker")]


def saved_in(journal):
    """How many predictions a journal holds that another process is writing: counted in its bytes, as it is locked."""
    log = journal.with_name(f"{journal.name}-wal")
    return sum(path.read_bytes().count(b'"p_real"') for path in (journal, log) if path.exists())


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_half_way_gives_the_bytes_of_one_machine(
    cluster, small_model, make_image, tmp_path
):
    folder = tmp_path / "many"
    for number in range(160):
        make_image(folder / f"{number}.png", number, size=(400, 400))
    (folder / "broken.png").write_bytes(b"no picture")
    command = [
        sys.executable,
        "predict_and_save_json.py",
        "--input",
        folder,
        "--model",
        small_model,
        "--batch-size",
        "1",
        "--strict",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(name, *more):
        options = ["--output", tmp_path / f"{name}.json", "--details", tmp_path / f"{name}.csv", *more]
        return subprocess.Popen([*command, *options], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    alone = start("alone")
    _, told = alone.communicate(timeout=120)
    assert alone.returncode == 1, told  # the broken one, under --strict
    spread = start("spread", "--ray", cluster.address)
    journal = tmp_path / "spread.json.journal"
    while saved_in(journal) < 10:
        assert spread.poll() is None, spread.communicate()[1]
        time.sleep(0.02)
    victims = workers_of(cluster)
    assert victims
    os.kill(victims[0], signal.SIGKILL)
    _, told = spread.communicate(timeout=180)
    assert spread.returncode == 1, told
    assert "2 workers on 2 nodes" in told
    for suffix in (".json", ".csv"):
        assert (tmp_path / f"spread{suffix}").read_bytes() == (tmp_path / f"alone{suffix}").read_bytes()
    rows = [json.loads(line) for part in (tmp_path / "spread_parts").iterdir() for line in part.open()]
    assert len(rows) == 161
    assert np.isfinite([row["p_real"] for row in rows if row["p_real"] is not None]).all()
