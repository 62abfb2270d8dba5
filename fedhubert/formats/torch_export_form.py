"""Export by ``torch.export``: a program that torch loads and runs without this package, for any
batch and any length from two frames on."""

import warnings
from pathlib import Path

import torch
from torch.export import Dim

from fedhubert.errors import ConfigError
from fedhubert.formats.answers import answers_of
from fedhubert.formats.programs import (
    Floats,
    ProgramSettings,
    agreement,
    encoder_of,
    least_samples,
    made_batches,
    must_be_equal,
)
from fedhubert.formats.source import Source

PROGRAM_FILE = "model.pt2"
FRAMES = 2
"""The fewest that it takes: a size of 1 is another program to torch.export."""


def write_torch_export(source: Source, folder: Path, settings: ProgramSettings) -> list[str]:
    """Write ``model.pt2`` to an existing folder and return how far it is from the model, in words.

    Raises:
        ConfigError: a layer that the model does not have, or ``int8``.
        CheckpointError: weights that are no HuBERT's; a program that computes something else.
    """
    if settings.int8:
        raise ConfigError("--int8 goes with --format onnx", setting="--int8")
    encoder = encoder_of(source, settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            encoder,
            (torch.zeros(2, 16_000),),
            dynamic_shapes={"waveforms": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}},
        )
        torch.export.save(program, folder / PROGRAM_FILE)
        loaded = torch.export.load(folder / PROGRAM_FILE).module()
    if not settings.layers and (answers := answers_of(source)):
        answers.write(folder)

    def run(waveforms_BN: Floats) -> list[Floats]:
        with torch.inference_mode():
            return [layer_BTD.numpy() for layer_BTD in loaded(torch.from_numpy(waveforms_BN))]

    batches = [
        *made_batches(least_samples(source.config, FRAMES)),
        *(waveform_N[None] for waveform_N in settings.audio),
    ]
    return [must_be_equal(agreement(encoder, run, batches), batches)]
