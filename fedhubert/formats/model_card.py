"""The README.md beside every export: what the model is, how it was trained, how well it did, what
it descends from, how to load it.

It holds figures and settings that describe the training. Paths, and names of data, stay out: a card
is made to be passed on.

Its front matter is that of the HuggingFace hub's model cards, in YAML: values are written as JSON,
which YAML takes as it is.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhubert import __version__
from fedhubert.errors import ConfigError
from fedhubert.files import sha256_of
from fedhubert.formats import PROGRAMS
from fedhubert.formats.hub import HUB
from fedhubert.formats.huggingface_heads import pipeline_of
from fedhubert.formats.source import HEADS_STAY, Source
from fedhubert.formats.sources import BUNDLE
from fedhubert.models.frames import num_frames

_LOADING = {
    "huggingface": """\
import torch
from transformers import HubertModel

model = HubertModel.from_pretrained("THIS_FOLDER").eval()
with torch.no_grad():
    hidden_states = model(waveforms, output_hidden_states=True).hidden_states  # waveforms: [batch, samples] at 16 kHz""",  # noqa: E501
    "s3prl": """\
import torch
from s3prl.upstream.hubert.hubconf import hubert_local  # s3prl 0.4.18

upstream = hubert_local("THIS_FOLDER/hubert_s3prl.pt").eval()
with torch.no_grad():
    hidden_states = upstream([waveform])["hidden_states"]  # waveform: [samples] at 16 kHz""",
    "torchaudio": """\
import runpy, torch

model = runpy.run_path("THIS_FOLDER/load.py")["load_model"]()
encoder = getattr(model, "wav2vec2", model)
with torch.no_grad():
    layers, _ = encoder.extract_features(waveforms)  # waveforms: [batch, samples] at 16 kHz""",
    "fairseq": """\
import fairseq

models, cfg, task = fairseq.checkpoint_utils.load_model_ensemble_and_task(["THIS_FOLDER/hubert_fairseq.pt"])""",  # noqa: E501
    "onnx": """\
import numpy as np
import onnxruntime  # or, for files of audio: python infer.py AUDIO...

session = onnxruntime.InferenceSession("THIS_FOLDER/model.onnx", providers=["CPUExecutionProvider"])
layers = session.run(None, {"waveforms": np.asarray(waveforms, np.float32)})  # waveforms: [batch, samples] at 16 kHz""",  # noqa: E501
    "torch_export": """\
import torch

program = torch.export.load("THIS_FOLDER/model.pt2").module()
layers = program(waveforms)  # waveforms: [batch, samples] at 16 kHz""",
}
_TUNED = """\
from transformers import pipeline

model = pipeline("{pipeline}", "THIS_FOLDER")
print(model("speech.wav"))  # or an array [samples] at 16 kHz"""
"""Of a fine-tuned model in HuggingFace's form."""
_LIBRARY = {
    "huggingface": "transformers",
    "s3prl": "s3prl",
    "torchaudio": "torchaudio",
    "fairseq": "fairseq",
    "onnx": "onnx",
    "torch_export": "pytorch",
}
_TRAINING = (
    "experiment",
    "seed",
    "task.name",
    "task.labels",
    "task.vocabulary",
    "task.head",
    "task.freeze_share",
    "targets.kind",
    "targets.source",
    "targets.num_clusters",
    "targets.sets",
    "targets.label_rate_hz",
    "federated.strategy",
    "federated.num_clients",
    "federated.num_rounds",
    "federated.client_fraction",
    "client.local_steps",
    "client.local_epochs",
    "client.optimizer",
    "client.lr",
    "client.precision",
)
_DATA = ("clients", "utterances", "train_audio_s", "validation_audio_s")
_FIGURES = ("train", "validation", "server_validation", "privacy")
_BUNDLES = {
    "HUBERT_BASE": "facebook/hubert-base-ls960",
    "HUBERT_LARGE": "facebook/hubert-large-ll60k",
    "HUBERT_XLARGE": "facebook/hubert-xlarge-ll60k",
}
"""torchaudio's bundles under their names on the hub."""
_PADDING_CHANGES = """\
Zeros behind a waveform change **all** of its frames: the norm of the first convolution takes its mean and variance
over the whole input, and no mask can undo that. Give waveforms one by one, or batches of equal length, as in
training."""  # noqa: E501
_PADDING_MASKED = """\
Zeros behind a waveform change no frame of it as long as {told} how long it is; without that attention sees the zeros."""  # noqa: E501
_PADDING_ROUNDED = """\
Zeros behind a waveform change its frames a little: fairseq's code, which s3prl has too, rounds the length to frames in
such a way that attention may see one frame behind the end. For the same values as alone give waveforms one by one."""  # noqa: E501
_PADDING_SEEN = """\
Attention sees zeros behind a waveform, and the program takes no mask. Give waveforms one by one, or batches of equal
length."""  # noqa: E501
_PADDING = {
    "huggingface": _PADDING_MASKED.format(told="`attention_mask` says"),
    "torchaudio": _PADDING_MASKED.format(told="`lengths` say"),
    "s3prl": _PADDING_ROUNDED,
    "fairseq": _PADDING_ROUNDED,
    **dict.fromkeys(PROGRAMS, _PADDING_SEEN),
}
"""What zeros do where the convolutions have layer norms, which see one frame at a time."""
_LICENSE, _LANGUAGE = re.compile(r"[a-z0-9][a-z0-9.\-]*"), re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*")


