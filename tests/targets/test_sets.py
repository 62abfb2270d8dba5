"""Kinds of features side by side: what each is of, labels of each as of it alone, speakers' figures that stay where they are."""

from pathlib import Path

import numpy as np
import pytest

from fedhubert.config.target_sets import KINDS, read_sets
from fedhubert.config.targets import TargetsConfig
from fedhubert.data.manifest import Manifest
from fedhubert.targets.features import fitting_features, parts_of
from fedhubert.targets.grouping import group
from fedhubert.targets.kmeans import targets_key
from fedhubert.targets.labels import assigned_labels
from fedhubert.targets.mfcc import MFCC, mfcc_features
from fedhubert.targets.sets import SPEECH_STD, SetFeatures, SpeakerScales, mfcc_source, of_speakers

from .test_targets import ROWS, manifest

__all__ = ["manifest"]  # a fixture


def by_kind(
    manifest: Manifest, rows: np.ndarray, row: int, workers: int = 0
) -> dict[str, np.ndarray]:
    source = of_speakers(SetFeatures(KINDS), manifest, rows)
    ((_, _, features),) = source.stream(manifest, [row], workers)
    return dict(zip(KINDS, parts_of(features, source.widths), strict=True))


def test_kinds_are_parts_of_mfcc_as_they_are_on_the_scale_of_speech_or_of_the_speaker(
    manifest: Manifest,
) -> None:
    whole = mfcc_features(manifest.waveform(3))
    theirs = [row for row in ROWS.tolist() if manifest.speakers[row] == manifest.speakers[3]]
    pooled = np.concatenate([mfcc_features(manifest.waveform(row)) for row in theirs])
    spread = np.maximum(pooled.std(axis=0), 0.05 * SPEECH_STD)
    scaled = {"": whole, "_z": whole / SPEECH_STD, "_speaker": (whole - pooled.mean(0)) / spread}
    parts = {"mfcc": slice(0, 39), "static": slice(0, 13), "deltas": slice(13, 39)}
    found = by_kind(manifest, ROWS, 3)
    assert set(found) == {f"{part}{scale}" for part in parts for scale in scaled}
    for part, columns in parts.items():
        for scale, features in scaled.items():
            np.testing.assert_allclose(
                found[f"{part}{scale}"], features[:, columns], rtol=2e-4, atol=2e-4
            )
    assert all(
        np.array_equal(one, by_kind(manifest, ROWS, 3, 2)[kind]) for kind, one in found.items()
    )


def test_a_speaker_is_standardised_by_two_minutes_of_its_own(manifest: Manifest) -> None:
    """Another speaker's audio, and what is beyond the sample, changes nothing; who speaks does, and
    the names of files on the site with it."""
    mine = np.array([row for row in ROWS if manifest.speakers[row] == manifest.speakers[0]])
    alone = by_kind(manifest, mine, 0)["mfcc_speaker"]
    assert np.array_equal(alone, by_kind(manifest, ROWS, 0)["mfcc_speaker"])
    anonymous = Manifest(
        manifest.root,
        manifest.paths,
        [""] * len(manifest),
        manifest.num_samples,
        manifest.sample_rates_hz,
        {},
    )
    assert not np.array_equal(alone, by_kind(anonymous, ROWS, 0)["mfcc_speaker"])
    keys = [SpeakerScales(one, ROWS).key for one in (manifest, manifest, anonymous)]
    assert keys[0] == keys[1] != keys[2]
    assert of_speakers(MFCC, manifest, ROWS) is MFCC
    assert of_speakers(SetFeatures(("static",)), manifest, ROWS).site_key == ""


def test_one_set_of_mfcc_is_what_there_was_before_sets() -> None:
    for sets in ((), ("mfcc",)):
        targets = TargetsConfig(sets=sets)
        assert mfcc_source(targets) is MFCC
        assert [(each.kind, each.num_clusters) for each in targets.label_sets] == [("mfcc", 500)]


def test_frames_are_grouped_alike_whatever_the_sets_are(manifest: Manifest) -> None:
    """Sums of two runs under other sets differ by whole groups."""
    groups = []
    for kinds in (("mfcc",), ("static", "mfcc"), ("deltas_z", "static_speaker")):
        source = of_speakers(SetFeatures(kinds), manifest, ROWS)
        sample = fitting_features(manifest, ROWS, 3000, 0, 0, source=source)
        assert sample.shape[1] == source.dimension
        means, sizes = group(sample, 20, source.grouped_by)
        groups.append((means[:, source.grouped_by], sizes))
        assert min(sizes) >= 20
    plain = fitting_features(manifest, ROWS, 3000, 0, 0)
    for means, sizes in groups:
        assert np.array_equal(means, group(plain, 20)[0])
        assert np.array_equal(sizes, groups[0][1])


def test_labels_of_several_sets_are_those_of_each_alone(manifest: Manifest) -> None:
    kinds = ("mfcc", "static_z", "deltas")
    source = SetFeatures(kinds)
    sample = fitting_features(manifest, ROWS, 4000, 0, 0, source=source)
    parts = parts_of(sample, source.widths)
    centroids = tuple(part[:: 40 * (1 + place)].copy() for place, part in enumerate(parts))
    store = assigned_labels(manifest, ROWS, centroids, source=source)
    assert store.ids.shape == (store.num_frames, 3) and store.num_clusters == len(centroids[0])
    for place, kind in enumerate(kinds):
        one = assigned_labels(
            manifest, ROWS, (centroids[place],), source=SetFeatures((kind,)), num_workers=1
        )
        for row in ROWS.tolist():
            assert np.array_equal(store.labels(row)[:, place], one.labels(row))
            assert place or np.array_equal(store.first(row), one.labels(row))
    counts = [
        found.counts(ROWS) for found in (store, assigned_labels(manifest, ROWS, centroids[:1]))
    ]
    assert np.array_equal(*counts)
    assert targets_key(centroids) != targets_key(centroids[:1]) != targets_key(centroids[::-1])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("mfcc", "mel"), "'mel' is none of"),
        (("mfcc", "static:1"), "fewer than 2"),
        (("mfcc:7",), "num_clusters=500"),
        (("mfcc", "static", "static:500"), "the same"),
        (("mfcc", "static:0x7"), "none of"),
    ],
)
def test_sets_that_are_none_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_sets(names, 500)


def test_speech_is_about_as_wide_as_the_scale_says(corpus: Path) -> None:
    """Of any speech: the kinds with ``_z`` have constants for what a common standardisation would
    take from the sites."""
    speech = Manifest.read(corpus / "manifest.csv")
    rows = np.random.default_rng(1).permutation(len(speech))[:60]
    heard = [mfcc_features(speech.waveform(row)) for row in rows.tolist()]
    ratio = np.concatenate(heard).std(axis=0) / SPEECH_STD
    assert 0.9 < np.median(ratio) < 1.15 and 0.7 < ratio.min() < ratio.max() < 1.4
