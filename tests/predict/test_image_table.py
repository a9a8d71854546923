"""The table of a run's images: their order, equal names, names of any bytes, and its memory."""

import os
import random
import subprocess
import sys
import tarfile

import pytest

from fakereal.errors import DataError
from fakereal.predict.image_table import ImageTable

NAMES = ["10.png", "2.jpg", "1.png", "b.png", "B.png", "ä/1.png", "a\0b.png", "\U0001f600.png", "9" * 255 + ".png"]
NAMES += ["9" * 256 + ".png", "0.png", "a", "12", "-1.png", "é.png", "\ufffd.png", "a/b.png", "a-b.png"]
NAMES += [os.fsdecode(b"caf\xe9.png")]


def table_of(names, prefix=""):
    table = ImageTable()
    source = table.new_source()
    for name in names:
        table.add(source, name)
    table.arrange([(source, "", prefix)])
    return table


def fill(table):
    for number in range(100_000):
        table.add(0, f"{number}.png")


def order(name):
    """As predictions.json is sorted: numbers first, then names by their characters."""
    stem = name.rpartition(".")[0] or name
    if stem.isascii() and stem.isdigit() and len(stem) <= 255:
        return 0, int(stem), name
    return 1, 0, name


@pytest.mark.parametrize("seed", range(3))
def test_numbers_come_first_then_names_whatever_their_bytes(seed):
    names = random.Random(seed).sample(NAMES, len(NAMES))
    rows = table_of(names).rows(0, len(names))
    assert [row.name for row in rows] == sorted(names, key=order)
    assert [row.numbered for row in rows] == [order(row.name)[0] == 0 for row in rows]


def test_behind_a_folder_no_name_is_a_number():
    rows = table_of(["10.png", "2.png"], "x/").rows(0, 2)
    assert [(row.name, row.numbered) for row in rows] == [("x/10.png", False), ("x/2.png", False)]


def test_any_number_of_rows_is_kept_in_order():
    names = [f"{number}.png" for number in range(5000)]
    table = table_of(random.Random(0).sample(names, len(names)))
    assert len(table) == 5000
    assert [row.name for start in range(0, 5000, 700) for row in table.rows(start, start + 700)] == names


def test_of_equal_names_the_first_is_kept_and_of_one_archive_it_is_refused():
    table = ImageTable()
    for source in (0, 1):
        table.new_source()
        before = table.last()
        for place, name in enumerate(["a.png", "b.png", "note", "b.png", "note"]):
            table.add(source, name, place=(place, 1), is_image=name != "note")
        assert table.settle_equal_names(before, "twice") == ["note"]
    table.arrange([(0, "", ""), (1, "", "")])
    assert [(row.name, row.source, row.problem) for row in table.rows(0, 9)] == [
        ("a.png", 0, None),
        ("b.png", 0, "twice"),
    ]
    assert table.duplicates == 2


def test_sources_that_must_be_read_in_order_come_last_each_by_its_places():
    table = ImageTable()
    for source, names in enumerate(["fc", "gb", "hda", "ei"]):
        table.new_source()
        for place, name in enumerate(names):
            table.add(source, name, "broken" if name == "d" else None, place=(place, 1) if source else None)
    table.arrange((source, "", "") for source in range(4))
    names = [row.name for row in table.rows(0, 9)]
    assert "".join(names) == "abcdefghi"
    assert "".join(names[number] for number in table.by_place([2, 3])) == "bcdfghaei"


def test_a_full_disk_is_one_line_that_names_the_folder_for_temporary_files():
    table = ImageTable()
    table._database.execute("PRAGMA max_page_count = 20")
    with pytest.raises(DataError, match=r"^the list of images .*full.*: free some disk space, or set TMPDIR"):
        fill(table)


GROWTH = """
import resource, sys
from fakereal.predict.inputs import list_images
for path in sys.argv[1:]:
    items = list_images(path).items
    assert sum(1 for item in items) == len(items)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other ways")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    paths = [tmp_path / "20000.tar", tmp_path / "100000.tar"]
    header = tarfile.TarInfo("x" * 10 + ".png").tobuf(tarfile.GNU_FORMAT)
    old = b"x" * 10
    for path in paths:
        with open(path, "wb") as file:
            for number in range(int(path.stem)):
                name = b"%010d" % number
                checksum = sum(header) - sum(header[148:156]) + 8 * 0x20 - sum(old) + sum(name)
                file.write(header.replace(old, name)[:148] + b"%06o\0 " % checksum + header[156:])
            file.write(bytes(1024))
    done = subprocess.run([sys.executable, "-c", GROWTH, *map(str, paths)], capture_output=True, text=True, check=True)
    few, many = map(int, done.stdout.split())
    assert (many - few) * 1024 < 80_000 * 16, "a name alone has 14 bytes"
