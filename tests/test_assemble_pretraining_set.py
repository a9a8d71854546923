from __future__ import annotations

import csv
import io
import subprocess

import numpy as np
import pytest
from PIL import Image

from tools import assemble_pretraining_set as assemble


def encoded(width, height, file_format="PNG", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, file_format)
    return content.getvalue()


@pytest.fixture
def repository(tmp_path):
    """A git repository `host/someone/images`, its commit, and what it holds."""
    folder = tmp_path / "host" / "someone" / "images"
    folder.mkdir(parents=True)
    (folder / "photo.jpg").write_bytes(encoded(2048, 1024, "JPEG"))
    (folder / "grid.png").write_bytes(encoded(400, 200))
    (folder / "tiny.png").write_bytes(encoded(40, 40))
    (folder / "broken.png").write_bytes(b"\x89PNG broken")
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for command in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "images")):
        subprocess.run(["git", "-C", folder, *command], check=True)
    subprocess.run(["git", "-C", folder, "config", "uploadpack.allowAnySHA1InWant", "true"], check=True)
    done = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def listed(path, commit, *rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(assemble.COLUMNS)
        writer.writerows(["someone/images", commit, *row] for row in rows)
    return path


def run(tmp_path, sources, *more):
    places = ["--clones", str(tmp_path / "clones"), "--output", str(tmp_path / "out"), "--sources", str(sources)]
    return assemble.main([*places, "--host", (tmp_path / "host").as_uri(), *more])


def test_public_images_are_fetched_and_delivered_alike(tmp_path, repository, capsys):
    sources = listed(
        tmp_path / "s.csv",
        repository,
        ("photo.jpg", "", "real", "camera", "", "none stated", "train"),
        ("grid.png", "0/1 1/2", "fake", "grids", "a generator", "MIT", "val"),
    )
    assert run(tmp_path, sources) == 0
    assert "2 images, 0 left out" in capsys.readouterr().out
    (photo,) = (tmp_path / "out/train/camera/real").iterdir()
    (tile,) = (tmp_path / "out/val/grids/fake").iterdir()
    assert [Image.open(path).size for path in (photo, tile)] == [(1024, 512), (200, 200)]
    assert {Image.open(path).format for path in (photo, tile)} == {"JPEG"}
    before = {path: path.stat().st_mtime_ns for path in (photo, tile)}
    assert run(tmp_path, sources) == 0  # again: nothing is written twice
    assert {path: path.stat().st_mtime_ns for path in (photo, tile)} == before


def test_a_tile_is_a_place_in_a_grid_or_a_rectangle_of_the_full_image():
    sheet = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 400, 3), dtype=np.uint8))
    pixels = np.asarray(sheet)
    assert np.array_equal(assemble.cut_tile(sheet, "0/2 3/4"), pixels[:100, 300:])
    assert np.array_equal(assemble.cut_tile(sheet, "120x90+2+104"), pixels[104:194, 2:122])
    assert assemble.cut_tile(sheet, "") is sheet


def test_a_tile_of_a_large_sheet_has_the_pixels_of_the_sheet(tmp_path, repository):
    folder = tmp_path / "host" / "someone" / "images"
    Image.new("RGB", (6000, 3000)).save(folder / "sheet.jpg")  # a JPEG that is otherwise decoded at a reduced size
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for command in (("add", "."), (*who, "commit", "-qm", "sheet")):
        subprocess.run(["git", "-C", folder, *command], check=True)
    done = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    row = ("sheet.jpg", "512x500+4000+2000", "fake", "sheets", "", "", "train")
    assert run(tmp_path, listed(tmp_path / "s.csv", done.stdout.strip(), row)) == 0
    (tile,) = (tmp_path / "out/train/sheets/fake").iterdir()
    assert Image.open(tile).size == (512, 500)


def test_what_cannot_be_taken_is_listed_with_its_reason(tmp_path, repository, capsys):
    sources = listed(
        tmp_path / "s.csv",
        repository,
        *((name, "", "fake", "s", "", "", "train") for name in ("tiny.png", "broken.png", "gone.png", "photo.jpg")),
    )
    assert run(tmp_path, sources) == 0
    said = capsys.readouterr()
    assert "1 images, 3 left out" in said.out
    for name in ("tiny.png: shorter side of 40 px", "broken.png: ", "gone.png: git"):
        assert f"left out: someone/images/{name}" in said.err


def test_a_repository_that_is_gone_is_named_with_the_number_of_its_images(tmp_path, repository, capsys):
    rows = [("photo.jpg", "", "fake", "s", "", "", "train")] * 3
    sources = listed(tmp_path / "s.csv", "0" * 40, *rows)
    assert run(tmp_path, sources) == 2
    assert "left out: 3 images of someone/images: git" in capsys.readouterr().err


def test_of_cifake_only_the_training_part_is_taken_by_subject(tmp_path, repository):
    for part in ("train", "test"):
        for name in ("REAL", "FAKE"):
            folder = tmp_path / "sets/cifake" / part / name
            folder.mkdir(parents=True)
            for number in ("", " (10)"):
                content = encoded(32, 32, seed=len(part) + len(name) + len(number))
                (folder / f"{part}{number}.png").write_bytes(content)
    sources = listed(tmp_path / "s.csv", repository)
    assert run(tmp_path, sources, "--sets", str(tmp_path / "sets")) == 0
    placed = sorted(path.parent.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.jpg"))
    assert placed == [
        f"train/cifake_{subject}/{name}" for subject in ("airplane", "truck") for name in ("fake", "real")
    ]  # each subject is a source, or CIFAKE would be drawn too rarely


def test_a_row_with_a_comma_that_is_not_quoted_is_refused(tmp_path, repository, capsys):
    sources = listed(tmp_path / "s.csv", repository)
    with open(sources, "a") as file:
        file.write(f"someone/images,{repository},photo.jpg,,fake,camera,a generator, version 2,MIT,train\n")
    assert run(tmp_path, sources) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in ("line 2", "split train, val or test", "'photo.jpg'", "quote"))
    assert not (tmp_path / "out").exists()


def test_the_shipped_list_names_no_repository_that_judges_the_result():
    rows = assemble.read_sources(assemble.SOURCES)
    kept_for_tests = assemble.SOURCES.with_name("TEST_ONLY.txt").read_text().split()
    assert len(kept_for_tests) >= 22
    assert {row["repo"] for row in rows} & set(kept_for_tests) == set()
    counts = {"val": (27, 23), "test": (89, 66)}
    for split, (fakes, reals) in counts.items():
        left_out = {(row["label"], row["source"]) for row in rows if row["split"] == split}
        assert sorted(label for label, _ in left_out) == ["fake"] * fakes + ["real"] * reals
        assert not {source for _, source in left_out} & {row["source"] for row in rows if row["split"] != split}
    measuring = {row["repo"] for row in rows if row["split"] == "test"}
    assert not measuring & {row["repo"] for row in rows if row["split"] != "test"}
