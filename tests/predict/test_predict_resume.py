import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import filelock
import numpy as np
import pytest
from PIL import Image
from prediction_sets import png, tarred, write

import predict_and_save_json as door
from fakereal.cli import run_cli
from fakereal.decoding import ImageInfo
from fakereal.errors import DataError
from fakereal.labels import NAMES
from fakereal.model.calibration import DecisionRule
from fakereal.predict import journal, pipeline
from fakereal.predict.inputs import Item, list_images
from fakereal.predict.pipeline import RawPrediction
from fakereal.predict.run import PredictConfig, Predictor, complete
from fakereal.predictions_json import dumps, prediction_for
from fakereal.preprocessing import Preprocessing

IDENTITY = {"model": "a" * 64, "preprocessing": "p", "engine": "keras"}
BATCH = 4


class Stopping:
    """A network that calls bright images real, counts them, and is interrupted before one of its batches."""

    def __init__(self, batches=None, pause_s=0.0):
        self.batches, self.pause_s, self.seen = batches, pause_s, 0

    def p_real(self, images):
        time.sleep(self.pause_s)
        if self.batches is not None and self.seen == self.batches * BATCH:
            raise KeyboardInterrupt
        self.seen += len(images)
        return images.mean(axis=(1, 2, 3)) / 255


def run(source: Path, folder: Path, network=None, resume=False, explain=None, decision=None, **changes) -> int:
    """Predicts into a folder, like `prediction.run` with a model."""
    config = PredictConfig(
        (str(source),),
        output=folder / "p.json",
        details=folder / "d.csv",
        batch_size=BATCH,
        resume=resume,
        explain=explain,
        strict=True,
    )
    predictor = Predictor(network or Stopping(), Preprocessing(32), decision or DecisionRule(), {**IDENTITY, **changes})
    return complete(config, list_images(source, recursive=True), predictor)


def stop(source: Path, folder: Path, batches: int) -> Path:
    """Predicts so many batches, then is interrupted; returns the journal."""
    with pytest.raises(KeyboardInterrupt):
        run(source, folder, Stopping(batches))
    return folder / "p.json.journal"


def saved_in(path: Path) -> int:
    """The number of predictions in a journal."""
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT count(*) FROM predictions").fetchone()[0]


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def pictures(tmp_path) -> Path:
    for number in range(1, 31):
        write(tmp_path / f"in/{number}.png", png(8 * number))
    write(tmp_path / "in/7.png", b"broken")
    write(tmp_path / "in/sub/odd name.png", png(3))
    return tmp_path / "in"


@pytest.fixture
def whole(tmp_path, pictures, capsys) -> dict[str, bytes]:
    """What an uninterrupted run writes."""
    assert run(pictures, tmp_path / "whole") == 1
    files = written(tmp_path / "whole")
    assert sorted(files) == ["d.csv", "p.json"]
    return files


def test_an_interrupted_run_resumes_and_gives_the_same_bytes(tmp_path, pictures, whole, capsys):
    path = stop(pictures, tmp_path / "out", 3)
    assert sorted(written(tmp_path / "out")) == [path.name]
    said = capsys.readouterr()
    assert "of 31 images are finished and saved in" in said.err
    network = Stopping()
    assert run(pictures, tmp_path / "out", network, resume=True) == 1
    assert written(tmp_path / "out") == whole
    assert network.seen < 31 - 2 * BATCH
    assert "of 31 images are finished" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(12))
def test_a_journal_cut_at_any_byte_resumes_and_gives_the_same_bytes(tmp_path, pictures, whole, seed):
    path = stop(pictures, tmp_path / "out", 4)
    content = path.read_bytes()
    path.write_bytes(content[: random.Random(seed).randrange(len(content))])
    run(pictures, tmp_path / "out", resume=True)
    assert written(tmp_path / "out") == whole


