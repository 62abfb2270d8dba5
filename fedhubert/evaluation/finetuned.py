"""How a fine-tuned model does on annotated audio: word and character error rates, or accuracy and
macro F1, with intervals by bootstrap over speakers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.data.annotated import annotation_column
from fedhubert.data.batching import RECEPTIVE_SAMPLES, Batch, Utterance
from fedhubert.data.manifest import Manifest
from fedhubert.errors import CheckpointError, DataError
from fedhubert.evaluation.resampling import interval, speaker_draws
from fedhubert.formats.own_head import with_head
from fedhubert.formats.round_file import find_checkpoint, load_checkpoint
from fedhubert.formats.source import Source
from fedhubert.models.frames import num_frames
from fedhubert.models.hubert import HubertModel
from fedhubert.objectives.spec import ObjectiveSpec, spec_of
from fedhubert.objectives.utterances import UtteranceSpec
from fedhubert.training.local import evaluate

FIGURES = ("wer", "cer", "accuracy", "macro_f1")
"""What is told with an interval, of what the objective reports."""


@dataclass(frozen=True)
class Figure:
    """A figure over all utterances, and the middle 95 % of it over resampled speakers; None where
    there is a single one."""

    value: float
    interval: list[float] | None


@dataclass(frozen=True)
class TunedScore:
    """Of a fine-tuned model.

    Attributes:
        utterances, left_out: Scored; and those without a label, or with one that was not trained.
        loss: Nats, as in training.
        figures: By name.
        confusion: Counts [said][heard] of ``labels``; None without labels.
    """

    task: str
    utterances: int
    left_out: int
    speakers: int
    loss: float
    figures: Mapping[str, Figure]
    labels: tuple[str, ...] = ()
    confusion: Sequence[Sequence[int]] | None = None

    def as_plain(self) -> dict[str, object]:
        """Return it as JSON's values."""
        return asdict(self)


def finetuned_score(
    source: Path,
    manifest: Manifest,
    key: str,
    column: str,
    device: torch.device,
    seed: int,
    head: Path | None = None,
) -> TunedScore:
    """Score the model of a run on all utterances of ``manifest`` that have a label, each alone.

    Args:
        source: A run's folder or a round checkpoint.
        key, column: ``text_column`` or ``label_column``, and the manifest's column.
        head: A client's own, as its site has kept it (``task.head=personal``).

    Raises:
        CheckpointError: it cannot be read, or was not trained on such labels.
        DataError: the manifest has no such column, or nothing in it.
        ConfigError: a package is missing.
    """
    path = find_checkpoint(source)
    saved = load_checkpoint(path)
    if head is not None:
        saved = with_head(saved, head)
    read = Source.of(saved)
    spec = spec_of(read.learned)
    if not isinstance(spec, UtteranceSpec) or (spec.task.annotation or ("",))[0] != key:
        raise CheckpointError(
            f"{path} was trained by task={read.learned.name}, which has no `{key}`",
            setting=f"--{key.replace('_', '-')}",
        )
    if not read.learned.shares_head:
        raise CheckpointError(
            f"{path} has the encoder alone: with task.head=personal the heads stay at their sites, "
            "whose held-out figures are in the run's metrics.jsonl; a site scores its own by "
            "--head STATE_DIR/runs/RUN/partition_N/round_R.pt",
            setting="task.head",
        )
    model = spec.build_model(read.config, 0)
    model.load_state_dict(saved["model"])
    said = [spec.said(value) for value in annotation_column(manifest, key, column)]
    lengths = manifest.lengths()
    rows = [row for row, labels in enumerate(said) if labels and lengths[row] >= RECEPTIVE_SAMPLES]
    if not rows:
        raise DataError(
            f"no utterance of the manifest has anything in the column {column} that the model was "
            "trained on",
            setting=f"--{key.replace('_', '-')}",
        )
    names = spec.sum_names
    sums_RN = np.array(
        [
            [result[name] for name in names]
            for result in _alone(spec, model, manifest, said, rows, device)
        ]
    )
    speakers = [manifest.speakers[row] for row in rows]
    labels = getattr(spec.task, "labels", ())
    metrics = spec.metrics(dict(zip(names, sums_RN.sum(0).tolist(), strict=True)))
    return TunedScore(
        spec.task.name,
        len(rows),
        len(manifest) - len(rows),
        len(set(speakers)),
        float(str(metrics["loss"])),
        _with_intervals(spec, metrics, sums_RN, speakers, seed),
        tuple(labels),
        metrics.get("confusion"),
    )


def _alone(
    spec: UtteranceSpec,
    model: HubertModel,
    manifest: Manifest,
    said: Sequence[Sequence[int]],
    rows: Sequence[int],
    device: torch.device,
) -> Iterator[Mapping[str, float]]:
    """Yield the sums of each utterance."""
    objective = spec.loss()
    for row in rows:
        waveform = torch.from_numpy(manifest.waveform(row))
        mask = torch.zeros(1, num_frames(len(waveform)), dtype=torch.bool)
        utterance = Utterance(len(waveform), tuple(said[row]))
        batch = Batch(waveform[None], None, mask, row, None, (utterance,))
        yield evaluate(
            model, iter([batch]), task=spec.task, device=device, objective=objective
        ).metrics


def _with_intervals(
    spec: ObjectiveSpec,
    metrics: Mapping[str, object],
    sums_RN: npt.NDArray[np.float64],
    speakers: Sequence[str],
    seed: int,
) -> dict[str, Figure]:
    """Return the figures that there are, each with its interval: the same figures of resampled
    speakers' sums."""
    names, numbers = np.unique(np.asarray(speakers), return_inverse=True)
    of_speakers_SN = np.zeros((len(names), sums_RN.shape[1]))
    np.add.at(of_speakers_SN, numbers, sums_RN)
    resampled: list[Mapping[str, object]] = []
    if len(names) > 1:
        for sums in (speaker_draws(len(names), seed) @ of_speakers_SN).tolist():
            resampled.append(spec.metrics(dict(zip(spec.sum_names, sums, strict=True))))
    return {
        name: Figure(
            float(str(metrics[name])),
            interval([float(str(each[name])) for each in resampled]) if resampled else None,
        )
        for name in FIGURES
        if name in metrics
    }
