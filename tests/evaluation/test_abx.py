"""ABX against triples counted one by one, warping against a table filled cell by cell, and segments of files."""

import argparse
import itertools
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fedhubert.baselines.compare import best_layers
from fedhubert.cli import main
from fedhubert.commands.evaluate import add_arguments, probing_of
from fedhubert.data.manifest import Manifest
from fedhubert.disk_cache import DiskCache
from fedhubert.errors import DataError
from fedhubert.evaluation.abx import Kinds, score, summarise
from fedhubert.evaluation.abx_section import MEASURES, AbxSection, AbxSettings
from fedhubert.evaluation.annotations import Alignment
from fedhubert.evaluation.distances import dtw_distance, mean_distance, warped
from fedhubert.evaluation.encoders import Encoder
from fedhubert.evaluation.segments import aligned_segments, read_items

from .test_evaluate import Evaluate, checkpoint, evaluate, manifest  # noqa: F401


def on_a_circle(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(np.array(degrees))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def kinds_of(phones: str, speakers: str, contexts: str | None = None) -> Kinds:
    return Kinds(
        *(
            np.array([ord(letter) for letter in letters])
            for letters in (phones, contexts or "." * len(phones), speakers)
        )
    )


def test_within_and_across_by_hand() -> None:
    """Speaker 1 says a at 0 and 10 degrees, b at 4; speaker 2 says a at 6, b at 90."""
    kinds = kinds_of("aabab", "11122")
    within, across = score(kinds, mean_distance(on_a_circle(0, 10, 4, 6, 90)))
    # X = 0: A = 10, B = 4; X = 10: A = 0, B = 4; B is nearer both times. No second b for X = b.
    assert within.errors_C.tolist() == [1.0] and summarise(within, 0).interval is None  # type: ignore[union-attr]
    cells = {
        (chr(cells[0]), chr(cells[2])): cells[4]
        for cells in zip(
            across.phones_a_C,
            across.phones_b_C,
            across.speakers_C,
            across.speakers_x_C,
            across.errors_C,
            strict=True,
        )
    }
    # A, B of 1: X = 6: B = 4 is nearer than A = 0 and than A = 10; X = 90: A = 4 is farther than B = 10, nearer than B = 0
    # A, B of 2: X = 0 and 10: A = 6, B = 90, never wrong; X = 4: A = 90, B = 6, always wrong
    assert cells == {("a", "1"): 1.0, ("b", "1"): 0.5, ("a", "2"): 0.0, ("b", "2"): 1.0}
    found = summarise(across, 0)
    assert found is not None and found.error == pytest.approx((0.5 + 0.75) / 2)
    assert (found.cells, found.pairs) == (4, 2)


def counted(kinds: Kinds, distances: np.ndarray, across: bool) -> float:
    """The mean error, triple by triple: over contexts and X's speakers, then A's speakers, then pairs of phones."""
    cells: dict[tuple[int, ...], list[float]] = {}
    numbers = range(len(kinds.phones_N))
    for a, b, x in itertools.product(numbers, numbers, numbers):
        phone_a, phone_b, phone_x = kinds.phones_N[[a, b, x]].tolist()
        speaker_a, speaker_b, speaker_x = kinds.speakers_N[[a, b, x]].tolist()
        alike = len(set(kinds.contexts_N[[a, b, x]].tolist())) == 1 and speaker_a == speaker_b
        if not alike or phone_a != phone_x or phone_a == phone_b or a == x:
            continue
        if (speaker_a != speaker_x) != across:
            continue
        wrong = 0.5 * (1.0 + np.sign(distances[x, a] - distances[x, b]))
        key = (phone_a, phone_b, speaker_a, int(kinds.contexts_N[a]), speaker_x)
        cells.setdefault(key, []).append(float(wrong))
    for depth in (3, 2, 0):  # without contexts and X's speakers, without A's, without pairs
        merged: dict[tuple[int, ...], list[float]] = {}
        for key, errors in cells.items():
            merged.setdefault(key[:depth], []).append(float(np.mean(errors)))
        cells = merged
    return float(np.mean(cells[()]))


@pytest.mark.parametrize(("contexts", "at_once"), [(1, 4_000_000), (3, 50)])
def test_every_triple_counts_as_often_as_it_should(
    contexts: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedhubert.evaluation.abx._AT_ONCE", at_once)
    rng = np.random.default_rng(contexts)
    kinds = Kinds(
        rng.integers(3, size=36), rng.integers(contexts, size=36), rng.integers(3, size=36)
    )
    features = rng.integers(-2, 3, (36, 2)).astype(np.float32)  # with ties
    distance = mean_distance(features)
    every = distance(np.arange(36), np.arange(36))
    for cells, across in zip(score(kinds, distance), (False, True), strict=True):
        found = summarise(cells, 0)
        assert found is not None and found.error == pytest.approx(counted(kinds, every, across))
        low, high = found.interval or (1.0, 0.0)
        assert low < found.error < high


def test_vectors_that_know_the_phone_make_no_error_and_noise_half() -> None:
    rng = np.random.default_rng(0)
    kinds = Kinds(rng.integers(5, size=300), np.zeros(300, np.int64), rng.integers(4, size=300))
    knows = np.eye(5, dtype=np.float32)[kinds.phones_N]
    noise = rng.standard_normal((300, 20)).astype(np.float32)
    for features, error in ((knows, 0.0), (noise, 0.5)):
        for cells in score(kinds, mean_distance(features)):
            found = summarise(cells, 0)
            assert found is not None and found.error == pytest.approx(error, abs=0.03)


def test_resampled_speakers_by_hand() -> None:
    """Two speakers with errors 0 and 1: a resample has one of them, or both."""
    kinds = kinds_of("aabaab", "111222")
    within, _ = score(kinds, mean_distance(on_a_circle(0, 1, 90, 0, 90, 45)))
    found = summarise(within, 0)
    assert found is not None and found.error == pytest.approx(0.5)
    assert found.interval == [0.0, 1.0] and summarise(within, 0) == found


def test_at_most_so_many_of_each_phone_context_and_speaker() -> None:
    rng = np.random.default_rng(0)
    kinds = Kinds(rng.integers(3, size=200), rng.integers(2, size=200), rng.integers(2, size=200))
    drawn = kinds.drawn(7, seed=0)
    groups = np.stack([kinds.phones_N, kinds.contexts_N, kinds.speakers_N])[:, drawn]
    assert np.unique(groups, axis=1, return_counts=True)[1].tolist() == [7] * 12
    assert np.array_equal(drawn, np.unique(drawn)) and not np.array_equal(drawn, kinds.drawn(7, 1))
    assert np.array_equal(kinds.drawn(0, 0), np.arange(200))
    assert np.array_equal(kinds.drawn(1000, 0), np.arange(200))


def warped_by_table(costs: np.ndarray) -> float:
    """Fill the table, then walk back from its end."""
    table = np.full(np.array(costs.shape) + 1, np.inf, np.float32)
    table[0, 0] = 0.0
    for i, j in np.ndindex(costs.shape):
        least = np.float32(min(table[i, j + 1], table[i, j], table[i + 1, j]))
        table[i + 1, j + 1] = costs[i, j] + least
    i, j, steps = (*costs.shape, 1)
    while (i, j) != (1, 1):
        both, y_only, x_only = table[i - 1, j - 1], table[i, j - 1], table[i - 1, j]
        if both <= y_only and both <= x_only:
            i, j = i - 1, j - 1
        elif y_only <= x_only:
            j -= 1
        else:
            i -= 1
        steps += 1
    return float(table[-1, -1] / np.float32(steps))


def test_warping_is_that_of_the_table() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, (2, 200))
    # few values: many paths are equal
    costs = rng.integers(0, 4, (8, 8, 200)).astype(np.float32) / 4
    found = warped(costs, lengths[0], lengths[1])
    expected = [
        warped_by_table(costs[:x, :y, pair]) for pair, (x, y) in enumerate(lengths.T.tolist())
    ]
    assert found.tolist() == expected


def test_segments_of_any_lengths_are_warped_together_as_alone() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 30, 230)  # more frames than are taken at once
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    frames = rng.standard_normal((int(bounds[-1]), 5)).astype(np.float32)
    distance = dtw_distance(frames, bounds)
    xs, ys = rng.permutation(230)[:120], rng.permutation(230)
    found = distance(xs, ys)
    for place_x, place_y in rng.integers(120, size=(40, 2)).tolist():
        x, y = (frames[bounds[n] : bounds[n + 1]] for n in (xs[place_x], ys[place_y]))
        norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)
        angles = np.arccos(np.clip(x @ y.T / norms, -1, 1)) / math.pi
        assert found[place_x, place_y] == pytest.approx(
            warped_by_table(angles.astype(np.float32)), abs=1e-5
        )
    # a segment against itself; one frame each: their angle
    assert distance(xs[:1], xs[:1])[0, 0] == pytest.approx(0.0, abs=1e-3)