@pytest.mark.parametrize("seed", range(12))
def test_a_journal_with_a_damaged_block_resumes_and_gives_the_same_bytes(tmp_path, pictures, whole, seed):
    path = stop(pictures, tmp_path / "out", 5)
    content = bytearray(path.read_bytes())
    start = random.Random(seed).randrange(200, len(content) - 40)
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    run(pictures, tmp_path / "out", resume=True)
    assert written(tmp_path / "out") == whole


def test_a_digit_that_changed_in_the_journal_is_noticed_and_its_image_predicted_again(tmp_path, pictures, whole):
    path = stop(pictures, tmp_path / "out", 5)
    other = """CAST(replace(CAST(prediction AS TEXT), '"p_real": 0.', '"p_real": 0.9') AS BLOB)"""
    changed = f"UPDATE predictions SET prediction = {other} WHERE image = CAST('3.png' AS BLOB)"
    with closing(sqlite3.connect(path)) as database, database:
        assert database.execute(changed).rowcount == 1
    run(pictures, tmp_path / "out", resume=True)
    assert written(tmp_path / "out") == whole


def test_a_torn_end_costs_what_follows_and_nothing_else(tmp_path, pictures):
    items = list_images(pictures).items
    log = tmp_path / "killed-wal"
    first = journal.start(tmp_path / "killed", IDENTITY, items, resume=False)
    for start in range(0, 20, BATCH):
        first.add([(number, RawPrediction(items[number], stamp=items[number].stamp(), p_real=0.5))
                   for number in range(start, start + BATCH)])  # fmt: skip
    database, content, found = (tmp_path / "killed").read_bytes(), log.read_bytes(), []
    first.remove()
    for length in (*range(0, len(content), 1000), len(content)):
        write(tmp_path / "killed", database)
        write(log, content[:length])
        resumed = journal.start(tmp_path / "killed", IDENTITY, items, resume=True)
        found.append(len(resumed))
        resumed.remove()
    assert set(found) == {0, 4, 8, 12, 16, 20}
    assert found == sorted(found)


@pytest.mark.parametrize("name", [*IDENTITY])
def test_a_journal_of_another_model_preprocessing_or_engine_is_refused(tmp_path, pictures, name):
    path = stop(pictures, tmp_path / "out", 2)
    before = path.read_bytes()
    with pytest.raises(DataError, match=f"has another {name}: .*, this run has other: resume with the same") as caught:
        run(pictures, tmp_path / "out", resume=True, **{name: "other"})
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_a_journal_of_another_folder_is_refused(tmp_path, pictures):
    stop(pictures, tmp_path / "out", 2)
    write(tmp_path / "other/1.png", png())
    with pytest.raises(DataError, match="folder of images"):
        run(tmp_path / "other", tmp_path / "out", resume=True)


def test_explanations_continue_only_into_their_folder_and_with_their_threshold(tmp_path, pictures):
    why = tmp_path / "why"
    with pytest.raises(KeyboardInterrupt):
        run(pictures, tmp_path / "out", Stopping(2), explain=why)
    for explain, decision, named in (
        (tmp_path / "other", None, "another explain: .*, this run has .*other: "),
        (None, None, "another explain: .*, this run has False: "),
        (why, DecisionRule(0.7), r"another threshold: 0\.5, this run has 0\.7: "),
    ):
        with pytest.raises(DataError, match=named):
            run(pictures, tmp_path / "out", resume=True, explain=explain, decision=decision)
    assert run(pictures, tmp_path / "out", resume=True, explain=why) == 1


def test_without_explanations_another_threshold_may_continue(tmp_path, pictures):
    stop(pictures, tmp_path / "out", 2)
    assert run(pictures, tmp_path / "out", resume=True, decision=DecisionRule(0.7)) == 1


def foreign_database() -> bytes:
    database = sqlite3.connect(":memory:")
    database.executescript("PRAGMA application_id = 7; CREATE TABLE mine (a)")
    return database.serialize()


