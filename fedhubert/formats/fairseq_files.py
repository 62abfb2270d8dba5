"""Export to one file that s3prl's ``hubert_local``, or fairseq, loads."""

from pathlib import Path

import torch

from fedhubert.formats.fairseq_form import fairseq_checkpoint, hubert_local_fields
from fedhubert.formats.naming import FAIRSEQ, exported
from fedhubert.formats.source import Source


def write_s3prl(source: Source, folder: Path) -> None:
    """Write ``hubert_s3prl.pt`` to an existing folder; raises :class:`CheckpointError` where the
    encoder has no exact form there."""
    _refuse_other_tensors(source)
    torch.save(
        hubert_local_fields(
            source.config, {**source.state, **source.other_heads}, source.label_rate_hz
        ),
        folder / "hubert_s3prl.pt",
    )


def write_fairseq(source: Source, folder: Path) -> None:
    """Write ``hubert_fairseq.pt`` to an existing folder; raises :class:`CheckpointError` where the
    encoder has no exact form there."""
    _refuse_other_tensors(source)
    checkpoint = fairseq_checkpoint(
        source.config,
        {**source.state, **source.other_heads},
        label_rate_hz=source.label_rate_hz,
        task=source.task,
        updates=source.round,
    )
    torch.save(checkpoint, folder / "hubert_fairseq.pt")


def _refuse_other_tensors(source: Source) -> None:
    exported(source.state, FAIRSEQ[source.config.conv_norm])
