import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import as_a_user_without_rights
from separation_sets import (
    entry_for,
    folder_of_three,
    journal_in,
    names_in,
    predictions,
    separate,
    separated,
    tree,
    write_image,
)

import image_separate
from fakereal import files
from fakereal.separation import journal as journals

SCRIPT = Path(image_separate.__file__)


# Odd names, links, folders that can't be written


def test_files_with_odd_names_are_separated_and_undone(source, output):
    names = ["-r f.png", "a b.png", "new\nline.png", "Übermut-猫.png", "a=b.png", "..png", "quote'\".png"]
    for shade, name in enumerate(names):
        write_image(source / "-x y" / name, shade)
    predictions(source / "-x y.json", **dict.fromkeys(names, "fake"))
    before = tree(source)
    assert separate(source, "--output", output) == 0
    assert len(separated(output)) == len(names)
    assert separate("--undo", journal_in(output)) == 0
    assert tree(source) == before


def test_a_name_that_is_no_utf8_is_separated_undone_and_shown_on_one_line(source, output, capsys):
    name = os.fsdecode(b"caf\xe9\n.png")
    try:
        write_image(source / "x" / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    write_image(source / "x" / "2.png")
    predictions(source / "x.json", **{name: "fake"})
    before = tree(source)
    assert separate(source, "--output", output, "--dry-run") == 1
    assert r"x/caf\udce9\n.png -> fake_images/x__caf\udce9\n.png" in capsys.readouterr().out
    assert separate(source, "--output", output) == 1
    assert separated(output) == {f"fake_images/x__{name}"}
    assert separate("--undo", journal_in(output)) == 0
    assert tree(source) == before


def test_accents_encoded_either_way_find_their_file(source, output):
    write_image(source / "x" / "e\u0301.png")
    predictions(source / "x.json", **{"\u00e9.png": "real"})
    assert separate(source, "--output", output) == 0


def test_a_file_whose_name_would_become_too_long_is_skipped(source, output, capsys):
    name = "n" * 250 + ".png"
    write_image(source / "folder" / name)
    predictions(source / "folder.json", **{name: "real"})
    assert separate(source, "--output", output) == 2
    assert "would be too long" in capsys.readouterr().out
    assert (source / "folder" / name).exists()


def test_symbolic_links_are_never_followed_and_are_listed(source, output, tmp_path, capsys):
    secret = write_image(tmp_path / "outside" / "1.png")
    folder_of_three(source)
    (source / "x/4.png").symlink_to(secret)
    (source / "x/5.png").symlink_to(source / "x/1.png")
    (source / "linked").symlink_to(secret.parent)
    (source / "x/deep").symlink_to(secret.parent)
    predictions(source / "linked.json", "fake")
    predictions(source / "x_preds.json", *["fake"] * 5, **{"deep/1.png": "fake"})
    assert separate(source, "--output", output) == 1
    out = capsys.readouterr().out
    assert out.count("a symbolic link (it points to") == 4
    assert "outside" in out
    assert secret.exists()
    assert (source / "x/4.png").is_symlink()
    assert separated(output) == {f"fake_images/x__{number}.png" for number in (1, 2, 3)}


def test_a_link_to_itself_is_listed_like_any_other_and_one_that_is_no_image_is_passed_over(source, output, capsys):
    folder_of_three(source)
    for name in ("4.png", "loop"):
        (source / "x" / name).symlink_to(name)
        (source / name).symlink_to(name)
    assert separate(source, "--output", output) == 1
    assert capsys.readouterr().out.count("a symbolic link (it points to") == 2
    assert len(separated(output)) == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_called_like_an_image_does_not_hang_the_run(source, output):
    folder_of_three(source)
    os.mkfifo(source / "x/4.png")
    assert separate(source, "--output", output) == 1
    assert (source / "x/4.png").is_fifo()


def test_a_damaged_image_is_skipped_unless_the_check_is_off(source, output, capsys):
    folder = folder_of_three(source)
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    (folder / "2.png").write_bytes(b"")
    assert separate(source, "--output", output) == 1
    assert names_in(folder) == ["1.png", "2.png"]
    assert "the file is empty" in capsys.readouterr().out
    assert separate(source, "--output", output, "--no-check") == 0
    assert len(separated(output)) == 3


def test_two_names_of_one_file_are_separated_and_undone_one_by_one(source, output):
    folder = folder_of_three(source)
    (folder / "2.png").unlink()
    os.link(folder / "1.png", folder / "2.png")
    before = tree(source)
    assert separate(source, "--output", output) == 0
    assert len(separated(output)) == 3
    separate("--undo", journal_in(output))
    assert tree(source) == before


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions work otherwise here")
def test_files_of_a_read_only_folder_are_not_moved_but_can_be_copied(open_folder, capsys):
    source = open_folder / "raw"
    folder = folder_of_three(source)
    before = tree(source)
    folder.chmod(0o555)
    with as_a_user_without_rights(open_folder):
        assert separate(source, "--output", open_folder / "clean") == 2
        assert tree(source) == before
        assert "read-only" in capsys.readouterr().out
        assert separate(source, "--output", open_folder / "clean", "--mode", "copy") == 0
        assert len(separated(open_folder / "clean")) == 3
    folder.chmod(0o755)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions work otherwise here")
def test_a_folder_that_becomes_read_only_after_the_plan_leaves_no_file_duplicated(open_folder):
    source, output = open_folder / "raw", open_folder / "clean"
    folder = folder_of_three(source)
    entry = entry_for(folder / "1.png")
    output.mkdir()
    journal = journals.create(output, "move", source, [entry])
    folder.chmod(0o555)
    before = tree(source)
    with as_a_user_without_rights(open_folder):
        result = journals.apply(journal, lambda _: None, lambda: False)
    folder.chmod(0o755)
    assert [file.reason for file in result.skipped] == ["failed"]
    assert tree(source) == before
    assert separated(output) == set()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions work otherwise here")
def test_an_output_that_cannot_be_written_is_one_line_and_exit_code_2(open_folder, capsys):
    source = open_folder / "raw"
    folder_of_three(source)
    before = tree(source)
    with as_a_user_without_rights(open_folder):
        open_folder.chmod(0o555)
        assert separate(source, "--output", open_folder / "clean") == 2
        open_folder.chmod(0o755)
    assert capsys.readouterr().err.count("\n") == 1
    assert tree(source) == before


@pytest.fixture
def other_device(tmp_path):
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second device here")
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


def test_files_are_moved_to_another_device_and_back_with_their_times(source, other_device):
    folder = folder_of_three(source)
    os.utime(folder / "1.png", (1_000_000_000, 1_000_000_000))
    before = tree(source)
    assert separate(source, "--output", other_device / "clean") == 0
    assert len(separated(other_device / "clean")) == 3
    assert (other_device / "clean/fake_images/x__1.png").stat().st_mtime == 1_000_000_000
    assert set(tree(source)) == {"x_preds.json"}
    assert separate("--undo", journal_in(other_device / "clean")) == 0
    assert tree(source) == before
    assert (folder / "1.png").stat().st_mtime == 1_000_000_000


def test_links_to_another_device_are_refused_with_advice(source, other_device, capsys):
    folder_of_three(source)
    before = tree(source)
    assert separate(source, "--output", other_device / "clean", "--mode", "link") == 2
    assert tree(source) == before
    assert "use --mode copy" in capsys.readouterr().out


# Interruptions


def interrupted_journal(source: Path, output: Path, after: int) -> journals.Journal:
    """Separate a number of files and stop there, as Ctrl-C does."""
    folder = folder_of_three(source)
    output.mkdir()
    paths = sorted(folder.iterdir())
    entries = [entry_for(path) for path in paths]
    predictions(source / "x_preds.json", "fake", "fake", "fake")
    journal = journals.create(output, "move", source, entries)
    done = []
    result = journals.apply(journal, done.append, lambda: len(done) == after)
    assert result.interrupted
    assert result.completed == after
    return journal


def test_the_same_command_resumes_an_interrupted_run(source, output):
    interrupted_journal(source, output, after=1)
    assert len(separated(output)) == 1
    assert separate(source, "--output", output) == 0
    assert len(separated(output)) == 3
    assert not journal_in(output, 2).exists()


def test_an_interrupted_run_is_undone_like_any_other(source, output):
    journal = interrupted_journal(source, output, after=2)
    assert separate("--undo", journal.path) == 0
    assert len(names_in(source / "x")) == 3
    assert separated(output) == set()


def test_a_run_killed_between_its_two_steps_leaves_one_file_after_resuming(source, output):
    journal = interrupted_journal(source, output, after=1)
    os.link(source / "x/2.png", output / "fake_images/x__2.png")
    (output / "fake_images" / journal.transfer(2).part).write_bytes(b"half a cop")
    assert separate(source, "--output", output) == 0
    assert len(separated(output)) == 3
    assert names_in(source / "x") == []


def test_incomplete_journals_and_reports_of_a_killed_run_are_removed(source, output):
    folder_of_three(source)
    separate(source, "--output", output)
    for torn in (".separation_002.journal.jsonl.0a1b.part", ".separation_report.json.0a1b.part"):
        (output / torn).write_bytes(b"{")
    assert separate("--undo", journal_in(output)) == 0
    assert names_in(output) == ["separation_001.journal.jsonl", "separation_report.json"]


def test_another_command_refuses_an_output_with_an_unfinished_run(source, output, tmp_path, capsys):
    interrupted_journal(source, output, after=1)
    assert separate(source, "--output", output, "--mode", "copy") == 2
    assert "--undo" in capsys.readouterr().err


def test_an_unfinished_undo_must_be_finished_first(source, output):
    journal = interrupted_journal(source, output, after=2)
    assert journals.undo(journal, lambda _: None, lambda: True).interrupted
    assert separate(source, "--output", output) == 2
    assert separate("--undo", journal.path) == 0
    assert separate(source, "--output", output) == 0


def test_a_journal_whose_last_line_was_cut_by_a_kill_is_still_read(source, output):
    journal = interrupted_journal(source, output, after=1)
    with open(journal.path, "ab") as file:
        file.write(b'\n{"stat')
    assert journals.read(journal.path).status == "open"
    assert separate("--undo", journal.path) == 0
    assert journals.read(journal.path).status == "undone"


@pytest.mark.skipif(os.name == "nt", reason="folders can't be locked there")
def test_a_second_run_at_the_same_time_is_refused(source, output, capsys):
    folder_of_three(source)
    with files.locked_folders(source):
        assert separate(source, "--output", output) == 2
    assert "in use by another run" in capsys.readouterr().err
    assert separate(source, "--output", output) == 0


def test_ctrl_c_during_the_last_file_of_an_earlier_run_ends_this_one_too(source, output, monkeypatch, capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    folder_of_three(source)
    handled, apply = [], journals.apply

    def pressed_after(last):
        def step(journal, advance, stop):
            def counted(count):
                handled.append(count)
                if len(handled) == last:
                    signal.raise_signal(signal.SIGINT)
                advance(count)

            return apply(journal, counted, stop)

        monkeypatch.setattr(journals, "apply", step)

    pressed_after(1)
    assert separate(source, "--output", output) == 130
    write_image(source / "new" / "1.png")
    predictions(source / "new.json", "real")
    pressed_after(len(handled) + len(journals.read(journal_in(output)).entries))
    assert separate(source, "--output", output) == 130
    assert "run the same command again" in capsys.readouterr().out
    assert (source / "new" / "1.png").exists()
    monkeypatch.setattr(journals, "apply", apply)
    assert separate(source, "--output", output) == 0
    assert not (source / "new" / "1.png").exists()
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name == "nt", reason="signals work otherwise here")
def test_ctrl_c_ends_after_the_current_file_with_130_and_says_how_to_resume(source, output):
    for number in range(1, 2001):
        write_image(source / "x" / f"{number}.png", number)
    predictions(source / "x.json", *["fake"] * 2000)
    before = tree(source)
    command = [sys.executable, str(SCRIPT), str(source), "--output", str(output), "--mode", "copy"]
    # A shell may have started the tests with Ctrl-C switched off, which children inherit.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (output / "fake_images").is_dir() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again" in out
    assert "--undo" in out
    assert 0 <= len(separated(output)) < 2000
    assert separate("--undo", journal_in(output)) == 0
    assert tree(source) == before
    assert separated(output) == set()
