"""Partitions: everyone's utterances exactly once, from the seed, and clear refusals."""

from pathlib import Path

import numpy as np
import pytest

from fedhubert.config import PartitionConfig
from fedhubert.data.manifest import Manifest
from fedhubert.data.partition import partition_rows, split_rows
from fedhubert.errors import DataError


@pytest.fixture()
def manifest() -> Manifest:
    rng = np.random.default_rng(0)
    count = 240
    speakers = [f"s{i % 12}" for i in range(count)]
    languages = [["en", "fr", "it"][i % 3] for i in range(count)]
    samples = rng.integers(16000, 160000, count)
    rates = np.full(count, 16000, np.int32)
    return Manifest(
        Path("/audio"),
        [f"{i}.wav" for i in range(count)],
        speakers,
        samples,
        rates,
        {"language": languages},
    )


@pytest.mark.parametrize(
    "config",
    [
        PartitionConfig(),
        PartitionConfig(kind="speaker"),
        PartitionConfig(kind="column", column="language"),
        PartitionConfig(kind="dirichlet", column="language", alpha=0.3),
    ],
    ids=lambda config: config.kind,
)
def test_every_utterance_belongs_to_one_client_and_the_seed_decides(
    manifest: Manifest, config: PartitionConfig
) -> None:
    parts = partition_rows(manifest, config, 3, seed=1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(manifest)))
    assert all((np.diff(part) > 0).all() for part in parts)
    again = partition_rows(manifest, config, 3, seed=1)
    assert all(np.array_equal(left, right) for left, right in zip(parts, again, strict=True))
    if config.kind != "column":
        other = partition_rows(manifest, config, 3, seed=2)
        assert any(
            not np.array_equal(left, right) for left, right in zip(parts, other, strict=True)
        )


def test_speakers_stay_together_and_audio_is_balanced(manifest: Manifest) -> None:
    parts = partition_rows(manifest, PartitionConfig(kind="speaker"), 4, seed=0)
    owners = [{manifest.speakers[row] for row in part} for part in parts]
    assert sum(map(len, owners)) == len(set(manifest.speakers))
    seconds = [manifest.lengths()[part].sum() for part in parts]
    assert max(seconds) < 1.25 * min(seconds)


def test_a_small_alpha_is_less_even(manifest: Manifest) -> None:
    def unevenness(alpha: float) -> float:
        parts = partition_rows(
            manifest, PartitionConfig(kind="dirichlet", column="language", alpha=alpha), 3, seed=3
        )
        shares = [
            [
                sum(manifest.columns["language"][row] == name for row in part)
                for name in ("en", "fr", "it")
            ]
            for part in parts
        ]
        return float(np.std(shares))

    assert unevenness(0.2) > 2 * unevenness(100.0)


@pytest.mark.parametrize(
    ("config", "clients", "named"),
    [
        (PartitionConfig(kind="speaker"), 13, "13 clients but 12 speakers"),
        (PartitionConfig(kind="column", column="language"), 5, r"3 values \(en, fr, it\)"),
        (PartitionConfig(kind="column", column="accent"), 3, "no column `accent`"),
        (PartitionConfig(), 200, "it needs 2"),
        (
            PartitionConfig(kind="dirichlet", column="language", alpha=0.01),
            100,
            "data.partition.alpha",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    manifest: Manifest, config: PartitionConfig, clients: int, named: str
) -> None:
    with pytest.raises(DataError, match=named):
        partition_rows(manifest, config, clients, seed=0)


def test_splits_hold_out_a_fifth_and_at_least_one() -> None:
    rows = np.arange(100, 150)
    train, validation = split_rows(rows, 0.2, seed=0, partition=3)
    assert len(validation) == 10 and sorted([*train, *validation]) == rows.tolist()
    assert not np.array_equal(validation, split_rows(rows, 0.2, seed=0, partition=4)[1])
    train, validation = split_rows(rows[:2], 0.2, seed=0, partition=0)
    assert len(train) == len(validation) == 1
    with pytest.raises(DataError, match="client 7 has 1 utterances"):
        split_rows(rows[:1], 0.2, seed=0, partition=7)