@dataclass(frozen=True)
class Publication:
    """What only the person who publishes a model can say of it, for the card's front matter.

    Attributes:
        license: The hub's identifier, such as ``cc-by-4.0``; None: not said.
        languages: ISO 639 codes of the speech.
        base_model: Name on the hub of what the run began from; None: as the run's ``init_from`` or
            ``task.teacher`` names it there.
        datasets: Names on the hub of what it was trained on.

    Raises:
        ConfigError: a license or a language that is none of the hub's, by its flag.
    """

    license: str | None = None
    languages: tuple[str, ...] = ()
    base_model: str | None = None
    datasets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.license is not None and not _LICENSE.fullmatch(self.license):
            raise ConfigError(
                f"--license {self.license!r} is no identifier of the hub, such as cc-by-4.0, "
                "apache-2.0, or other",
                setting="--license",
            )
        for language in self.languages:
            if not _LANGUAGE.fullmatch(language):
                raise ConfigError(
                    f"--language {language!r} is no ISO 639 code, such as en, yue or pt-BR",
                    setting="--language",
                )


def write_model_card(
    source: Source,
    format_name: str,
    folder: Path,
    publication: Publication,
    agreement: Sequence[str] = (),
) -> None:
    """Write ``README.md`` to a folder that already holds the export's other files; ``agreement``:
    how far a program is from the model, in words."""
    lines = (
        *_front_matter(source, format_name, publication),
        *_lines(source, format_name, folder, agreement),
    )
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _front_matter(source: Source, format_name: str, said: Publication) -> Iterator[str]:
    """What huggingface_hub's ``ModelCard.load`` reads; a line for each thing that is known."""
    fields = {
        "library_name": _LIBRARY[format_name],
        "pipeline_tag": pipeline_of(source.heads, format_name) or "feature-extraction",
        "license": said.license,
        "language": list(said.languages),
        "base_model": said.base_model or _base_model(source.run),
        "datasets": list(said.datasets),
        "tags": ["speech", "hubert", "self-supervised", "federated-learning"],
    }
    yield "---"
    yield from (f"{name}: {json.dumps(value)}" for name, value in fields.items() if value)
    yield "---"


