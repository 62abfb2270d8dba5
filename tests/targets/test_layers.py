"""Layer features: whole utterances or gapless chunks, labels where the model's frames are, and an extractor that is what it was."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhubert.config import DataConfig, ModelConfig
from fedhubert.data.audio import read_audio
from fedhubert.data.batching import BatchPlan
from fedhubert.data.loading import LabelSource, load_batches
from fedhubert.data.manifest import Manifest
from fedhubert.errors import TargetsError
from fedhubert.models.hubert import build_hubert
from fedhubert.models.masking import MaskSpec
from fedhubert.targets.extractor import Extractor, load_extractor
from fedhubert.targets.features import fitting_features, kept_features
from fedhubert.targets.kmeans import assign
from fedhubert.targets.labels import assigned_labels, cached_labels
from fedhubert.targets.layers import LayerFeatures, chunks_of

from .test_targets import ROWS, manifest

__all__ = ["manifest"]  # a fixture
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def extractor(tiny_model_config: ModelConfig) -> Extractor:
    return Extractor.cut(tiny_model_config, build_hubert(tiny_model_config, 3).state_dict(), 2)


def source(extractor: Extractor, chunk_s: float = 60.0) -> LayerFeatures:
    return LayerFeatures(extractor.key, lambda: extractor, round(chunk_s * 16000), CPU)


def features_of(
    extractor: Extractor, manifest: Manifest, row: int, chunk_s: float = 60.0, workers: int = 0
) -> np.ndarray:
    pieces = list(source(extractor, chunk_s).stream(manifest, [row], workers))
    starts = np.cumsum([0, *(len(part) for _, _, part in pieces)])[:-1]
    assert [first for _, first, _ in pieces] == starts.tolist()
    return np.concatenate([part for _, _, part in pieces])


@given(st.integers(400, 3_000_000), st.integers(400, 400_000))
def test_chunks_cover_every_frame_once_within_the_audio(
    num_samples: int, chunk_samples: int
) -> None:
    config = ModelConfig(
        name="x",
        conv_layers=((8, 10, 5), *[(8, 3, 2)] * 4, *[(8, 2, 2)] * 2),
        embed_dim=16,
        num_layers=1,
        num_heads=1,
        ffn_dim=16,
    )
    chunks = chunks_of(0, num_samples, chunk_samples, config)
    total = (num_samples - 400) // 320 + 1
    assert sum(chunk.num_frames for chunk in chunks) == total
    begins = np.cumsum([0, *(chunk.num_frames for chunk in chunks)])[:-1]
    for chunk, begin in zip(chunks, begins.tolist(), strict=True):
        assert (chunk.first_frame, chunk.start) == (begin, begin * 320)
        assert (
            chunk.num_samples - 400
        ) // 320 + 1 == chunk.num_frames  # the model gives these frames and no others
        assert chunk.start + chunk.num_samples <= num_samples
        assert chunk.num_frames <= (chunk_samples - 400) // 320 + 1
    assert chunks[-1].start + chunks[-1].num_samples == num_samples
    if num_samples <= chunk_samples:
        assert len(chunks) == 1
    sizes = [chunk.num_frames for chunk in chunks]
    assert max(sizes) - min(sizes) <= 1


def test_an_utterance_is_what_the_trained_model_makes_of_it_unpadded(
    extractor: Extractor, tiny_model_config: ModelConfig, manifest: Manifest
) -> None:
    trained = build_hubert(tiny_model_config, 3).eval()
    for row in (0, 3, 7):  # row 3 is resampled
        waveform = torch.from_numpy(read_audio(manifest.audio_path(row)))
        with torch.no_grad():
            expected = trained.extract_features(waveform[None])[1][0].numpy()
        found = features_of(extractor, manifest, row)
        assert found.shape == ((len(waveform) - 400) // 320 + 1, 48)
        np.testing.assert_array_equal(found, expected)


def test_a_chunk_begins_with_the_sample_of_its_first_frame(manifest: Manifest) -> None:
    """Without group norm and transformer each frame depends on its own 400 samples: chunked or not, the frames are the same."""
    config = ModelConfig(
        name="x",
        conv_layers=((8, 10, 5), *[(8, 3, 2)] * 4, *[(8, 2, 2)] * 2),
        conv_norm="layer_norm",
        embed_dim=16,
        num_layers=1,
        num_heads=1,
        ffn_dim=16,
        pos_conv_kernel=4,
        pos_conv_groups=1,
    )
    convolutions = build_hubert(config, 0).wav2vec2.feature_extractor
    row = 6
    waveform = torch.from_numpy(read_audio(manifest.audio_path(row)))
    with torch.no_grad():
        whole = convolutions(waveform[None], None)[0][0]
        chunks = chunks_of(row, len(waveform), 9000, config)
        assert len(chunks) > 2
        pieces = [
            convolutions(waveform[None, c.start : c.start + c.num_samples], None)[0][0]
            for c in chunks
        ]
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_s", [60.0, 0.7, 0.33])
def test_labels_are_the_same_with_any_company_order_and_threads(
    extractor: Extractor, manifest: Manifest, chunk_s: float
) -> None:
    centroids = features_of(extractor, manifest, 0)[::7][:9]
    everyone = assigned_labels(manifest, ROWS, (centroids,), source=source(extractor, chunk_s))
    assert everyone.rate_hz == 50
    for rows, workers in ((ROWS[::-1], 2), (ROWS[3:8], 1), (ROWS[5:6], 0)):
        some = assigned_labels(
            manifest, rows, (centroids,), workers, source=source(extractor, chunk_s)
        )
        for row in rows.tolist():
            assert np.array_equal(some.labels(row), everyone.labels(row))
    for row, length in enumerate(manifest.lengths().tolist()):
        assert len(everyone.labels(row)) == (length - 400) // 320 + 1
        assert np.array_equal(
            everyone.labels(row),
            assign(features_of(extractor, manifest, row, chunk_s), centroids)[0],
        )


def test_crops_get_the_labels_of_their_own_frames(extractor: Extractor, manifest: Manifest) -> None:
    """Every utterance is longer than a crop; labels are the frame numbers, so that a shift by one would show."""
    data = DataConfig(min_seconds=0.5, max_seconds=0.8, batch_seconds=2.4, num_workers=0)
    centroids = features_of(extractor, manifest, 0)[:4]
    store = assigned_labels(
        manifest, ROWS, (centroids,), source=source(extractor, data.max_seconds)
    )
    plan = BatchPlan(manifest.lengths(), ROWS, data, 0, 0)
    numbers = LabelSource(lambda row: np.arange(len(store.labels(row))), store.rate_hz)
    labels = LabelSource(store.labels, store.rate_hz)
    mask = MaskSpec(0.5, 3, 1)
    starts = set()
    for position in range(3 * plan.num_batches):
        spec = plan.batch(position)
        (numbered,) = load_batches(manifest, plan, [position], numbers, mask, data)
        (labelled,) = load_batches(manifest, plan, [position], labels, mask, data)
        assert numbered.labels_BT is not None and labelled.labels_BT is not None
        frames = (spec.num_samples - 400) // 320 + 1
        expected = spec.starts[:, None] // 320 + np.arange(frames)
        assert np.array_equal(
            numbered.labels_BT.numpy(), expected
        )  # none is repeated at an end either
        for row, index, found in zip(
            spec.rows.tolist(), expected, labelled.labels_BT.numpy(), strict=True
        ):
            assert np.array_equal(found, store.labels(row)[index])
        starts |= set(spec.starts.tolist())
    assert len(starts) > 5


def test_real_speech_in_chunks(corpus: Path, extractor: Extractor) -> None:
    speech = Manifest.read(corpus / "manifest.csv")
    rows = np.argsort(speech.lengths(), kind="stable")[[0, len(speech) // 2, -1]]
    rows = rows[speech.lengths()[rows] >= 400]
    store = assigned_labels(
        speech,
        rows,
        (features_of(extractor, speech, int(rows[-1]))[:5],),
        source=source(extractor, 4.0),
    )
    for row in rows.tolist():
        assert len(store.labels(row)) == (int(speech.lengths()[row]) - 400) // 320 + 1
        info = read_audio(speech.audio_path(row))
        assert len(info) == int(speech.lengths()[row])


def test_the_sample_is_bounded_written_to_disk_and_the_same(
    extractor: Extractor, manifest: Manifest, tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "sample.npy"
    layer = source(extractor)
    in_memory = fitting_features(manifest, ROWS, 300, 0, 0, source=layer)
    assert 200 < len(in_memory) <= 300 and in_memory.shape[1] == 48
    computed: list[int] = []

    def compute(allocate: object) -> np.ndarray:
        computed.append(1)
        return fitting_features(manifest, ROWS, 300, 0, 0, 2, source=layer, allocate=allocate)  # type: ignore[arg-type]

    kept = kept_features(path, compute)
    assert isinstance(kept, np.memmap) and np.array_equal(kept, in_memory)
    assert path.stat().st_size <= 300 * 48 * 4 + 128
    assert np.array_equal(kept_features(path, compute), in_memory) and len(computed) == 1
    path.write_bytes(path.read_bytes()[:-5])
    assert np.array_equal(kept_features(path, compute), in_memory) and len(computed) == 2
    assert [file.name for file in path.parent.iterdir()] == ["sample.npy"]
    beginning = fitting_features(manifest, ROWS, 20, 0, 0, source=source(extractor, 0.3))
    assert len(beginning) == 20


def test_a_sample_that_fails_leaves_nothing(manifest: Manifest, tmp_path: Path) -> None:
    def compute(allocate: object) -> np.ndarray:
        allocate((10, 10))[:] = 1  # type: ignore[operator]
        raise TargetsError("audio is broken")

    with pytest.raises(TargetsError, match="broken"):
        kept_features(tmp_path / "sample.npy", compute)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TargetsError, match="cannot keep features"):
        kept_features(tmp_path / "sample.npy", lambda allocate: allocate((2**50, 10)))
    assert not list(tmp_path.iterdir())


def test_audio_too_short_for_a_frame_is_named(extractor: Extractor, tmp_path: Path) -> None:
    short = Manifest(
        tmp_path, ["tiny.wav"], ["s"], np.array([399]), np.array([16000], np.int32), {}
    )
    with pytest.raises(TargetsError, match=r"tiny\.wav: 399 samples"):
        list(source(extractor).stream(short, [0]))


def test_the_key_is_of_what_the_features_depend_on(tiny_model_config: ModelConfig) -> None:
    state = build_hubert(tiny_model_config, 3).state_dict()
    key = Extractor.cut(tiny_model_config, state, 1).key
    same = tiny_model_config.model_copy(
        update={"dropout": 0.3, "name": "other", "layer_drop": 0.0, "logit_temperature": 0.2}
    )
    assert Extractor.cut(same, state, 1).key == key
    for name in (
        "logit_generator.label_embeddings",
        "wav2vec2.encoder.transformer.layers.1.attention.k_proj.bias",
    ):
        assert Extractor.cut(tiny_model_config, {**state, name: state[name] + 1}, 1).key == key
    for name in (
        "wav2vec2.encoder.transformer.layers.0.attention.k_proj.bias",
        "wav2vec2.encoder.feature_projection.layer_norm.bias",
    ):
        assert Extractor.cut(tiny_model_config, {**state, name: state[name] + 1}, 1).key != key
    assert Extractor.cut(tiny_model_config, state, 2).key != key
    assert all(
        "transformer.layers.1." not in name
        for name in Extractor.cut(tiny_model_config, state, 1).state
    )


def test_models_that_do_not_fit_are_refused(tiny_model_config: ModelConfig) -> None:
    state = build_hubert(tiny_model_config, 3).state_dict()
    with pytest.raises(
        TargetsError, match="layer:3, but the model in targets.checkpoint has 2 layers"
    ):
        Extractor.cut(tiny_model_config, state, 3)
    narrower = tiny_model_config.model_copy(update={"ffn_dim": 48})
    with pytest.raises(TargetsError, match="do not fit its configuration"):
        Extractor.cut(narrower, state, 1)
    arrays = {
        name: tensor.numpy()
        for name, tensor in Extractor.cut(tiny_model_config, state, 1).state.items()
    }
    with pytest.raises(TargetsError, match="not the one announced"):
        Extractor.received(tiny_model_config, arrays, "0" * 32)


def test_a_kept_extractor_is_whole_or_absent(extractor: Extractor, tmp_path: Path) -> None:
    assert Extractor.find(tmp_path, extractor.key) is None
    with pytest.raises(TargetsError, match="missing or damaged; start the run again"):
        load_extractor(tmp_path, extractor.key)
    extractor.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{extractor.key}.safetensors"]
    again = load_extractor(tmp_path, extractor.key)
    assert again.config == extractor.config and all(
        torch.equal(again.state[name], extractor.state[name]) for name in extractor.state
    )
    path = Extractor.file(tmp_path, extractor.key)
    whole = path.read_bytes()
    for position in np.linspace(0, len(whole) - 1, 60).astype(int).tolist():
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        assert Extractor.find(tmp_path, extractor.key) is None, position
    for text in ("../../etc/passwd", "", "A" * 32, extractor.key + "0"):
        with pytest.raises(TargetsError):
            Extractor.find(tmp_path, text)


def test_labels_of_another_extractor_or_chunk_length_have_another_place(
    extractor: Extractor, manifest: Manifest, tmp_path: Path
) -> None:
    from fedhubert.targets.kmeans import targets_key

    centroids = features_of(extractor, manifest, 0)[:4]
    keys = {targets_key((centroids,), source(extractor, chunk_s).key) for chunk_s in (1.0, 2.0)} | {
        targets_key((centroids,))
    }
    assert len(keys) == 3
    for key in keys:
        with pytest.raises(TargetsError, match="no labels"):
            cached_labels(tmp_path, manifest, ROWS, key, None)
        layer = source(extractor)
        cached_labels(
            tmp_path,
            manifest,
            ROWS,
            key,
            lambda layer=layer: assigned_labels(manifest, ROWS, (centroids,), source=layer),
        )
        assert cached_labels(tmp_path, manifest, ROWS, key, None).rate_hz == 50