# ---------------------------------------------------------------------------------------------------- from files


@pytest.fixture
def listed(manifest: Path, tone_folder: Path) -> Manifest:  # noqa: F811
    return Manifest.read(manifest, tone_folder)


def test_an_alignments_segments_have_the_frames_of_its_phones(
    listed: Manifest,
    tmp_path: Path,
) -> None:
    lines = [
        f"{path},0,2000,SIL\n{path},2000,5000,a\n{path},5010,5050,b\n{path},6000,8000,c\n"
        for path in listed.paths
    ]
    phones = tmp_path / "phones.csv"
    phones.write_text("path,start_sample,end_sample,phone\n" + "".join(lines))
    alignment = Alignment.read(phones)
    found = aligned_segments(alignment, listed, by_context=True)
    labelled = alignment.frames(listed)
    for row in range(len(listed)):
        places, names = labelled[row]
        here = np.flatnonzero(found.rows_N == row)
        assert len(here) == 2  # b is too short for a frame, silence is no phone
        for number, phone in zip(here, "ac", strict=True):
            inside = [place for place, name in zip(places, names, strict=True) if name == phone]
            assert inside == list(range(found.starts_N[number], found.ends_N[number]))
    assert (
        len(np.unique(found.kinds.contexts_N)) == 2 and len(np.unique(found.kinds.speakers_N)) == 3
    )
    assert len(np.unique(aligned_segments(alignment, listed).kinds.contexts_N)) == 1


