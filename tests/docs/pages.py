"""The Markdown files of the repository, taken apart: headings, links, snippets, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
_FENCE = re.compile(r"^\s*```(\w*)\s*$")
_BEFORE_A_COMMAND = {"do", "then", "else", "sudo", "exec", "!"}


@dataclass(frozen=True)
class Snippet:
    """A fenced block: its language, its text, and the line that it begins on."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Page:
    """A Markdown file."""

    path: Path

    def __str__(self) -> str:
        return self.path.relative_to(REPOSITORY).as_posix()

    @cached_property
    def lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines()

    @cached_property
    def _parts(self) -> tuple[list[str], list[Snippet]]:
        """Return the lines outside of fenced blocks (empty where a block is), and the blocks."""
        outside, snippets, inside = [], [], None
        for number, line in enumerate(self.lines, start=1):
            fence = _FENCE.match(line)
            if inside is None:
                outside.append("" if fence else line)
                inside = (fence[1], [], number) if fence else None
            elif fence:
                outside.append("")
                snippets.append(Snippet(inside[0], "\n".join(inside[1]), inside[2]))
                inside = None
            else:
                outside.append("")
                inside[1].append(line)
        assert inside is None, f"{self}: a fenced block does not end"
        return outside, snippets

    @property
    def prose(self) -> list[str]:
        return self._parts[0]

    @property
    def snippets(self) -> list[Snippet]:
        return self._parts[1]

    @cached_property
    def anchors(self) -> set[str]:
        """The anchors of its headings, as GitHub makes them."""
        found: dict[str, int] = {}
        for line in self.prose:
            if heading := re.match(r"#+ (.*)", line):
                text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
                anchor = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
                found[anchor] = found.get(anchor, -1) + 1
        return {
            anchor + (f"-{number}" if number else "")
            for anchor, last in found.items()
            for number in range(last + 1)
        }

    @cached_property
    def links(self) -> list[str]:
        text = re.sub(r"`[^`\n]*`", "``", "\n".join(self.prose))
        return re.findall(r"\]\(([^)\s]+)\)", text)

    @cached_property
    def code(self) -> list[str]:
        """What stands between backticks in the prose."""
        return re.findall(r"`([^`]+)`", "\n".join(self.prose))

    @cached_property
    def commands(self) -> list[list[str]]:
        """The commands in its shell snippets, as words."""
        shells = [snippet.text for snippet in self.snippets if snippet.language == "bash"]
        return [words for text in shells for words in commands_of(text)]


def pages() -> list[Page]:
    """Return every Markdown file of the repository."""
    found = sorted(REPOSITORY.rglob("*.md"))
    inside = [(path, path.relative_to(REPOSITORY).parts) for path in found]
    return [
        Page(path)
        for path, parts in inside
        if parts[0] not in ("outputs", "build", "dist", "runs")
        and not any(part.startswith(".") for part in parts)
    ]


def _lexer(text: str) -> shlex.shlex:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|()<>")
    lexer.whitespace_split = True
    return lexer


def commands_of(text: str) -> Iterator[list[str]]:
    """Yield the simple commands of a shell script as words: comments, redirections, assignments and the shell's own words left out, the variable of a
    loop as its first value."""
    waiting, loops = "", dict[str, str]()
    for line in text.replace("\\\n", " ").splitlines():
        try:
            tokens = list(_lexer(waiting + line))
        except ValueError:  # a quoted text goes on in the next line
            waiting += f"{line}\n"
            continue
        waiting = ""
        words: list[str] = []
        target = False
        for token in [*tokens, ";"]:
            if set(token) & set("<>"):
                target = True
                if token == ">&":  # of 2>&1
                    words = words[:-1]
            elif target:
                target = False
            elif set(token) <= set(";&|()"):
                while words and (words[0] in _BEFORE_A_COMMAND or re.match(r"[A-Z_]+=", words[0])):
                    words = words[1:]
                if words[:1] == ["for"]:
                    loops[f"${words[1]}"] = words[3]
                elif words and words[0] not in ("done", "fi", "if", "while", "until"):
                    yield words
                words = []
            else:
                for variable, value in loops.items():
                    token = token.replace(variable, value)
                words.append(token)
