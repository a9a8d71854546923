import os
import random
from pathlib import Path

import pytest

from benchmarks import separation_kills

if os.name == "nt":
    pytest.skip("kills work otherwise here", allow_module_level=True)


def run(kills: int, sizes: list[int], scratch: Path) -> None:
    tally = separation_kills.run(kills, sizes, 1, scratch, separation_kills.find_other_device(scratch))
    assert tally.kills.total() == kills
    assert (tally.lost, tally.duplicated, tally.unexpected) == (0, 0, [])


def test_a_few_kills_lose_and_duplicate_nothing(tmp_path):
    run(6, [12, 60], tmp_path)


@pytest.mark.slow
def test_thirty_kills_over_several_sizes_lose_and_duplicate_nothing(tmp_path):
    run(30, [10, 100, 1000], tmp_path)


@pytest.fixture
def made(tmp_path):
    return separation_kills.make_set(tmp_path / "raw", tmp_path / "clean", "move", 12, 0, random.Random(0))


def checked(made, separated: bool) -> tuple[int, int, int]:
    tally = separation_kills.Tally()
    separation_kills.check_at_end(made, tally, separated)
    return tally.lost, tally.duplicated, len(tally.unexpected)


def test_the_check_sees_a_lost_a_duplicated_and_a_changed_file(made):
    assert checked(made, separated=False) == (0, 0, 0)
    first, second, third = (Path(os.fsdecode(path)) for path in list(made.moves)[:3])
    third.with_name("twin.png").write_bytes(third.read_bytes())
    assert checked(made, separated=False) == (0, 1, 1)
    second.write_bytes(b"changed")
    first.unlink()
    assert checked(made, separated=False) == (2, 2, 2)


def test_the_check_fails_for_a_set_that_was_not_separated(made):
    lost, duplicated, unexpected = checked(made, separated=True)
    assert (lost, duplicated, unexpected) == (0, 0, len(made.moves))


def test_the_check_after_a_kill_sees_a_file_that_is_at_neither_name(made):
    tally = separation_kills.Tally()
    next(Path(os.fsdecode(path)) for path in made.moves).unlink()
    (made.source / "stranger.png").write_bytes(b"?")
    separation_kills.check_after_kill(made, tally)
    assert (tally.lost, len(tally.unexpected)) == (1, 1)
