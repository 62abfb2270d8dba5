"""What a look at an installation or a site has found, a line each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        name: What was looked at.
        ok: Whether it would work.
        words: What it is like.
        remedy: What to do; also where it is ``ok``, but not for long.
    """

    name: str
    ok: bool
    words: str
    remedy: str = ""

    def __str__(self) -> str:
        state = "problem" if not self.ok else "warning" if self.remedy else "ok"
        return f"{state:8s}{self.name}: {self.words}{f'; {self.remedy}' if self.remedy else ''}"
