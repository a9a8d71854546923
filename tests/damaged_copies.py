"""Makes damaged copies of pictures, the way disks, networks and people do; the same seed gives the same copies."""

import os
import random
from collections.abc import Callable
from pathlib import Path

SUFFIXES = (".jpg", ".png", ".webp", ".gif", ".bmp", ".tiff", ".avif")


def cut(path: Path, data: bytes, chance: random.Random) -> None:
    path.write_bytes(data[: chance.randrange(1, len(data))])


def flip_bits(path: Path, data: bytes, chance: random.Random) -> None:
    damaged = bytearray(data)
    for _ in range(chance.choice((1, 3, 30, 300))):
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    path.write_bytes(damaged)


def flip_bits_of_the_header(path: Path, data: bytes, chance: random.Random) -> None:
    damaged = bytearray(data)
    for _ in range(3):
        damaged[chance.randrange(min(64, len(damaged)))] ^= 1 << chance.randrange(8)
    path.write_bytes(damaged)


def lose_a_block(path: Path, data: bytes, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    length = chance.randrange(1, len(data) - start + 1)
    path.write_bytes(data[:start] + bytes(length) + data[start + length :])


def splice(path: Path, data: bytes, chance: random.Random) -> None:
    half = chance.randrange(len(data))
    path.write_bytes(data[:half] + data[chance.randrange(len(data)) :])


def wrong_suffix(path: Path, data: bytes, chance: random.Random) -> None:
    path.write_bytes(data)  # the numbered copy's suffix is drawn at random anyway


def random_bytes(path: Path, data: bytes, chance: random.Random) -> None:
    path.write_bytes(data[:12] + chance.randbytes(chance.randrange(2000)))


def text(path: Path, data: bytes, chance: random.Random) -> None:
    path.write_text("<html><body>404 Not Found</body></html>")


def empty(path: Path, data: bytes, chance: random.Random) -> None:
    path.touch()


def folder(path: Path, data: bytes, chance: random.Random) -> None:
    path.mkdir()


def pipe(path: Path, data: bytes, chance: random.Random) -> None:
    os.mkfifo(path)


def dead_link(path: Path, data: bytes, chance: random.Random) -> None:
    path.symlink_to(chance.choice(("nowhere.png", path.name)))


def closed(path: Path, data: bytes, chance: random.Random) -> None:
    path.write_bytes(data)
    path.chmod(0)


Damage = Callable[[Path, bytes, random.Random], None]
COMMON: tuple[Damage, ...] = (cut, flip_bits, flip_bits_of_the_header, lose_a_block, splice, wrong_suffix, random_bytes)
RARE: tuple[Damage, ...] = (text, empty, folder, pipe, dead_link, closed)


def make(sources: list[Path], target: Path, count: int, seed: int) -> dict[str, str]:
    """Fills `target` with 1.<suffix> ... count.<suffix>; nine of ten are damaged in a common way.

    Returns:
        Which damage each file has, by its name.
    """
    chance = random.Random(seed)
    target.mkdir(parents=True)
    done = {}
    for number in range(1, count + 1):
        source = chance.choice(sources)
        damage = chance.choice(COMMON if chance.random() < 0.9 else RARE)
        suffix = source.suffix if damage is not wrong_suffix and chance.random() < 0.8 else chance.choice(SUFFIXES)
        path = target / f"{number}{suffix}"
        damage(path, source.read_bytes(), chance)
        done[path.name] = damage.__name__
    return done
