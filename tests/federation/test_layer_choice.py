"""``targets.source=layer:auto``: the layer of a first iteration's model that tells phones apart best, on audio that no client trains on."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedhubert.cli import main
from fedhubert.compose import compose
from fedhubert.config import Config, ModelConfig
from fedhubert.data.manifest import Manifest
from fedhubert.disk_cache import DiskCache
from fedhubert.errors import ConfigError, DataError, TargetsError
from fedhubert.evaluation.annotations import Alignment
from fedhubert.evaluation.items import Annotated
from fedhubert.evaluation.segments import aligned_segments
from fedhubert.evaluation.study import ProgressBar, StudySettings, run_study
from fedhubert.federation.phases.layer_choice import with_layer
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.models.hubert import build_hubert
from fedhubert.runs.store import RoundStore

RATE_HZ, SEGMENT = 16_000, 3_200


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """Two speakers, two files each, with six phones of 0.2 s: two tones in noise."""
    rng, root, lines = (
        np.random.default_rng(0),
        tmp_path / "held-out",
        ["path,start_sample,end_sample,phone"],
    )
    time_s = np.arange(SEGMENT) / RATE_HZ
    for speaker in (0, 1):
        (root / f"s{speaker}").mkdir(parents=True)
        for number in (0, 1):
            name, parts = f"s{speaker}/{number}.wav", []
            for place, phone in enumerate("abbaab"):
                tone = np.sin(
                    2 * np.pi * (300 if phone == "a" else 420) * (1 + 0.2 * speaker) * time_s
                )
                parts.append(0.1 * tone + 0.1 * rng.standard_normal(SEGMENT))
                lines.append(f"{name},{SEGMENT * place},{SEGMENT * (place + 1)},{phone}")
            soundfile.write(root / name, np.concatenate(parts), RATE_HZ)
    (root / "phones.csv").write_text("\n".join(lines) + "\n")
    command = ["prepare", "folder", "--root", str(root), "--out", str(root / "manifest.csv")]
    assert main([*command, "--speaker-pattern", "{speaker}/"]) == 0
    return root


@pytest.fixture
def first_run(tiny_model_config: ModelConfig, tmp_path: Path) -> Path:
    config = compose(["experiment=demo_fedavg", "data.manifest=m.csv"])
    model = tiny_model_config.model_copy(update={"num_layers": 4, "num_classes": 54})
    config = config.model_copy(update={"model": model})
    RoundStore(tmp_path / "first" / "checkpoints").save(
        1,
        build_hubert(model, 3).state_dict(),
        config=config.model_dump(mode="json"),
        federated_metrics={"round": 1},
        resume=None,
    )
    return tmp_path / "first"


def settings(first_run: Path, annotated: Path, *overrides: str) -> Config:
    return compose(
        [
            "experiment=demo_fedavg",
            "targets.source=layer:auto",
            f"targets.checkpoint={first_run}",
            f"targets.choice_manifest={annotated / 'manifest.csv'}",
            f"targets.choice_phones={annotated / 'phones.csv'}",
            *overrides,
        ]
    )


def test_it_is_the_layer_that_evaluate_finds_best(
    first_run: Path, annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDHUBERT_CACHE", str(tmp_path / "cache"))
    config = settings(first_run, annotated)
    chosen = with_layer(config)
    manifest = Manifest.read(annotated / "manifest.csv")
    segments = aligned_segments(Alignment.read(annotated / "phones.csv"), manifest)
    study = run_study(
        first_run,
        Annotated(manifest, segments=segments),
        StudySettings(references=False),
        DiskCache(tmp_path / "features", 10**8),
        lambda name, total: ProgressBar(),
    )
    rows = study["abx"]["mean-z"]["rows"]  # type: ignore[index]
    errors = {row["layer"]: row["across"]["error"] for row in rows if row["layer"]}
    assert len(errors) == 4 and len(set(errors.values())) > 1
    assert chosen.targets.source == f"layer:{min(errors, key=lambda layer: errors[layer])}"
    assert chosen == with_layer(chosen) == with_layer(config)
    assert config.targets.label_rate_hz == 50


def test_sites_are_told_the_layer_and_not_what_it_was_chosen_by(
    first_run: Path, annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDHUBERT_CACHE", str(tmp_path / "cache"))
    job = client_job(with_layer(settings(first_run, annotated, "data.manifest=m.csv")))
    assert job.targets.layer and str(annotated) not in job.model_dump_json()


def test_what_it_cannot_be_chosen_by_is_named(first_run: Path, annotated: Path) -> None:
    with pytest.raises(ConfigError, match="needs choice_manifest and choice_phones"):
        compose(
            [
                "experiment=demo_fedavg",
                "targets.source=layer:auto",
                f"targets.checkpoint={first_run}",
            ]
        )
    with pytest.raises(DataError, match="nowhere.csv"):
        with_layer(settings(first_run, annotated, "targets.choice_phones=nowhere.csv"))
    lines = (annotated / "phones.csv").read_text().splitlines()
    (annotated / "phones.csv").write_text("\n".join(lines[:2]) + "\n")
    with pytest.raises(TargetsError, match="ABX needs a speaker"):
        with_layer(settings(first_run, annotated))


def test_other_sources_stay_as_they_are() -> None:
    config = compose(["experiment=demo_fedavg"])
    assert with_layer(config) is config
