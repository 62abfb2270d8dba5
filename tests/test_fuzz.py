"""Whatever the bytes: a result or a named error, never another exception and never a hang.

Every property runs a little by default, always on the same examples, and long and at random with ``-m slow``.
"""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes

from fedhubert.compose import compose
from fedhubert.data.audio import audio_info, read_audio
from fedhubert.data.fairseq_files import read_km
from fedhubert.data.manifest import Manifest
from fedhubert.errors import FedhubertError
from fedhubert.formats.importing import import_encoder
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.models.hubert import build_hubert
from fedhubert.runs.store import RoundStore
from fedhubert.targets.labels import precomputed_labels
from tests.fuzzing import budget, check, mutated, watchdog  # noqa: F401
from tests.integration.conftest import SMALL

CELLS = st.one_of(
    st.sampled_from(
        [
            "a.wav",
            "../a.wav",
            "/etc/passwd",
            "a/../../b.wav",
            "\0",
            "x" * 5000,
            "",
            "16000",
            "-1",
            "0",
            "1e3",
            "²",
            "٣",
            "9" * 25,
        ]
    ),
    st.integers(-(2**70), 2**70).map(str),
    st.text(max_size=12),
)


@budget(300, 4000)
def test_manifests(tmp_path: Path, examples: int) -> None:
    row = st.lists(CELLS, min_size=4, max_size=5).map(",".join)
    table = st.lists(row, max_size=6).map(
        lambda rows: "\n".join(["path,speaker,num_samples,sample_rate,text", *rows])
    )
    tabbed = st.lists(st.lists(CELLS, min_size=1, max_size=3).map("\t".join), max_size=6).map(
        lambda rows: "\n".join(["/audio", *rows])
    )
    text = st.one_of(table, tabbed).map(lambda text: text.encode("utf-8", "surrogatepass"))
    whole = (
        b"path,speaker,num_samples,sample_rate\na/1.wav,ann,16000,16000\nb/2.wav,bob,8000,8000\n"
    )

    def holds(drawn: tuple[bytes, str]) -> None:
        path = tmp_path / drawn[1]
        path.write_bytes(drawn[0])
        manifest = Manifest.read(path)
        assert (manifest.lengths() >= 1).all() and len(manifest.fingerprint()) == 32
        for row in range(len(manifest)):
            try:
                assert manifest.audio_path(row).is_relative_to(manifest._real_root)
            except FedhubertError:
                continue

    check(
        examples,
        st.tuples(st.one_of(text, mutated(whole)), st.sampled_from(["m.csv", "m.tsv"])),
        holds,
    )


@budget(200, 4000)
def test_label_files(tmp_path: Path, examples: int) -> None:
    manifest = Manifest(
        tmp_path,
        ["a.wav", "b.wav"],
        ["a", "b"],
        np.array([8000, 16000]),
        np.array([16000, 16000], np.int32),
        {},
    )
    good = (
        b"\n".join(b" ".join(b"%d" % (i % 5) for i in range(count)) for count in (48, 98)) + b"\n"
    )

    def holds(content: bytes) -> None:
        (tmp_path / "x.km").write_bytes(content)
        (tmp_path / "dict.km.txt").write_bytes(content[:50])
        read_km(tmp_path / "x.km")
        store = precomputed_labels(manifest, np.arange(2), str(tmp_path / "x.km"), 100, 5)
        assert store.counts(np.arange(2)).sum() == store.num_frames

    check(
        examples,
        st.one_of(
            mutated(good),
            st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
        ),
        holds,
    )


@budget(300, 4000)
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_audio(tmp_path: Path, suffix: str, examples: int) -> None:
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal((4000, 2)), 16000)

    def holds(content: bytes) -> None:
        path.write_bytes(content)
        frames, rate_hz = audio_info(path)
        assert rate_hz >= 1000
        samples = read_audio(path)
        assert (
            samples.dtype == np.float32
            and np.isfinite(samples).all()
            and len(samples) == -(-frames * 16000 // rate_hz)
        )

    check(examples, mutated(path.read_bytes()), holds)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    config = compose(["experiment=demo_fedavg", *SMALL])
    model = build_hubert(config.model, seed=0)
    RoundStore(folder).save(
        1,
        model.state_dict(),
        config=config.model_dump(mode="json"),
        federated_metrics={},
        resume=None,
    )
    return folder / "round_001_checkpoint.pt"


@budget(150, 4000)
def test_checkpoints(tmp_path: Path, checkpoint: Path, examples: int) -> None:
    """Of a file without its digest beside it, as it would come from elsewhere."""
    path = tmp_path / "round_001_checkpoint.pt"
    whole = checkpoint.read_bytes()
    tail = st.integers(max(0, len(whole) - 3000), len(whole) - 4)  # the archive's directory
    edited = st.tuples(tail, st.binary(min_size=1, max_size=4)).map(
        lambda edit: whole[: edit[0]] + edit[1] + whole[edit[0] + len(edit[1]) :]
    )

    def holds(content: bytes) -> None:
        path.write_bytes(content)
        for load in (
            load_checkpoint,
            import_encoder,
            lambda path: RoundStore(path.parent).latest().load(),
        ):
            try:
                load(path)
            except FedhubertError:
                continue

    check(examples, st.one_of(mutated(whole), edited), holds)


@budget(150, 4000)
def test_safetensors(tmp_path: Path, examples: int) -> None:
    state = {
        name: tensor
        for name, tensor in build_hubert(compose(["experiment=demo_fedavg", *SMALL]).model, seed=0)
        .wav2vec2.state_dict()
        .items()
    }
    path = tmp_path / "model.safetensors"
    check(
        examples,
        mutated(safetensors_bytes(state)),
        lambda content: (path.write_bytes(content), import_encoder(path)),
    )
