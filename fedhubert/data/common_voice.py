"""Mozilla Common Voice: tables of clips, a folder per language."""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedhubert.data.folders import UNKNOWN, Candidate, Found
from fedhubert.data.lists import text_of
from fedhubert.errors import DataError

_KEPT = {"sentence": "text", "age": "age", "gender": "gender", "accents": "accent"}
_KEPT |= {"accent": "accent", "variant": "variant"}


def scan_common_voice(root: Path, splits: Sequence[str] = ("validated",)) -> Found:
    """Return the clips of a language's folder, or of a release with several; speakers are
    ``client_id``, languages ``locale``.

    Args:
        splits: Tables without ``.tsv``: validated, train, dev, test, other, ... A clip that is in
            several counts once.

    Raises:
        DataError: no such table, or one without the columns that make it Common Voice's.
    """
    found, seen = Found(root), set[str]()
    for split in splits:
        tables = [
            *root.glob(f"{split}.tsv"),
            *root.glob(f"*/{split}.tsv"),
            *root.glob(f"*_{split}.tsv"),
        ]
        if not tables:
            raise DataError(
                f"{root} has no {split}.tsv, nor has a folder in it: --root is a language's "
                "folder, "
                f"with clips/ and tables ({', '.join(sorted(p.stem for p in root.glob('*.tsv')))})",
                setting="--split",
            )
        for table in sorted(set(tables)):
            for item in _clips(root, table, split):
                if item.path not in seen:
                    seen.add(item.path)
                    found.candidates.append(item)
    nameless = sum(item.speaker == UNKNOWN for item in found.candidates)
    if nameless:
        found.remarks.append(
            f"warning: {nameless} of {len(found.candidates)} clips have no client_id: their "
            "speaker is `unknown`"
        )
    return found


def _unquoted(cell: str) -> str:
    """Return a cell without the quotes that some releases put around texts with quotes in them."""
    whole = len(cell) > 1 and cell[0] == cell[-1] == '"'
    return cell[1:-1].replace('""', '"') if whole else cell


def _clips(root: Path, table: Path, split: str) -> Iterator[Candidate]:
    clips = table.parent / "clips"
    folder = clips if clips.is_dir() else table.parent
    try:
        with io.StringIO(text_of(table), newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            missing = {"client_id", "path"} - set(rows.fieldnames or ())
            if missing:
                raise DataError(
                    f"{table} has no column {', '.join(sorted(missing))}: is it Common Voice's?",
                    setting="--root",
                )
            for row in rows:
                if not row["path"]:
                    continue
                name = row["path"] if "." in row["path"] else f"{row['path']}.mp3"
                kept_cells = ((ours, row.get(theirs)) for theirs, ours in _KEPT.items())
                columns = {ours: _unquoted(cell) for ours, cell in kept_cells if cell}
                columns["language"] = row.get("locale") or table.parent.name
                columns["split"] = split
                path = os.path.relpath(folder / name, root)
                kept = {key: value for key, value in columns.items() if value}
                yield Candidate(path, row["client_id"] or UNKNOWN, kept)
    except csv.Error as error:
        raise DataError(f"cannot read {table}: {error}", setting="--root") from None
