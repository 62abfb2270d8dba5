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
from fedhubert.formats.answers import Answers, answers_of
from fedhubert.formats.card_words import LOADING, PADDING, PADDING_CHANGES, SCORES, TUNED
from fedhubert.formats.hub import HUB
from fedhubert.formats.huggingface_heads import head_of, pipeline_of
from fedhubert.formats.source import HEADS_STAY, Source
from fedhubert.formats.sources import BUNDLE
from fedhubert.models.frames import num_frames

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
        *_front_matter(source, format_name, folder, publication),
        *_lines(source, format_name, folder, agreement),
    )
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _front_matter(
    source: Source, format_name: str, folder: Path, said: Publication
) -> Iterator[str]:
    """What huggingface_hub's ``ModelCard.load`` reads; a line for each thing that is known."""
    head = head_of(source.heads) if _answers(source, format_name, folder) else None
    pipeline = head.pipeline if head else pipeline_of(source.heads, format_name)
    fields = {
        "library_name": _LIBRARY[format_name],
        "pipeline_tag": pipeline or "feature-extraction",
        "license": said.license,
        "language": list(said.languages),
        "base_model": said.base_model or _base_model(source.run),
        "datasets": list(said.datasets),
        "tags": ["speech", "hubert", "self-supervised", "federated-learning"],
    }
    yield "---"
    yield from (f"{name}: {json.dumps(value)}" for name, value in fields.items() if value)
    yield "---"


def _answers(source: Source, format_name: str, folder: Path) -> Answers | None:
    """Return what a program's scores stand for; None where it gives features alone."""
    answers = answers_of(source) if format_name in SCORES else None
    return answers if answers is not None and (folder / answers.file).exists() else None


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
    answers = _answers(source, format_name, folder)
    loading = SCORES[format_name] if answers else LOADING[format_name]
    if pipeline:
        loading = TUNED.format(pipeline=pipeline)
    yield from ("", "## Loading", "", "```python", *loading.splitlines(), "```", "")
    if answers:
        yield from (f"`{answers.file}` says what the scores stand for.", "")
    if agreement:
        yield from ("Compared with the model when it was written:", "")
        yield from (*(f"- {words}" for words in agreement), "")
    whole = config.conv_norm == "group_norm"
    yield from ("## Padding", "", PADDING_CHANGES if whole else PADDING[format_name], "")
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