def without_suffix(listed: Manifest) -> str:
    return listed.paths[0].removesuffix(Path(listed.paths[0]).suffix)


def item_file(path: Path, lines: list[str]) -> Path:
    head = "#file onset offset #phone prev-phone next-phone speaker"
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def test_an_item_file_names_audio_with_or_without_its_folder(
    listed: Manifest,
    tmp_path: Path,
) -> None:
    whole = without_suffix(listed)
    lines = [
        f"{whole} 0.0125 0.0325 a x y s1",  # the centre of frame 0 is at 0.0125 s, of frame 1 at 0.0325 s
        f"{Path(whole).name} 0.1 0.2 b x y s2",
        "elsewhere 0.1 0.2 b x y s2",
    ]
    found = read_items(item_file(tmp_path / "t.item", lines), listed)
    assert found.rows_N.tolist() == [0, 0] and found.by_context
    assert list(zip(found.starts_N, found.ends_N, strict=True)) == [(0, 1), (5, 10)]
    assert found.kinds.speakers_N.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{} 0.2 0.1 a x y s"], "line 2: not a phone"),
        (["{} nan 0.1 a x y s"], "line 2: not a phone"),
        (["{} 0.1 0.2 a x y"], "line 2: another number of fields"),
        (["{} 0.1 0.2 a x y s more"], "line 2: another number of fields"),
        (["nobody 0.1 0.2 a x y s"], "do the paths agree"),
        (["{} 900 901 a x y s"], "do the paths agree"),
    ],
)
def test_bad_item_files_are_named(
    lines: list[str],
    message: str,
    listed: Manifest,
    tmp_path: Path,
) -> None:
    whole = without_suffix(listed)
    path = item_file(tmp_path / "t.item", [line.format(whole) for line in lines])
    with pytest.raises(DataError, match=message) as error:
        read_items(path, listed)
    assert error.value.setting == "--item"


