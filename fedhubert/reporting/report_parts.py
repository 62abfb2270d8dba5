"""What a report's page is made of: sections with figures and tables."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of cells below a head; with a heading above, or a caption."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    heading: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """What stands below one title: figures (SVG), tables, and a note on how to read them."""

    title: str
    figures: Sequence[str] = ()
    tables: Sequence[Table] = ()
    note: str = ""


def decimal(value: object) -> str:
    """Return a number with four decimals; anything else is an empty cell."""
    return f"{value:.4f}" if isinstance(value, (int, float)) else ""
