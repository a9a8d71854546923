import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fakereal.errors import DataError
from fakereal.files import (
    keep_backups,
    locked,
    locked_folders,
    open_atomic,
    relative_name,
    remove_partial_files,
    replacing,
    walk,
    write_atomic,
)


def names(folder: Path, **options: object) -> list[str]:
    """The entries below a folder, those that are looked into with "/" at the end."""
    errors = []
    found = walk(folder, lambda path, error: errors.append(path), **options)
    listed = [relative_name(Path(entry.path), folder) + "/" * entered for entry, entered in found]
    assert errors == []
    return listed


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """a/1, b/, and c, a link to a; d, a link to the folder itself."""
    (tmp_path / "in/a").mkdir(parents=True)
    (tmp_path / "in/b").mkdir()
    (tmp_path / "in/a/1").touch()
    (tmp_path / "in/c").symlink_to("a")
    (tmp_path / "in/d").symlink_to(tmp_path / "in")
    return tmp_path / "in"


def test_a_walk_lists_links_to_folders_and_does_not_follow_them(linked):
    assert names(linked) == ["a/", "b/", "c", "d", "a/1"]


def test_a_walk_that_follows_links_looks_into_each_folder_once(linked):
    assert names(linked, follow_links=True) == ["a/", "b/", "c", "d", "a/1"]
    (linked / "a").rename(linked.parent / "elsewhere")
    (linked / "c").unlink()
    (linked / "c").symlink_to(linked.parent / "elsewhere")
    assert names(linked, follow_links=True) == ["b/", "c/", "d", "c/1"]


def test_a_walk_leaves_out_what_it_is_told_to(linked):
    assert names(linked, leave_out={linked / "a"}) == ["a", "b/", "c", "d"]
    assert names(linked, recursive=False) == ["a", "b", "c", "d"]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_atomic(path, b"old")
    with contextlib.suppress(KeyboardInterrupt), open_atomic(path) as file:
        file.write(b"half of the n")
        raise KeyboardInterrupt
    with contextlib.suppress(KeyboardInterrupt), replacing(path, ".h5") as temporary:
        temporary.write_bytes(b"half")
        assert temporary.suffix == ".h5"
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="can't be written"):
        write_atomic(tmp_path / "file" / "below", b"")


def test_what_a_kill_left_of_a_file_is_removed_and_nothing_else(tmp_path):
    kept = {"a.json", ".a.json.part", ".b.json.0123abcd.part", "deep"}
    (tmp_path / "deep").mkdir()
    for name in {*kept, ".a.json.0123abcd.part", ".a.json.0123abcd.part.h5", "deep/.c.89abcdef.part"} - {"deep"}:
        (tmp_path / name).touch()
    remove_partial_files(tmp_path, "a.json")
    assert {path.name for path in tmp_path.iterdir()} == kept
    remove_partial_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept - {".b.json.0123abcd.part"}
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("hold", [locked, locked_folders][: 1 if os.name == "nt" else 2])  # Windows locks no folder
def test_a_lock_keeps_another_process_out_and_dies_with_its_own(tmp_path, hold):
    path = tmp_path / ".lock" if hold is locked else tmp_path
    held = "import os, sys; from pathlib import Path; from fakereal import files\n"
    held += "with getattr(files, sys.argv[1])(Path(sys.argv[2])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", held, hold.__name__, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(DataError, match="in use by another run"), hold(path):
            pass
        other.kill()
        other.wait()
        with hold(path):
            pass


def test_what_is_replaced_by_another_content_is_kept_and_named(tmp_path, capsys):
    path, same, new = (tmp_path / name for name in ("p.json", "same.csv", "new.csv"))
    for content in (b"first", b"second", b"third"):
        with keep_backups(path, same, new, None):
            write_atomic(path, content)
            write_atomic(same, b"as before")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        "p.json": b"third",
        "p.json.bak": b"first",
        "p.json.bak2": b"second",
        "same.csv": b"as before",
    }
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in lines] == [
        f"replaced other results, which are kept as {path}{suffix}" for suffix in (".bak", ".bak2")
    ]


def test_a_content_that_is_kept_already_is_not_kept_twice(tmp_path, capsys):
    path = tmp_path / "p.json"
    for content in (b"first", b"second", b"first", b"second"):
        with keep_backups(path):
            write_atomic(path, content)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["p.json", "p.json.bak", "p.json.bak2"]
    assert capsys.readouterr().err.count("p.json.bak ") == 2


def test_with_force_nothing_is_kept(tmp_path, capsys):
    path = tmp_path / "p.json"
    for content in (b"first", b"second"):
        with keep_backups(path, force=True):
            write_atomic(path, content)
    assert [file.name for file in tmp_path.iterdir()] == ["p.json"]
    assert capsys.readouterr().err == ""


def test_a_write_that_fails_leaves_the_file_and_no_backup(tmp_path):
    path = tmp_path / "p.json"
    path.write_bytes(b"first")
    with pytest.raises(KeyboardInterrupt), keep_backups(path):
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["p.json"]


def test_a_kill_after_the_replacement_leaves_the_backup(tmp_path):
    path = tmp_path / "p.json"
    path.write_bytes(b"first")
    code = (
        "import os, sys, pathlib\n"
        "from fakereal.files import keep_backups, write_atomic\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "with keep_backups(path): write_atomic(path, b'second'); os._exit(9)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code, path], env=environment, check=False).returncode == 9
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        "p.json": b"second",
        "p.json.bak": b"first",
    }
