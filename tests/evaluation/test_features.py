"""Layers of encoders, the feature cache, labels and alignments."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from transformers import HubertModel as TransformersHubert

from fedhubert.config import ModelConfig
from fedhubert.data.manifest import Manifest
from fedhubert.disk_cache import DiskCache
from fedhubert.errors import DataError
from fedhubert.evaluation.annotations import Alignment, Labels
from fedhubert.evaluation.encoders import Encoder, load_encoder, mfcc_encoder
from fedhubert.evaluation.features import FeatureReader, _parts
from fedhubert.formats.huggingface import write_huggingface
from fedhubert.formats.source import Source
from fedhubert.models.frames import num_frames
from fedhubert.models.hubert import build_hubert


@pytest.fixture
def manifest(tone_folder: Path, tmp_path: Path) -> Manifest:
    """A copy of the tones that a test may change."""
    root = tmp_path / "audio"
    shutil.copytree(tone_folder, root)
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.wav"))
    infos = [soundfile.info(root / path) for path in paths]
    return Manifest(
        root,
        paths,
        [path.split("/")[0] for path in paths],
        np.array([info.frames for info in infos]),
        np.array([info.samplerate for info in infos], np.int32),
        {"number": [path[-5] for path in paths]},
    )


@pytest.fixture
def folder(tiny_model_config: ModelConfig, tmp_path: Path) -> Path:
    out = tmp_path / "huggingface"
    out.mkdir()
    write_huggingface(
        Source(tiny_model_config, build_hubert(tiny_model_config, 3).state_dict(), {}, {}, 1, {}),
        out,
    )
    return out


@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_are_those_of_transformers(
    tiny_model_config: ModelConfig, norm_first: bool, tmp_path: Path
) -> None:
    changes = {
        "layer_norm_first": norm_first,
        "conv_norm": "layer_norm" if norm_first else "group_norm",
        "conv_bias": norm_first,
    }
    config = tiny_model_config.model_copy(update=changes)
    write_huggingface(Source(config, build_hubert(config, 3).state_dict(), {}, {}, 1, {}), tmp_path)
    reference = TransformersHubert.from_pretrained(tmp_path).eval()
    waveform = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    encoder, _ = load_encoder(tmp_path)
    with torch.inference_mode():
        output = reference(torch.from_numpy(waveform)[None], output_hidden_states=True)
    hidden = [*output.hidden_states[:-1], output.last_hidden_state]
    layers = encoder.forward(waveform)
    assert encoder.layers == (0, 1, 2) and len(hidden) == 3
    for ours, theirs in zip(layers, hidden, strict=True):
        assert np.allclose(ours, theirs[0].numpy(), atol=1e-5)


def test_a_folder_that_asks_for_normalised_audio_gets_it(folder: Path) -> None:
    waveform = 0.01 * np.random.default_rng(0).standard_normal(8000).astype(
        np.float32
    ) + np.float32(0.2)
    plain = load_encoder(folder)[0]
    settings = folder / "preprocessor_config.json"
    settings.write_text(
        settings.read_text().replace('"do_normalize": false', '"do_normalize": true')
    )
    normalising = load_encoder(folder)[0]
    scaled = (waveform - waveform.mean()) / waveform.std()
    assert np.allclose(normalising.forward(waveform)[2], plain.forward(scaled)[2], atol=1e-4)
    assert normalising.key != plain.key


def test_the_untrained_twin_has_the_same_shape_and_other_weights(folder: Path) -> None:
    trained, untrained = load_encoder(folder)
    waveform = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    assert trained.key != untrained.key and trained.layers == untrained.layers
    assert trained.forward(waveform)[2].shape == untrained.forward(waveform)[2].shape
    assert not np.allclose(trained.forward(waveform)[2], untrained.forward(waveform)[2], atol=0.1)
    assert load_encoder(folder)[1].key == untrained.key


@pytest.mark.parametrize("samples", [400, 719, 720, 16000, 39999])
def test_mfcc_has_as_many_frames_as_a_model(samples: int) -> None:
    waveform = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    assert mfcc_encoder().forward(waveform)[0].shape == (num_frames(samples), 39)


def counting(encoder: Encoder, calls: list[int]) -> Encoder:
    def forward(waveform: np.ndarray) -> list[np.ndarray]:
        calls.append(len(waveform))
        return encoder.forward(waveform)

    return Encoder(encoder.name, encoder.key, encoder.layers, forward)


def test_cached_features_are_those_computed_and_are_computed_once(
    manifest: Manifest, folder: Path, tmp_path: Path
) -> None:
    calls: list[int] = []
    encoder = counting(load_encoder(folder)[0], calls)
    rows = np.arange(len(manifest))
    fresh = FeatureReader(encoder, (0, 2), manifest, DiskCache(tmp_path / "cache", 10**9)).pooled(
        rows
    )
    assert fresh.shape == (2, len(manifest), 48) and len(calls) == len(manifest)
    again = FeatureReader(encoder, (0, 2), manifest, DiskCache(tmp_path / "cache", 10**9)).pooled(
        rows
    )
    assert np.array_equal(fresh, again) and len(calls) == len(manifest)
    chosen = {3: np.array([0, 4, 5]), 1: np.array([2])}
    frames = FeatureReader(encoder, (2,), manifest, DiskCache(tmp_path / "cache", 10**9)).frames(
        chosen
    )
    uncached = FeatureReader(encoder, (2,), manifest, DiskCache(tmp_path / "none", 0)).frames(
        chosen
    )
    assert frames.shape == (1, 4, 48) and np.array_equal(frames, uncached)
    assert not (tmp_path / "none").exists()


def test_other_audio_layers_or_weights_are_not_taken_from_the_cache(
    manifest: Manifest, folder: Path, tmp_path: Path
) -> None:
    calls: list[int] = []
    trained, untrained = (counting(encoder, calls) for encoder in load_encoder(folder))
    cache = DiskCache(tmp_path / "cache", 10**9)
    rows = np.array([0])
    first = FeatureReader(trained, (1,), manifest, cache).pooled(rows)
    other_layer = FeatureReader(trained, (2,), manifest, cache).pooled(rows)
    other_weights = FeatureReader(untrained, (1,), manifest, cache).pooled(rows)
    samples, rate = soundfile.read(manifest.audio_path(0), dtype="float32")
    soundfile.write(
        manifest.audio_path(0), 0.5 * samples[::-1], rate, subtype="PCM_16"
    )  # same name, length and rate
    other_audio = FeatureReader(trained, (1,), manifest, cache).pooled(rows)
    assert len(calls) == 4
    assert all(
        not np.array_equal(first, other) for other in (other_layer, other_weights, other_audio)
    )


def test_damaged_and_misshapen_entries_are_computed_again(
    manifest: Manifest, folder: Path, tmp_path: Path
) -> None:
    calls: list[int] = []
    encoder = counting(load_encoder(folder)[0], calls)
    extractor = FeatureReader(encoder, (1,), manifest, DiskCache(tmp_path / "cache", 10**9))
    first = extractor.pooled(np.array([0]))
    (entry,) = (tmp_path / "cache").glob("*/*.safetensors")
    for damage in (entry.read_bytes()[:40], b"", b"no tensors"):
        entry.write_bytes(damage)
        assert np.array_equal(extractor.pooled(np.array([0])), first)
    for name, values in (
        ("features", torch.zeros(7, 48)),
        ("features", torch.zeros(1, 48).double()),
        ("other", torch.zeros(1, 48)),
    ):
        save_file({name: values}, entry)
        assert np.array_equal(extractor.pooled(np.array([0])), first)
    assert len(calls) == 7


def test_labels_in_both_forms_and_manifest_columns(manifest: Manifest, tmp_path: Path) -> None:
    long, wide = tmp_path / "long.csv", tmp_path / "wide.csv"
    long.write_text(
        f"path,task,label\n{manifest.paths[1]},digit,7\n{manifest.paths[0]},mood,good\n"
    )
    wide.write_text(f"path,digit,mood\n{manifest.paths[1]},7,\n{manifest.paths[0]},,good\n")
    for path in (long, wide):
        labels = Labels.read(path)
        rows, values = labels.of(manifest, "digit")
        assert (rows.tolist(), values) == ([1], ["7"])
        assert labels.of(manifest, "mood")[1] == ["good"]
    rows, values = Labels({}).of(manifest, "speaker")
    assert len(rows) == len(manifest) and values == manifest.speakers
    with pytest.raises(DataError, match=r"no labels `keyword`.*number, speaker"):
        Labels({}).of(manifest, "keyword")
    with pytest.raises(DataError, match="do the paths agree"):
        Labels({"digit": {"elsewhere.wav": "3"}}).of(manifest, "digit")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,1\n", "no column path"),
        ("path,task,label\na,digit,1\na,digit,2\n", "line 3: a has two labels of digit"),
        ("path,task,label\na,digit\n", "line 2: another number of fields"),
    ],
)
def test_bad_labels_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        Labels.read(path)
    with pytest.raises(DataError, match="cannot read"):
        Labels.read(tmp_path / "missing.csv")


def test_frames_have_the_phone_at_their_centre(manifest: Manifest, tmp_path: Path) -> None:
    """Centres of frames 0, 1, 2, 3 are the samples 200, 520, 840, 1160 at 16 kHz; half of that in a file of 8 kHz."""
    path = tmp_path / "phones.csv"
    high, low = (
        manifest.paths.index("speaker0/utterance0.wav"),
        manifest.paths.index("speaker0/utterance3.wav"),
    )
    lines = ["path,start_sample,end_sample,phone"]
    lines += [
        f"{manifest.paths[high]},520,841,B",
        f"{manifest.paths[high]},0,520,A",
        f"{manifest.paths[low]},100,421,C",
    ]
    path.write_text("\n".join(lines) + "\n")
    frames = Alignment.read(path).frames(manifest)
    assert frames[high][0].tolist() == [0, 1, 2] and frames[high][1] == ["A", "B", "B"]
    assert frames[low][0].tolist() == [0, 1, 2] and frames[low][1] == ["C"] * 3
    assert set(frames) == {high, low}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,5,5,X", "line 2"),
        ("a,-1,5,X", "line 2"),
        ("a,x,5,X", "line 2"),
        ("a,0,5,", "line 2"),
        ("a,0,5,X\na,4,9,Y", "overlap"),
    ],
)
def test_bad_alignments_are_refused(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "phones.csv"
    path.write_text(f"path,start_sample,end_sample,phone\n{line}\n")
    with pytest.raises(DataError, match=message):
        Alignment.read(path)


def test_thirds_by_hand() -> None:
    """Equal parts where there are enough frames; else neighbours share them."""
    for count, firsts_and_ends in (
        (6, [(0, 2), (2, 4), (4, 6)]),
        (4, [(0, 2), (1, 3), (2, 4)]),
        (2, [(0, 1), (0, 2), (1, 2)]),
        (1, [(0, 1), (0, 1), (0, 1)]),
    ):
        frames = np.arange(count, dtype=np.float32)[None, :, None] ** 2
        expected = [frames[0, first:end].mean() for first, end in firsts_and_ends]
        assert _parts(frames, 3).tolist() == [pytest.approx(expected)]