def test_one_phone_cannot_be_told_apart(listed: Manifest, tmp_path: Path) -> None:
    whole, cache = without_suffix(listed), DiskCache(tmp_path / "cache", 1 << 30)
    lines = [f"{whole} 0.1 0.2 a x y s", f"{whole} 0.3 0.4 a x y s"]
    for more, enough in (([], False), ([f"{whole} 0.5 0.6 b x y s"], True)):
        segments = read_items(item_file(tmp_path / "t.item", [*lines, *more]), listed)
        assert AbxSection(segments, listed, AbxSettings(), cache).has_triples == enough


def test_layers_are_taken_in_as_many_passes_as_memory_wants(
    listed: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alignment = Alignment({path: [(0, 3000, "a"), (3000, 7000, "b")] for path in listed.paths})
    segments = aligned_segments(alignment, listed)
    settings = AbxSettings(MEASURES, most=0)

    def layers(waveform: np.ndarray) -> list[np.ndarray]:
        count = (len(waveform) - 400) // 320 + 1
        frames = np.lib.stride_tricks.sliding_window_view(waveform, 400)[::320][:count]
        return [np.ascontiguousarray(frames[:, layer : layer + 40]) for layer in (0, 60, 120)]

    encoder, rows, ticks = Encoder("toy", "k", (0, 1, 2), layers), [], 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1

    for limit in (2**30, 1):
        monkeypatch.setattr("fedhubert.evaluation.abx_section._BYTES", limit)
        section = AbxSection(segments, listed, settings, DiskCache(tmp_path / "cache", 1 << 30))
        rows.append(list(section.measured(encoder, (0, 1, 2), tick)))
    assert rows[0] == rows[1] and len(rows[0]) == 12 and ticks == 2 * len(listed)


def test_evaluate_prints_writes_and_compares_it(
    evaluate: Evaluate,  # noqa: F811
    manifest: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    phones = tmp_path / "phones.csv"
    lines = [
        f"{path},{start},{start + 1500},{'low' if start % 2000 else 'high'}\n"
        for path in Manifest.read(manifest).paths
        for start in range(0, 8000, 2500)
    ]
    phones.write_text("path,start_sample,end_sample,phone\n" + "".join(lines))
    flags = ["--phones", str(phones), "--clusters", "0", "--layers", "0,2"]
    found = evaluate(
        *flags, "--abx", "mean,dtw-z", "--pooling", "mean,thirds", "--probe", "speaker"
    )
    assert set(found["abx"]) == {"mean", "dtw-z"}
    section = found["abx"]["mean"]
    assert (section["speakers"], section["phones"], section["context"]) == (3, 2, "any")
    assert [row["encoder"] for row in section["rows"]] == ["mfcc"] + ["random init"] * 2 + [
        "checkpoint"
    ] * 2
    assert all(
        0 <= row[where]["error"] <= 1 for row in section["rows"] for where in ("within", "across")
    )
    assert (
        "ABX error: dtw-z (48 of 48 segments, 2 phones, 3 speakers, any context)"
        in capsys.readouterr().out
    )
    best = best_layers(found)
    assert best["ABX across, mean"]["checkpoint"] == min(
        row["across"]["error"] for row in section["rows"] if row["encoder"] == "checkpoint"
    )
    assert {"speaker", "speaker (thirds)"} <= set(best)
    assert all(row["interval"] for row in found["probes"]["phone"]["rows"])


def test_flags_say_how_segments_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--checkpoint", "c", "--manifest", "m"]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    usual = probing_of(parser.parse_args(given))
    assert usual.settings.abx == AbxSettings() and usual.audio.by_context is None
    asked = [*given, "--abx", "none", "--item", "t.item", "--abx-context", "any"]
    probing = probing_of(parser.parse_args(asked))
    assert probing.settings.abx.measures == () and probing.audio.by_context is False
    for flag, value in (("--abx", "mean,cosine"), ("--pooling", "max")):
        assert main(["evaluate", *given, flag, value]) == 1
        assert f"{flag} '{value}': " in capsys.readouterr().err


FASTABX = """
import sys
import torch
from fastabx import Dataset, Score, Task
from fastabx.pooling import pool_dataset
folder, pooled, across, context = sys.argv[1], *(name == "yes" for name in sys.argv[2:])
data = Dataset.from_item(folder + "/t.item", folder, 50)
data = pool_dataset(data, "mean") if pooled else data
near = ["prev-phone", "next-phone"] if context else []
by = near if across else [*near, "speaker"]
task = Task(data, on="#phone", by=by or None, across=["speaker"] if across else None)
levels = [("next-phone", "prev-phone")] if context else []
print("ERROR", Score(task, "angular").collapse(levels=[*levels, "speaker"]))
"""


@pytest.mark.slow
def test_it_agrees_with_fastabx(tmp_path: Path) -> None:
    """In an environment of its own, which needs Python 3.12: ``FEDHUBERT_FASTABX`` is its interpreter."""
    python = os.environ.get("FEDHUBERT_FASTABX")
    if not python:
        pytest.skip("FEDHUBERT_FASTABX is not set: no interpreter with fastabx to compare with")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    lines, said, frames = [], [], []
    for file in range(12):
        features = rng.standard_normal((120, 8)).astype(np.float32)
        torch.save(torch.from_numpy(features), tmp_path / f"f{file}.pt")
        start = 0
        while start < 110:
            end = start + int(rng.integers(1, 9))
            phone, before, after = rng.choice(["a", "b", "c"]), *rng.choice(["x", "y"], 2)
            # a little after the first frame's border: the same frames by either rule for centres
            onset, offset = ((place + 0.3) / 50 for place in (start, end))
            lines.append(f"f{file} {onset:.3f} {offset:.3f} {phone} {before} {after} s{file % 4}")
            said.append((phone, before + after, f"s{file % 4}"))
            frames.append(features[start:end])
            start = end
    item_file(tmp_path / "t.item", lines)
    numbers = [np.unique([kind[n] for kind in said], return_inverse=True)[1] for n in range(3)]
    bounds = np.concatenate([[0], np.cumsum([len(span) for span in frames])])
    distances = {
        "yes": mean_distance(np.stack([span.mean(axis=0) for span in frames])),
        "no": dtw_distance(np.concatenate(frames), bounds),
    }
    for pooled, across, context in itertools.product(("yes", "no"), repeat=3):
        command = [python, "-c", FASTABX, str(tmp_path), pooled, across, context]
        said_by_it = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        (theirs,) = [line for line in said_by_it.splitlines() if line.startswith("ERROR")]
        contexts = numbers[1] if context == "yes" else np.zeros_like(numbers[1])
        cells = score(Kinds(numbers[0], contexts, numbers[2]), distances[pooled])
        ours = summarise(cells[across == "yes"], 0)
        assert ours is not None
        print(f"pooled {pooled}, across {across}, context {context}: {theirs[6:]} {ours.error:.7f}")
        assert ours.error == pytest.approx(float(theirs.removeprefix("ERROR ")), abs=1e-5)
