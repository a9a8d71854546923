"""Compact names, and where the images of an archive lie by their names: for a million images at a time."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

_MAX_SIZE = 2**32 - 1  # in `Places`: larger files are refused anyway


class Names(Sequence[str]):
    """A compact sequence of names: as objects, a million of them would take 80 MB."""

    def __init__(self, names: Iterable[str]) -> None:
        text, ends = bytearray(), array("Q", [0])
        for name in names:
            text += name.encode("utf-8", "surrogatepass")  # Python gives names that are no UTF-8 surrogates
            ends.append(len(text))
        self._text, self._ends = bytes(text), ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:
        if not 0 <= number < len(self):
            raise IndexError(f"expected a number from 0 to {len(self) - 1}, got {number}")
        return self._text[self._ends[number] : self._ends[number + 1]].decode("utf-8", "surrogatepass")


class Places:
    """Offset and size of each file of an archive by its name: as a dict, a million of them would take 220 MB."""

    def __init__(self, places: Mapping[str, tuple[int, int]]) -> None:
        ordered = sorted(places.items())
        self._names = Names(name for name, _ in ordered)
        self._offsets = array("Q", (offset for _, (offset, _) in ordered))
        self._sizes = array("I", (min(size, _MAX_SIZE) for _, (_, size) in ordered))

    def __getitem__(self, name: str) -> tuple[int, int]:
        number = bisect_left(self._names, name)
        if number == len(self._names) or self._names[number] != name:
            raise KeyError(name)
        return self._offsets[number], self._sizes[number]
