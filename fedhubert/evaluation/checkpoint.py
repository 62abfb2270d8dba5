"""A checkpoint's figures on annotated audio: what is asked for, and the whole of the answer."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from fedhubert import live
from fedhubert.data.corpora import cache_folder
from fedhubert.data.manifest import Manifest
from fedhubert.disk_cache import DiskCache
from fedhubert.errors import ConfigError
from fedhubert.evaluation.annotations import Alignment, Labels
from fedhubert.evaluation.items import Annotated
from fedhubert.evaluation.progress import say_progress
from fedhubert.evaluation.segments import Segments, aligned_segments, read_items
from fedhubert.evaluation.sklearn_extra import require_sklearn
from fedhubert.evaluation.study import StudySettings, masked_section, run_study


@dataclass(frozen=True)
class Audio:
    """Audio and where its annotations are: labels of utterances, an alignment of phones, a
    ZeroSpeech item file; ``root`` is where the manifest's paths start.

    ``by_context``: whether ABX compares phones with the same neighbours; None: those of an item
    file only.
    """

    manifest: Path
    root: Path | None = None
    labels: Path | None = None
    phones: Path | None = None
    item: Path | None = None
    by_context: bool | None = None

    def read(self, *, segments: bool = True) -> Annotated:
        """Read everything, or all but ``segments``; raises :class:`~fedhubert.errors.DataError` for
        a file that cannot be used."""
        manifest = Manifest.read(self.manifest, self.root)
        alignment = Alignment.read(self.phones) if self.phones else None
        return Annotated(
            manifest,
            Labels.read(self.labels) if self.labels else Labels({}),
            alignment,
            self._segments(manifest, alignment) if segments else None,
        )

    def _segments(self, manifest: Manifest, alignment: Alignment | None) -> Segments | None:
        if self.item is not None:
            return read_items(self.item, manifest, by_context=self.by_context is not False)
        if alignment is None:
            return None
        return aligned_segments(alignment, manifest, by_context=bool(self.by_context))


@dataclass(frozen=True)
class Probing:
    """What to evaluate a checkpoint on.

    Attributes:
        audio: What is scored.
        settings: How much to compute; no ``probes``: every task of the labels file.
        fitted_on: Other audio to fit utterance probes on; None: cross-validation.
        cache_gb: Size of the cache of features.
        threads: See :func:`threads`.
    """

    audio: Audio
    settings: StudySettings
    fitted_on: Audio | None = None
    cache_gb: float = 2.0
    threads: int = 0


def evaluate_checkpoint(source: str, probing: Probing) -> dict[str, object]:
    """Return all figures of a checkpoint, and the seconds that they took; raises
    :class:`~fedhubert.errors.FedhubertError`."""
    clock, cpu = time.perf_counter(), time.process_time()
    with threads(probing.threads) as count:
        results = _evaluated(source, probing)
    spent = {"clock": time.perf_counter() - clock, "cpu": time.process_time() - cpu}
    return {**results, "seconds": {**spent, "threads": count}}


@contextmanager
def threads(count: int) -> Iterator[int]:
    """Have torch compute with so many threads, 0: as many as this process has processors; gives
    their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or processors())
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def processors() -> int:
    """Return how many processors this process may run on."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _evaluated(source: str, probing: Probing) -> dict[str, object]:
    live.doing("reading the audio's annotations")
    evaluated = probing.audio.read(segments=bool(probing.settings.abx.measures))
    fitted_on = probing.fitted_on.read(segments=False) if probing.fitted_on else None
    settings = probing.settings.with_tasks(evaluated.labels)
    if settings.probes or settings.purities or evaluated.alignment:
        require_sklearn()
    cache = DiskCache(cache_folder() / "evaluation", round(probing.cache_gb * 1e9))
    live.doing("masked prediction")
    masked = masked_section(Path(source), evaluated.manifest, settings.device)
    study = run_study(source, evaluated, settings, cache, say_progress, fitted_on)
    return {
        "manifest": str(probing.audio.manifest),
        "utterances": len(evaluated.manifest),
        "masked": masked,
        **study,
    }


def write_results(path: Path, results: Mapping[str, object]) -> None:
    """Write JSON; raises :class:`ConfigError` when the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}; choose another --out", setting="--out"
        ) from None
