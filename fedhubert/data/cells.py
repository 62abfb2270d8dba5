"""A column of text of a large manifest: one array of bytes in place of a million Python strings."""

import operator
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np
import numpy.typing as npt

AT_ONCE = 2**16
"""Cells that are looked at together."""
_MOST_DIGITS = 18
"""Of a whole number that fits into 64 bits, whatever its digits are."""


class Cells(Sequence[str]):
    """Texts that take as many bytes as they have, and eight each; read like a list.

    Args:
        text: The cells' UTF-8, one after the other.
        offsets: Where each cell begins, and the end [n + 1].
    """

    def __init__(self, text: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> None:
        self.text, self.offsets = text, offsets

    @classmethod
    def of(cls, values: Sequence[str]) -> "Cells":
        """Return ``values`` in this form."""
        joined = "".join(values).encode()
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        if int(lengths.sum()) != len(joined):  # not ASCII alone
            lengths = np.fromiter((len(value.encode()) for value in values), np.int64, len(values))
        return cls(np.frombuffer(joined, np.uint8), np.concatenate([[0], np.cumsum(lengths)]))

    @classmethod
    def joined(cls, parts: Sequence["Cells"]) -> "Cells":
        """Return the cells of all ``parts``, one part after the other."""
        starts = np.cumsum([0, *(len(part.text) for part in parts)])
        offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
        return cls(
            np.concatenate([part.text for part in parts]), np.concatenate([*offsets, starts[-1:]])
        )

    @property
    def whole(self) -> bool:
        """Whether the offsets fit the text; those from a damaged file do not."""
        known = self.offsets.ndim == self.text.ndim == 1 and len(self.offsets) > 0
        return (
            known
            and self.offsets[0] == 0
            and self.offsets[-1] == len(self.text)
            and bool((np.diff(self.offsets) >= 0).all())
        )

    def integers(self) -> npt.NDArray[np.int64] | None:
        """Return the cells as numbers, where every one is some digits and nothing else."""
        lengths = np.diff(self.offsets)
        if not len(lengths) or not 1 <= lengths.min() <= lengths.max() <= _MOST_DIGITS:
            return None
        if self.text.min() < ord("0") or self.text.max() > ord("9"):
            return None
        return np.fromiter(map(int, self), np.int64, len(self))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), AT_ONCE):
            places = self.offsets[first : first + AT_ONCE + 1]
            block = self.text[places[0] : places[-1]].tobytes()
            for begin, end in pairwise((places - places[0]).tolist()):
                yield block[begin:end].decode(errors="replace")

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[index] for index in range(*row.indices(len(self)))]
        index = operator.index(row)
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = index % len(self)
        begin, end = self.offsets[place], self.offsets[place + 1]
        return self.text[begin:end].tobytes().decode(errors="replace")


def picked(values: Sequence[str], rows: npt.NDArray[np.int64]) -> list[str]:
    """Return the cells at ``rows``: of packed ones faster than one by one."""
    if not isinstance(values, Cells):
        return [values[row] for row in rows.tolist()]
    text = np.ascontiguousarray(values.text).data
    ends = zip(values.offsets[rows].tolist(), values.offsets[rows + 1].tolist(), strict=True)
    return [str(text[begin:end], "utf-8", "replace") for begin, end in ends]


def first_middle_last(count: int) -> list[int]:
    """Return the places of the first, the middle and the last of ``count``; fewer of fewer."""
    return sorted({0, count // 2, count - 1} & set(range(count)))