def _base_model(run: Mapping[str, Any]) -> str | None:
    """The hub's name of what a run began from, or learned from, if it named one; paths stay out."""
    for key in ("init_from", "task.teacher"):
        named = str(_dotted(run, key) or "")
        if named.startswith(HUB):
            return named.removeprefix(HUB).partition("@")[0]
        if named.startswith(BUNDLE):
            return _BUNDLES.get(named.removeprefix(BUNDLE))
    return None


def _lines(
    source: Source, format_name: str, folder: Path, agreement: Sequence[str]
) -> Iterator[str]:
    config, metrics = source.config, source.metrics
    yield from (f"# {config.name}, round {source.round}", "")
    yield (
        f"A HuBERT speech encoder, trained with fedhubert {__version__}, in the {format_name} "
        "format. 16 kHz waveforms go in as they are, without"
    )
    yield f"normalisation; one second gives {num_frames(16000, config.conv_layers)} frames."
    yield from () if source.learned.shares_head else ("", HEADS_STAY)
    pipeline = pipeline_of(source.heads, format_name)
    loading = _TUNED.format(pipeline=pipeline) if pipeline else _LOADING[format_name]
    yield from ("", "## Loading", "", "```python", *loading.splitlines(), "```", "")
    if agreement:
        yield from ("Compared with the model when it was written:", "")
        yield from (*(f"- {words}" for words in agreement), "")
    whole = config.conv_norm == "group_norm"
    yield from ("## Padding", "", _PADDING_CHANGES if whole else _PADDING[format_name], "")
    yield from _table("Model", _model_rows(source))
    yield from _table(
        "Training",
        [row for name in _TRAINING for row in _rows(name, _dotted(source.run, name))],
    )
    yield from _table("Data", _data_rows(metrics))
    yield from _table(
        f"Figures of round {source.round}",
        [row for part in _FIGURES for row in _rows(part, metrics.get(part))],
    )
    yield from _table("Lineage", list(_lineage_rows(metrics.get("lineage") or [])))
    yield from _table(
        "SHA-256",
        [
            (file.name, sha256_of(file))
            for file in sorted(folder.iterdir())
            if file.name != "README.md"
        ],
    )


def _model_rows(source: Source) -> list[tuple[str, Any]]:
    names = (
        "embed_dim",
        "num_layers",
        "num_heads",
        "ffn_dim",
        "conv_norm",
        "layer_norm_first",
        "pos_conv_kernel",
        "pos_conv_groups",
    )
    encoder = sum(
        tensor.numel() for name, tensor in source.state.items() if name.startswith("wav2vec2.")
    )
    convolutions = ", ".join("x".join(map(str, layer)) for layer in source.config.conv_layers)
    return [
        ("encoder parameters", f"{encoder:,}"),
        *((name, getattr(source.config, name)) for name in names),
        ("convolutions (channels x kernel x stride)", convolutions),
    ]


def _data_rows(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Counts alone."""
    data = metrics.get("data") or {}
    rows = [(name, data[name]) for name in _DATA if name in data]
    return rows or (
        [("clients in the last round", metrics["clients"])]
        if isinstance(metrics.get("clients"), int)
        else []
    )


def _lineage_rows(lineage: list[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    """What the run began from, in order. Of settings that a fork changed the names alone: the
    values can be paths."""
    for number, entry in enumerate(lineage, start=1):
        yield from _rows(str(number), {**entry, "changed": list(entry.get("changed", ()))})


def _rows(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Numbers, texts and lists of texts under their dotted names."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _rows(f"{name}.{key}", item)
    elif isinstance(value, list):
        if value:
            yield name, ", ".join(map(str, value))
    elif value is not None:
        yield name, value


def _dotted(values: Mapping[str, Any], name: str) -> Any:
    value: Any = values
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _table(title: str, rows: list[tuple[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    yield from (f"## {title}", "", "| | |", "|---|---|")
    for name, value in rows:
        shown = (
            f"{value:.4g}"
            if isinstance(value, float)
            else str(value).replace("|", r"\|").replace("\n", " ")
        )
        yield f"| {name} | {shown} |"
    yield ""
