"""What a look at an installation or a site has found, a line each."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fedhubert.errors import FedhubertError


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


def look(checks: Mapping[str, Callable[[], Iterable[Finding]]]) -> list[Finding]:
    """Return what the checks find, by name and in their order; what goes wrong on the way is a
    finding, not an error."""
    found: list[Finding] = []
    for name, check in checks.items():
        try:
            found += check()
        except FedhubertError as error:
            found.append(Finding(name, False, str(error)))
        except OSError as error:
            words = f"{error.filename or ''} {error.strerror or error}".strip()
            found.append(Finding(name, False, words))
        except (ImportError, RuntimeError) as error:
            found.append(Finding(name, False, f"{type(error).__name__}: {error}"))
    return found