@pytest.mark.parametrize(
    "content", [b'{"a": 1}\n{"b": 2}\n', b"my notes\n", b"my notes", b'{"format": "mine"}\n', foreign_database()]
)
@pytest.mark.parametrize("resume", [True, False])
def test_a_file_that_is_no_journal_is_neither_emptied_nor_removed(tmp_path, pictures, content, resume):
    path = write(tmp_path / "out/p.json.journal", content)
    with pytest.raises(DataError, match="not a journal of a prediction: move this file"):
        run(pictures, tmp_path / "out", resume=resume)
    with pytest.raises(DataError, match="not a journal of a prediction: move this file"):
        journal.refuse_unfinished(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b'{"format": "fakereal-prediction/1", "model": "m"}\n{"number": 0}\n', b'{"for'])
@pytest.mark.parametrize("resume", [True, False])
def test_an_unfinished_run_of_an_older_version_is_reported_in_one_line(tmp_path, pictures, content, resume):
    path = write(tmp_path / "out/p.json.journal", content)
    with pytest.raises(DataError, match="an older version of fakereal: finish the run"):
        run(pictures, tmp_path / "out", resume=resume)
    with pytest.raises(DataError, match="an older version"):
        journal.refuse_unfinished(path)
    assert path.read_bytes() == content


def test_without_resume_a_damaged_journal_is_reported_and_kept(tmp_path, pictures):
    path = stop(pictures, tmp_path / "out", 2)
    content = path.read_bytes()[:5000]
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        journal.refuse_unfinished(path)
    assert path.read_bytes() == content


def test_files_that_changed_came_or_went_meanwhile_are_seen(tmp_path, pictures):
    stop(pictures, tmp_path / "out", 5)
    write(pictures / "2.png", png(250))
    write(pictures / "7.png", png(251))
    write(pictures / "0.png", png(252))
    (pictures / "3.png").unlink()
    network = Stopping()
    assert run(pictures, tmp_path / "out", network, resume=True) == 0
    assert network.seen < 20
    run(pictures, tmp_path / "whole")
    assert written(tmp_path / "out") == written(tmp_path / "whole")


def test_a_compressed_archive_resumes_too(tmp_path, capsys):
    members = {f"{number}.png": png(9 * number) for number in (5, 3, 9, 1, 12, 7, 2, 8, 6, 4, 11, 10)}
    archive = tarred(tmp_path / "x.tar.gz", members)
    stop(archive, tmp_path / "out", 2)
    run(archive, tmp_path / "out", resume=True)
    run(archive, tmp_path / "whole")
    assert written(tmp_path / "out") == written(tmp_path / "whole")
    assert [entry["index"] for entry in json.loads((tmp_path / "out/p.json").read_text())] == list(range(1, 13))


def test_a_finished_run_leaves_no_journal_and_resume_without_one_starts_over(tmp_path, pictures, whole, capsys):
    for _ in range(2):
        run(pictures, tmp_path / "out", resume=True)
        assert written(tmp_path / "out") == whole
        assert "nothing to resume" in capsys.readouterr().err


def test_what_a_kill_left_half_written_is_removed(tmp_path, pictures, whole):
    stop(pictures, tmp_path / "out", 3)
    write(tmp_path / "out/.p.json.0123abcd.part", b"[")
    write(tmp_path / "out/.d.csv.0123abcd.part", b"index")
    run(pictures, tmp_path / "out", resume=True)
    assert written(tmp_path / "out") == whole


