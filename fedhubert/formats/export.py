"""Writes a round checkpoint in another tool's form, with its model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhubert.files import publish_folder
from fedhubert.formats.fairseq_files import write_fairseq, write_s3prl
from fedhubert.formats.huggingface import write_huggingface
from fedhubert.formats.model_card import Publication, write_model_card
from fedhubert.formats.source import Source
from fedhubert.formats.torchaudio_form import write_torchaudio

_WRITERS = {
    "huggingface": write_huggingface,
    "s3prl": write_s3prl,
    "torchaudio": write_torchaudio,
    "fairseq": write_fairseq,
}


def export(
    checkpoint: Mapping[str, Any],
    format_name: str,
    out: Path,
    *,
    overwrite: bool = False,
    publication: Publication | None = None,
) -> Path:
    """Write ``checkpoint`` (of ``load_checkpoint``) and its model card to the folder ``out``, which
    appears whole, and return it.

    ``overwrite`` lets files be replaced in a folder that is not empty; ``publication`` is for the
    card.

    Raises:
        CheckpointError: weights that do not fit the format, or a folder that is in use or cannot be
            written.
    """
    source = Source.of(checkpoint)

    def fill(folder: Path) -> None:
        _WRITERS[format_name](source, folder)
        write_model_card(source, format_name, folder, publication or Publication())

    publish_folder(out, fill, overwrite=overwrite)
    return out
