import json
import shutil
from pathlib import Path

import pytest
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
from fakereal.separation import journal as journals

SCRIPT = Path(image_separate.__file__)


# Modes, plan, undo


def test_undoing_a_move_restores_every_byte(source, output):
    folder_of_three(source)
    before = tree(source)
    assert separate(source, "--output", output) == 0
    assert separated(output) == {"fake_images/x__1.png", "real_images/x__2.png", "fake_images/x__3.png"}
    assert set(tree(source)) == {"x_preds.json"}
    assert separate("--undo", journal_in(output)) == 0
    assert tree(source) == before
    assert separated(output) == set()
    assert not (output / "fake_images").exists()


@pytest.mark.parametrize("mode", ["copy", "link"])
def test_copies_and_links_leave_the_source_unchanged_and_are_undone(source, output, mode, capsys):
    folder_of_three(source)
    before = tree(source)
    assert separate(source, "--output", output, "--mode", mode) == 0
    assert tree(source) == before
    assert len(separated(output)) == 3
    same_file = (source / "x/1.png").samefile(output / "fake_images/x__1.png")
    assert same_file == (mode == "link")
    assert separate("--undo", journal_in(output)) == 0
    assert {"copy": "3 of 3 copies are undone", "link": "3 of 3 links are undone"}[mode] in capsys.readouterr().out
    assert tree(source) == before
    assert separated(output) == set()


def test_a_copy_whose_original_was_deleted_is_restored_by_undo(source, output):
    folder = folder_of_three(source)
    before = tree(source)
    separate(source, "--output", output, "--mode", "copy")
    shutil.rmtree(folder)
    assert separate("--undo", journal_in(output)) == 0
    assert tree(source) == before


def test_a_dry_run_writes_nothing_and_prints_what_the_run_then_does(source, output, capsys):
    folder_of_three(source)
    before = tree(source)
    assert separate(source, "--output", output, "--dry-run") == 0
    planned = {line.split(" -> ")[1] for line in capsys.readouterr().out.splitlines() if " -> " in line}
    assert tree(source) == before
    assert not output.exists()
    separate(source, "--output", output)
    assert separated(output) == planned


def test_the_same_command_again_changes_nothing_and_is_no_failure(source, output, capsys):
    for mode, name in (("copy", "x"), ("move", "y")):
        folder_of_three(source / mode, name)
        assert separate(source / mode, "--output", output / mode, "--mode", mode) == 0
        before = tree(output / mode)
        capsys.readouterr()
        assert separate(source / mode, "--output", output / mode, "--mode", mode) == 0
        assert tree(output / mode) == before
        assert "3 were there already" in capsys.readouterr().out


def test_new_images_are_separated_by_a_second_run_with_its_own_journal(source, output):
    folder_of_three(source)
    separate(source, "--output", output)
    write_image(source / "x" / "4.png")
    predictions(source / "x_preds.json", "fake", "real", "fake", "real")
    assert separate(source, "--output", output) == 0
    assert len(separated(output)) == 4
    assert separate("--undo", journal_in(output, 2)) == 0
    assert (source / "x" / "4.png").exists()
    assert len(separated(output)) == 3


def test_predictions_that_changed_since_an_earlier_run_are_reported(source, output, capsys):
    folder_of_three(source)
    separate(source, "--output", output)
    predictions(source / "x_preds.json", "real", "real", "fake")
    assert separate(source, "--output", output) == 1
    assert "an earlier run put it into fake_images, the predictions now say real" in capsys.readouterr().out


def test_an_undone_separation_can_be_done_again(source, output):
    folder_of_three(source)
    separate(source, "--output", output)
    separate("--undo", journal_in(output))
    assert separate("--undo", journal_in(output)) == 0
    assert separate(source, "--output", output) == 0
    assert len(separated(output)) == 3


def test_undo_creates_deleted_folders_again(source, output):
    folder = folder_of_three(source)
    before = tree(source)
    separate(source, "--output", output)
    folder.rmdir()
    assert separate("--undo", journal_in(output)) == 0
    assert tree(source) == before


def test_undo_without_the_source_is_refused_rather_than_filling_another_disk(source, output, capsys):
    folder_of_three(source)
    separate(source, "--output", output)
    source.rename(source.with_name("elsewhere"))
    assert separate("--undo", journal_in(output)) == 2
    assert "connect its disk" in capsys.readouterr().err
    assert len(separated(output)) == 3