def test_a_run_killed_while_it_wrote_its_results_writes_them_without_the_network(
    tmp_path, pictures, whole, monkeypatch
):
    def interrupted(*_):  # no signal: a shell's background job has SIGINT ignored
        raise KeyboardInterrupt

    monkeypatch.setattr("fakereal.predict.run.save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(pictures, tmp_path / "out")
    monkeypatch.undo()
    (pictures / "7.png").unlink()  # the broken one would be tried again
    network = Stopping()
    run(pictures, tmp_path / "out", network, resume=True)
    assert network.seen == 0


def test_a_run_that_fails_before_its_first_batch_leaves_nothing(tmp_path, pictures):
    stop(pictures, tmp_path / "out", 0)
    assert written(tmp_path / "out") == {}


def test_results_of_an_unfinished_run_are_not_lost_by_starting_over(tmp_path, pictures, capsys):
    path = stop(pictures, tmp_path / "out", 3)
    before = path.read_bytes()
    write(tmp_path / "model.h5", b"never opened")
    arguments = ["--input", pictures, "--model", tmp_path / "model.h5", "--output", tmp_path / "out/p.json"]
    assert run_cli(door.main, list(map(str, arguments))) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "pass --resume to continue, or delete this file" in said
    assert path.read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_two_runs_never_write_one_journal(tmp_path, pictures):
    items = list_images(pictures).items
    first = journal.start(tmp_path / "j", IDENTITY, items, resume=False)
    first.add([(0, RawPrediction(items[0], ImageInfo(20, 10, "PNG"), 0.5))])
    for resume in (False, True):
        with pytest.raises(DataError, match="in use by another run"):
            journal.start(tmp_path / "j", IDENTITY, items, resume)
    with pytest.raises(DataError, match="in use by another run: wait"):
        journal.refuse_unfinished(tmp_path / "j")
    first.close()
    with pytest.raises(DataError, match="an unfinished run with 1 finished images exists: pass --resume"):
        journal.refuse_unfinished(tmp_path / "j")
    assert saved_in(tmp_path / "j") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_a_run_that_waits_at_a_removed_journal_makes_its_own(tmp_path, pictures, monkeypatch):
    items, path, flock = list_images(pictures).items, tmp_path / "j", filelock.lock_descriptor
    first = journal.start(path, IDENTITY, items, resume=False)

    def late(handle, **how):  # between opening and locking, the other run comes to its end
        first.remove()
        return flock(handle, **how)

    monkeypatch.setattr(filelock, "lock_descriptor", late)
    second = journal.start(path, IDENTITY, items, resume=False)
    second.add([(0, RawPrediction(items[0], ImageInfo(20, 10, "PNG"), 0.5))])
    first.close()  # once more, which must not remove what is another's now
    second.close()
    assert saved_in(path) == 1


FULL = """
import resource, sys
from pathlib import Path
from test_predict_resume import run
from fakereal.cli import run_cli
from fakereal.predict import journal
journal._SYNC_S = 600.0  # where the machine is slow, a sync would make room in the log meanwhile
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
sys.exit(run_cli(lambda _: run(Path(sys.argv[1]), Path(sys.argv[2])), []))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
def test_a_full_disk_is_reported_with_the_right_count_and_the_run_continues(tmp_path, pictures, whole, capsys):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(pictures), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 2, done.stderr
    kept, told = done.stderr.splitlines()[-2:]
    assert "the journal can't be written (disk I/O error): free some disk space, then continue with --resume" in told
    capsys.readouterr()
    assert run(pictures, tmp_path / "out", resume=True) == 1
    assert written(tmp_path / "out") == whole
    count = int(kept.split(" of 31 images are finished")[0])
    resumed = int(capsys.readouterr().err.removeprefix("resumed: ").split()[0])
    assert 0 < count == resumed + 1  # the broken image is tried again


def test_what_was_added_is_synced_every_few_seconds(tmp_path, pictures, monkeypatch):
    items = list_images(pictures).items
    kept = journal.start(tmp_path / "j", IDENTITY, items, resume=False)
    outcome = RawPrediction(items[0], ImageInfo(20, 10, "PNG"), 0.5)
    kept.add([(0, outcome)])
    assert (tmp_path / "j-wal").stat().st_size > 0
    assert b"p_real" not in (tmp_path / "j").read_bytes()
    monkeypatch.setattr(journal, "_SYNC_S", 0.0)
    kept.add([(1, outcome)])
    assert b"p_real" in (tmp_path / "j").read_bytes()  # SQLite writes there what it has synced
    kept.close()


def test_many_unreadable_files_are_reported_on_the_way(tmp_path):
    for number in range(100):
        write(tmp_path / f"in/{number}.png", b"broken")
    write(tmp_path / "in/100.png", png())
    groups = pipeline.decode_batches(list_images(tmp_path / "in").items, Preprocessing(32), BATCH)
    found = [(len(batch.decoded), len(batch.arrays)) for batch in groups]
    assert found == [(32, 0), (32, 0), (32, 0), (5, 1)]
    assert run(tmp_path / "in", tmp_path / "out") == 1


def test_json_gives_back_the_very_outcome(tmp_path):
    chance = random.Random(0)
    for number in range(300):
        item = Item(tmp_path, os.fsdecode(b"caf\xe9\n.png"), number)
        outcome = RawPrediction(
            item, ImageInfo(3, 4, "PNG"), round(chance.random(), 6), None, (0.1, 0.000001), (5, 10**18 + 7)
        )
        assert journal.from_json(journal.to_json(outcome), item) == outcome
    failed = RawPrediction(item, error="expected a picture")
    assert journal.from_json(journal.to_json(failed), item) == failed


def test_what_is_written_piece_by_piece_is_what_json_dumps_writes():
    entries = [prediction_for(3, 1), prediction_for("a/ä\n.png", 0), prediction_for(10, None, 'cut "off"')]
    plain = [
        {"index": 3, "prediction": NAMES[1]},
        {"index": 10, "prediction": None, "error": 'cut "off"'},
        {"image": "a/ä\n.png", "prediction": NAMES[0]},
    ]
    assert dumps(entries) == json.dumps(plain, indent=4) + "\n"
    assert dumps([]) == "[]\n"


SCRIPT = """
import sys
from pathlib import Path
from test_predict_resume import Stopping, run
sys.exit(run(Path(sys.argv[1]), Path(sys.argv[2]), Stopping(pause_s=0.01), resume=True))
"""


def kill_until_done(command: list[str], kills: int, longest_s: float, chance: random.Random) -> tuple[int, int]:
    """Starts a program again and again, killed after a random time; returns its exit code and how often it was."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    killed = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        try:
            code = process.wait(chance.uniform(0, longest_s) if killed < kills else 300)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
            continue
        return code, killed


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_no_result(tmp_path, capsys):
    for number in range(400):
        write(tmp_path / f"in/{number}.png", png(number % 256))
    write(tmp_path / "in/77.png", b"broken")
    run(tmp_path / "in", tmp_path / "whole")
    chance, killed = random.Random(1), 0
    for attempt in range(20):
        out = tmp_path / f"out{attempt}"
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "in"), str(out)]
        code, times = kill_until_done(command, max(0, 20 - killed), 1.6, chance)
        killed += times
        assert code == 1
        assert written(out) == written(tmp_path / "whole")
        if killed >= 20:
            break
    assert killed >= 20


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.mark.slow
def test_kills_of_the_script_itself_change_no_byte(tmp_path, small_model):
    chance = np.random.default_rng(2)
    (tmp_path / "in").mkdir()
    for number in range(300):
        Image.fromarray(chance.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"in/{number}.png")
    out = {name: tmp_path / name / "p.json" for name in ("whole", "killed")}
    command = [sys.executable, door.__file__, "--input", str(tmp_path / "in"), "--model", str(small_model)]
    command += ["--batch-size", "2", "--stability", "1", "--resume", "--output"]
    assert subprocess.run([*command, str(out["whole"])], capture_output=True, check=False).returncode == 0
    path, killed = journal.path_for(out["killed"]), 0
    while killed < 3:
        process = subprocess.Popen([*command, str(out["killed"])], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        log, before = path.with_name(f"{path.name}-wal"), size_of(path.with_name(f"{path.name}-wal"))
        while process.poll() is None and size_of(log) < before + 50_000:
            time.sleep(0.005)
        process.kill()
        process.wait()
        killed += 1
    assert path.exists()
    assert subprocess.run([*command, str(out["killed"])], capture_output=True, check=False).returncode == 0
    assert out["killed"].read_bytes() == out["whole"].read_bytes()
