"""ABX from alignments and item files to what is printed."""

import argparse
import itertools
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
from fedhubert.evaluation.distances import dtw_distance, mean_distance
from fedhubert.evaluation.encoders import Encoder
from fedhubert.evaluation.segments import aligned_segments, read_items

from .test_evaluate import Evaluate, checkpoint, evaluate, manifest  # noqa: F401


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
