"""Writes a round checkpoint in another tool's form, or as a program, with its model card."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedhubert.files import publish_folder
from fedhubert.formats.fairseq_files import write_fairseq, write_s3prl
from fedhubert.formats.huggingface import write_huggingface
from fedhubert.formats.model_card import Publication, write_model_card
from fedhubert.formats.onnx_form import write_onnx
from fedhubert.formats.programs import ProgramSettings
from fedhubert.formats.source import Source
from fedhubert.formats.torch_export_form import write_torch_export
from fedhubert.formats.torchaudio_form import write_torchaudio

log = logging.getLogger(__name__)
_WRITERS = {
    "huggingface": write_huggingface,
    "s3prl": write_s3prl,
    "torchaudio": write_torchaudio,
    "fairseq": write_fairseq,
}
_PROGRAMS = {"onnx": write_onnx, "torch_export": write_torch_export}


def export(
    checkpoint: Mapping[str, Any],
    format_name: str,
    out: Path,
    *,
    overwrite: bool = False,
    publication: Publication | None = None,
    program: ProgramSettings | None = None,
    tell: Callable[[str], None] = log.info,
) -> Path:
    """Write ``checkpoint`` (of ``load_checkpoint``) and its model card to the folder ``out``, which
    appears whole, and return it.

    ``overwrite`` lets files be replaced in a folder that is not empty; ``publication`` is for the
    card. ``program`` is for the formats of :data:`~fedhubert.formats.PROGRAMS`; how far one is from
    the model is said to ``tell``, and in the card.

    Raises:
        CheckpointError: weights that do not fit the format, a program that computes something else,
            or a folder that is in use or cannot be written.
        ConfigError: ``program`` asks for what the model or the format does not have.
    """
    source = Source.of(checkpoint)
    agreement: list[str] = []

    def fill(folder: Path) -> None:
        if format_name in _PROGRAMS:
            settings = program or ProgramSettings()
            agreement.extend(_PROGRAMS[format_name](source, folder, settings))
        else:
            _WRITERS[format_name](source, folder)
        write_model_card(source, format_name, folder, publication or Publication(), agreement)

    publish_folder(out, fill, overwrite=overwrite)
    for words in agreement:
        tell(words)
    return out
