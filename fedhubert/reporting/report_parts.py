"""What a report's page is made of: sections with figures and tables."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Table:
    """Rows of cells below a head; with a heading above, or a caption. ``folded``: only the heading
    is seen until it is asked for."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    heading: str = ""
    caption: str = ""
    folded: bool = False

    def filled(self) -> "Table":
        """Return the table without the columns that no row has anything in."""
        kept = [0] + [
            place for place in range(1, len(self.head)) if any(row[place] for row in self.rows)
        ]
        head = [self.head[place] for place in kept]
        return replace(self, head=head, rows=[[row[place] for place in kept] for row in self.rows])


@dataclass(frozen=True)
class Section:
    """What stands below one title: warnings, pictures (SVG), tables, and a note on how to read
    them."""

    title: str
    figures: Sequence[str] = ()
    tables: Sequence[Table] = ()
    note: str = ""
    warnings: Sequence[str] = ()

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower())


def decimal(value: object) -> str:
    """Return a number with four decimals; anything else is an empty cell."""
    return f"{value:.4f}" if isinstance(value, (int, float)) else ""
