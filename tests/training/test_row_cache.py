import os
import threading
import time

import numpy as np
import pytest

from fakereal.config import DataConfig
from fakereal.training import cache as training_cache
from fakereal.training.cache import RowCache, open_cache

SHAPE = (8, 8, 3)
ROW_BYTES = 192


def row(number):
    return np.random.default_rng(number).integers(0, 256, SHAPE, dtype=np.uint8)


def rows_in(folder, limit_bytes=10**6, meaning="pictures"):
    return RowCache(folder, limit_bytes).rows(meaning, SHAPE, "uint8")


def fill(folder, numbers, **options):
    rows = rows_in(folder, **options)
    for number in numbers:
        rows.put(str(number), row(number))
    rows.flush()
    return rows


def files(folder):
    return sorted(folder.rglob("*.rows"))


def holds(rows, numbers):
    return [number for number in numbers if rows.get(str(number)) is not None]


def test_what_one_run_keeps_the_next_one_finds(tmp_path):
    fill(tmp_path, range(5))
    again = rows_in(tmp_path)
    for number in range(5):
        assert np.array_equal(again.get(str(number)), row(number))
    assert again.get("5") is None


def test_a_row_can_be_read_before_it_is_written(tmp_path):
    rows = rows_in(tmp_path)
    rows.put("1", row(1))
    assert files(tmp_path) == []
    assert np.array_equal(rows.get("1"), row(1))


def test_rows_of_another_meaning_shape_or_type_are_not_mixed_up(tmp_path):
    fill(tmp_path, [1])
    cache = RowCache(tmp_path, 10**6)
    assert cache.rows("pictures size=9", SHAPE, "uint8").get("1") is None
    assert cache.rows("pictures", (192,), "uint8").get("1") is None
    assert cache.rows("pictures", SHAPE, "int8").get("1") is None
    assert cache.rows("pictures", SHAPE, "uint8").get("1") is not None


@pytest.mark.parametrize("cut", [1, 30, 300, 10**6])
def test_a_torn_file_is_noticed_and_made_anew(tmp_path, cut, capsys):
    fill(tmp_path, range(5))
    (path,) = files(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: max(0, len(content) - cut)])
    again = rows_in(tmp_path)
    assert holds(again, range(5)) == []
    assert "discarding" in capsys.readouterr().err
    fill(tmp_path, range(5))
    assert holds(rows_in(tmp_path), range(5)) == list(range(5))


@pytest.mark.parametrize(("place", "left"), [(0, [1, 2, 3, 4]), (500, [0, 1, 3, 4]), (5 * ROW_BYTES + 3, []), (-1, [])])
def test_one_changed_byte_never_gives_a_wrong_row(tmp_path, place, left, capsys):
    fill(tmp_path, range(5))
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    again = rows_in(tmp_path)
    assert holds(again, range(5)) == left
    assert all(np.array_equal(again.get(str(number)), row(number)) for number in left)
    assert files(tmp_path) == []
    assert capsys.readouterr().err.count("discarding") == 1


def test_the_oldest_files_make_room_and_those_in_use_stay(tmp_path):
    size = 5 * (ROW_BYTES + 20) + 20
    made = []
    for start in (0, 5, 10):
        fill(tmp_path, range(start, start + 5))  # which also touches the earlier files
        made += [path for path in files(tmp_path) if path not in made]
    for age, path in enumerate(reversed(made)):
        os.utime(path, (time.time() - 100 * age - 100,) * 2)
    fill(tmp_path, range(20, 25), limit_bytes=3 * size, meaning="features")
    assert len(files(tmp_path)) == 3
    assert holds(rows_in(tmp_path), range(15)) == list(range(5, 15))


def test_rows_that_a_run_cannot_do_without_take_the_room_of_its_pictures(tmp_path, capsys):
    size = 5 * (ROW_BYTES + 20) + 20
    cache = RowCache(tmp_path, 2 * size)
    pictures = cache.rows("pictures", SHAPE, "uint8", essential=False)
    features = cache.rows("features", SHAPE, "uint8")
    for number in range(15):
        pictures.put(str(number), row(number))
        if number % 5 == 4:
            pictures.flush()
    assert len(holds(pictures, range(15))) == 10  # two files fill the cache
    handed_out = pictures.get("0")
    assert cache.holds(features, 2 * size)
    for number in range(10):
        features.put(str(number), row(number))
        if number % 5 == 4:
            features.flush()
    assert holds(features, range(10)) == list(range(10))
    assert holds(pictures, range(15)) == []
    assert np.array_equal(handed_out, row(0))
    assert not cache.holds(cache.rows("more", SHAPE, "uint8"), 1)
    assert cache.holds(features, 2 * size)  # its own files count once


def test_where_there_is_no_room_nothing_is_kept_and_it_is_said_once(tmp_path, capsys):
    rows = fill(tmp_path, range(5), limit_bytes=1500)
    for number in range(10, 15):
        rows.put(str(number), row(number))
        rows.flush()
    assert len(holds(rows, range(15))) == 6
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 1500
    assert capsys.readouterr().err.count("no more rows are stored") == 1


def test_a_full_disk_stops_the_cache_and_not_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training_cache, "FREE_BYTES", 2**80)
    assert holds(fill(tmp_path, range(5)), range(5)) == []
    assert "no more rows are stored" in capsys.readouterr().err


def test_two_runs_share_a_folder_and_keep_one_of_two_equal_files(tmp_path):
    first, second = rows_in(tmp_path), rows_in(tmp_path)
    for rows in (first, second):
        for number in range(5):
            rows.put(str(number), row(number))
    first.flush()
    second.flush()
    assert len(files(tmp_path)) == 2
    assert holds(rows_in(tmp_path), range(5)) == list(range(5))
    assert len(files(tmp_path)) == 1
    assert holds(first, range(5)) == holds(second, range(5)) == list(range(5))


def test_many_threads_may_write_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(training_cache, "FILE_BYTES", 10 * ROW_BYTES)
    rows = rows_in(tmp_path)

    def work(start):
        for number in range(start, 200, 8):
            rows.put(str(number), row(number))
            assert np.array_equal(rows.get(str(number)), row(number))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows.flush()
    assert holds(rows_in(tmp_path), range(200)) == list(range(200))


def test_what_a_kill_left_behind_goes_after_a_day(tmp_path):
    old, young = tmp_path / ".a.part", tmp_path / ".b.part"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    RowCache(tmp_path, 10**6)
    assert (old.exists(), young.exists()) == (False, True)


def test_none_keeps_nothing_after_the_run():
    with open_cache(DataConfig(cache_dir="none")) as cache:
        folder = cache.folder
        assert cache.rows("features", SHAPE, "uint8").get("1") is None
        cache.rows("features", SHAPE, "uint8").put("1", row(1))
        cache.flush()
        assert files(folder)
    assert not folder.exists()


def test_the_cache_lies_in_the_users_cache_folder_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with open_cache(DataConfig()) as cache:
        assert cache.folder == tmp_path / "fakereal"
    with open_cache(DataConfig(cache_dir=str(tmp_path / "mine"))) as cache:
        assert cache.folder == tmp_path / "mine"


def test_a_folder_that_cannot_be_written_is_said_and_done_without(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    with open_cache(DataConfig(cache_dir=str(tmp_path / "file" / "cache"))) as cache:
        assert cache.folder.exists()
    assert "can't be written" in capsys.readouterr().err