def test_undo_leaves_and_lists_files_that_changed_since(source, output, capsys):
    folder_of_three(source)
    separate(source, "--output", output)
    (output / "fake_images/x__1.png").write_bytes(b"edited")
    write_image(source / "x/2.png", 99)
    (output / "fake_images/x__3.png").unlink()
    before = tree(source)
    capsys.readouterr()
    assert separate("--undo", journal_in(output)) == 2
    assert tree(source) == before
    assert (output / "fake_images/x__1.png").read_bytes() == b"edited"
    assert (output / "real_images/x__2.png").exists()
    assert capsys.readouterr().out.count("skipped ") == 3


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "fakereal-separation/1", "mode": "move"}', "\0"])
def test_undo_of_another_file_than_a_journal_is_one_line_and_exit_code_2(tmp_path, capsys, content):
    path = tmp_path / "separation_001.journal.jsonl"
    path.write_text(content)
    assert separate("--undo", path) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_journal_whose_temporary_names_lead_elsewhere_is_refused(source, output):
    folder_of_three(source)
    separate(source, "--output", output)
    path = journal_in(output)
    identity = json.loads(path.read_text().splitlines()[0])["identity"]
    path.write_text(path.read_text().replace(identity, "../../x"))
    assert separate("--undo", path) == 2


# Nothing is overwritten, nothing lost


def test_a_file_whose_new_name_is_taken_is_skipped_and_the_other_left_alone(source, output, capsys):
    folder_of_three(source)
    other = write_image(output / "fake_images" / "x__1.png", 200).read_bytes()
    assert separate(source, "--output", output) == 1
    assert (output / "fake_images/x__1.png").read_bytes() == other
    assert (source / "x/1.png").exists()
    assert "its new name is taken" in capsys.readouterr().out


def test_an_image_that_is_in_the_other_class_already_is_not_put_in_both(source, output):
    folder_of_three(source)
    separate(source, "--output", output, "--mode", "copy")
    predictions(source / "x_preds.json", "real", "real", "fake")
    assert separate(source, "--output", output, "--mode", "copy") == 1
    assert not (output / "real_images/x__1.png").exists()


def test_names_that_differ_only_in_case_never_meet_in_the_output(source, output):
    write_image(source / "x" / "a.png", 1)
    write_image(source / "x" / "A.png", 2)
    if len(names_in(source / "x")) == 1:
        pytest.skip("this file system ignores case")
    predictions(source / "x.json", **{"a.png": "fake", "A.png": "real"})
    assert separate(source, "--output", output) == 1
    assert len(separated(output)) == 1
    assert len(names_in(source / "x")) == 1


def test_a_file_created_at_the_new_name_after_the_plan_is_not_overwritten(source, output):
    folder = folder_of_three(source)
    entry = entry_for(folder / "1.png")
    output.mkdir()
    journal = journals.create(output, "move", source, [entry])
    write_image(output / "fake_images" / "x__1.png", 123)
    result = journals.apply(journal, lambda _: None, lambda: False)
    assert [file.reason for file in result.skipped] == ["name_taken"]
    assert (folder / "1.png").exists()


@pytest.mark.parametrize(
    ("change", "reason"), [(lambda path: path.write_bytes(b"new"), "changed"), (Path.unlink, "gone")]
)
def test_a_file_that_changes_after_the_journal_was_written_is_left_alone(source, output, change, reason):
    folder = folder_of_three(source)
    entry = entry_for(folder / "1.png")
    output.mkdir()
    journal = journals.create(output, "move", source, [entry])
    change(folder / "1.png")
    before = tree(source)
    result = journals.apply(journal, lambda _: None, lambda: False)
    assert [file.reason for file in result.skipped] == [reason]
    assert tree(source) == before
    assert separated(output) == set()


def test_the_output_may_lie_in_the_source_and_is_never_taken_for_a_source_folder(source):
    folder_of_three(source)
    before = tree(source)
    for _ in range(2):
        assert separate(source, "--output", source / "clean") == 0
    assert len(separated(source / "clean")) == 3
    separate("--undo", journal_in(source / "clean"))
    after = {name: content for name, content in tree(source).items() if not name.startswith("clean/separation_")}
    assert after == before


def test_the_output_may_lie_in_a_folder_that_is_separated(source):
    folder_of_three(source)
    for _ in range(2):
        assert separate(source, "--output", source / "x" / "clean") == 0
    assert len(separated(source / "x" / "clean")) == 3


def test_the_source_itself_or_a_folder_with_predictions_is_refused_as_output(source):
    folder_of_three(source)
    before = tree(source)
    assert separate(source, "--output", source) == 2
    assert separate(source, "--output", source / "x") == 2
    assert tree(source) == before


def test_an_output_that_is_a_file_is_one_line_and_exit_code_2(source, output, capsys):
    folder_of_three(source)
    output.write_text("a file")
    assert separate(source, "--output", output) == 2
    assert capsys.readouterr().err.count("\n") == 1
