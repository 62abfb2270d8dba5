"""Lists beside a manifest, and whether all of them can be written."""

import csv
import errno
import os
from collections.abc import Sequence
from pathlib import Path

from fedhubert.data.checking import Settings
from fedhubert.errors import DataError


def check_out(out: Path, settings: Settings) -> None:
    """Raise :class:`DataError` where ``out`` cannot be written, or its form has no place for what
    is asked: before hours of decoding."""
    if out.is_dir():
        raise DataError(
            f"{out} is a folder: name a file in it, such as {out / 'manifest.csv'}", setting="--out"
        )
    if out.suffix == ".tsv" and (settings.cut_s or settings.channel != "mean"):
        raise DataError(
            f"{out}: fairseq's .tsv has no place for parts of files: write a .csv", setting="--out"
        )
    probe = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror}", setting="--out") from None


def text_of(path: Path) -> str:
    """Return a list of another tool's; raises :class:`DataError` where it is no text in UTF-8."""
    try:
        if not path.is_file():
            raise OSError(errno.EINVAL, "is no file")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", setting="--root") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"cannot read {path}: line {line} is not UTF-8: "
            "`iconv -f LATIN1 -t UTF-8 IN > OUT` (or -f UTF-16) writes a copy that is",
            setting="--root",
        ) from None


def write_list(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a CSV in place of an earlier one; none where there are no rows. Bytes of names that are
    not UTF-8 are kept as they are."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    scratch = path.with_name(f".{path.name}.tmp")
    with scratch.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, quoting=csv.QUOTE_MINIMAL, lineterminator="\r\n").writerows(
            [columns, *rows]
        )
    os.replace(scratch, path)
