"""Transcripts as numbers: how texts are normalised, and the tokens that stand for characters.

Tokens are in the order of wav2vec 2.0's released vocabularies, which HuggingFace's
``Wav2Vec2CTCTokenizer`` reads: four special ones, ``|`` for the space, then the characters.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "|")
"""Tokens before the characters."""
BLANK, UNKNOWN, SPACE = 0, 3, 4
"""Their places: ``<pad>`` is CTC's blank."""
NEVER_WRITTEN = [1, 2, 3]
"""Special tokens that are no output: decoding does not choose among them."""
CODES = 2**16
"""Code points that are counted: those of every alphabet in use."""
UNWRITABLE = "\ufffd"
"""What stands in a reference for a character that is not in the vocabulary: always an error."""
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u02bc\u2018\u0060\u00b4", "'"))


def normalised(text: str) -> str:
    """Return ``text`` in composed form (NFKC), lower case, with one kind of apostrophe and single
    spaces."""
    folded = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower()
    return " ".join(folded.split())


def is_punctuation(character: str) -> bool:
    """Whether a character separates words or means nothing: punctuation, symbols and controls."""
    return unicodedata.category(character)[0] in "PSCZ"


@dataclass(frozen=True)
class Vocabulary:
    """The characters that a model writes, beside the space."""

    characters: str

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens, in the order of the model's outputs."""
        return (*SPECIAL, *self.characters)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {" ": SPACE} | {
            each: place for place, each in enumerate(self.characters, len(SPECIAL))
        }

    @cached_property
    def _upper(self) -> bool:
        return self.characters != self.characters.lower()

    def reference(self, text: str) -> str:
        """Return what is to be written of ``text``: in the vocabulary's case, with spaces for
        punctuation that is not in it, and :data:`UNWRITABLE` for other characters."""
        folded = normalised(text)
        folded = folded.upper() if self._upper else folded
        written = (
            each if each in self._numbers else " " if is_punctuation(each) else UNWRITABLE
            for each in folded
        )
        return " ".join("".join(written).split())

    def encode(self, text: str) -> list[int]:
        """Return the tokens of ``text``; empty where there is nothing to write."""
        return [self._numbers.get(each, UNKNOWN) for each in self.reference(text)]

    def spelt(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens; other special ones than the space and ``<unk>`` are left
        out."""
        texts = {SPACE: " ", UNKNOWN: UNWRITABLE}
        first = len(SPECIAL)
        return "".join(
            self.characters[token - first] if token >= first else texts.get(token, "")
            for token in tokens
        )

    def decoded(self, best_T: Sequence[int]) -> str:
        """Return the text of the best token of each frame: repeats are one, blanks none (greedy
        decoding)."""
        return " ".join(self.spelt(token for token, _ in groupby(best_T)).split())


def character_counts(texts: Iterable[str]) -> npt.NDArray[np.int64]:
    """Count the characters of normalised texts by code point [65536]: letters, marks and digits,
    and the apostrophe."""
    counts = Counter[str]()
    for text in texts:
        counts.update(normalised(text))
    found = np.zeros(CODES, np.int64)
    for character, count in counts.items():
        if ord(character) < CODES and (character == "'" or not is_punctuation(character)):
            found[ord(character)] = count
    return found


def vocabulary_of(counts: npt.NDArray[np.int64]) -> str:
    """Return the characters that were counted, in the order of their code points."""
    return "".join(map(chr, np.flatnonzero(counts).tolist()))


def frames_needed(tokens: Sequence[int]) -> int:
    """Return the fewest frames that CTC can write ``tokens`` in: one each, and a blank between two
    alike."""
    repeats = sum(one == other for one, other in pairwise(tokens))
    return len(tokens) + repeats
