"""Files from outside: nothing in them is run, and none fills the memory."""

import ast
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import fedhubert
from fedhubert.compose import compose, to_yaml
from fedhubert.compose.saved import amend
from fedhubert.data.audio import MAX_DECODED, audio_info, read_audio
from fedhubert.errors import CheckpointError, DataError
from fedhubert.formats.importing import import_encoder
from fedhubert.formats.reading import read_weights
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.runs.store import RoundStore

PACKAGE = Path(fedhubert.__file__).parent
NEEDED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
FORBIDDEN = {
    *(
        "eval",
        "exec",
        "compile",
        "__import__",
        "os.system",
        "os.popen",
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
    ),
    *(
        "marshal.load",
        "marshal.loads",
        "shelve.open",
        "joblib.load",
        "dill.load",
        "pd.read_pickle",
        "torch.jit.load",
    ),
    *(
        "torch.hub.load",
        "yaml.load",
        "yaml.unsafe_load",
        "yaml.full_load",
        "torch.package.PackageImporter",
    ),
}


def calls(source: str) -> Iterator[tuple[str, dict[str, object], int]]:
    """Yield (dotted name, constant keyword arguments, line) of every call."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            constants = {
                word.arg: word.value.value
                for word in node.keywords
                if word.arg and isinstance(word.value, ast.Constant)
            }
            yield ast.unparse(node.func), constants, node.lineno


def wrong(source: str) -> list[str]:
    """Return what in ``source`` may run what is in a file."""
    found = []
    for name, words, line in calls(source):
        word, value = NEEDED.get(name, (None, None))
        if (
            (word is not None and words.get(word) is not value)
            or name in FORBIDDEN
            or words.get("shell") is True
        ):
            found.append(f"line {line}: {name}")
    imports = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)
    ]  # which would hide the dotted name
    hidden = [f"{node.module}.{alias.name}" for node in imports for alias in node.names]
    return found + [name for name in hidden if name in FORBIDDEN | NEEDED.keys()]


def test_nothing_in_the_package_loads_a_file_that_could_run_code() -> None:
    files = [
        file
        for folder in (PACKAGE, PACKAGE.parent / "client_app", PACKAGE.parent / "server_app")
        for file in folder.rglob("*.py")
    ]
    assert len(files) > 100
    found = {str(file): bad for file in files if (bad := wrong(file.read_text()))}
    assert not found
    assert sum(name in NEEDED for file in files for name, _, _ in calls(file.read_text())) >= 6


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f)",
        "eval(x)",
        "yaml.load(x)",
        "run(x, shell=True)",
        "from pickle import loads",
    ],
)
def test_such_a_line_would_be_found(line: str) -> None:
    assert wrong(f"import torch\n{line}\n")
    assert not wrong(
        "torch.load(f, weights_only=True); np.load(f, allow_pickle=False); model.eval(); re.compile(x)"
    )


class Opens:
    """Would write a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "load", [load_checkpoint, read_weights, import_encoder], ids=lambda load: load.__name__
)
def test_a_checkpoint_that_runs_code_is_refused(
    tmp_path: Path, load: Callable[[Path], object]
) -> None:
    path = tmp_path / "round_001_checkpoint.pt"
    torch.save(
        {
            "format_version": 1,
            "round": 1,
            "federated_metrics": {},
            "config": {},
            "model": {"a": Opens(tmp_path / "ran")},
        },
        path,
    )
    with pytest.raises(CheckpointError, match="run code"):
        load(path)
    assert not (tmp_path / "ran").exists()


def compressed(path: Path) -> None:
    """64 MB of zeros in 64 kB."""
    plain = path.with_suffix(".plain")
    torch.save({"wav2vec2.x": torch.zeros(2**24)}, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for record in source.infolist():
            target.writestr(record.filename.replace(plain.stem, path.stem), source.read(record))
    plain.unlink()


def expanded(path: Path) -> None:
    """Four terabytes over one stored number."""
    model = {"wav2vec2.x": torch.zeros(1).expand(2**40)}
    torch.save(
        {
            "format_version": 1,
            "round": 1,
            "federated_metrics": {},
            "config": {"model": {}},
            "model": model,
        },
        path,
    )


@pytest.mark.parametrize("make", [compressed, expanded], ids=lambda make: make.__name__)
@pytest.mark.parametrize("load", [load_checkpoint, import_encoder], ids=lambda load: load.__name__)
def test_a_checkpoint_that_would_fill_the_memory_is_refused(
    tmp_path: Path, make: Callable[[Path], None], load: Callable[[Path], object]
) -> None:
    path = tmp_path / "round_001_checkpoint.pt"
    make(path)
    assert path.stat().st_size < 200_000
    with pytest.raises(CheckpointError, match="compressed|state dict of tensors"):
        load(path)
    assert RoundStore(tmp_path).latest().path != path or make is expanded


def test_an_interpolation_in_a_saved_configuration_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "hunter2")
    saved = compose(["experiment=demo_fedavg"]).model_dump(mode="json") | {
        "experiment": "${oc.env:A_SECRET}"
    }
    assert "hunter2" not in to_yaml(amend(saved, ["seed=3"]))


def patched_flac(
    path: Path, *, rate_hz: int = 16000, channels: int = 1, total: int | None = None
) -> Path:
    """A second of noise whose header says something else."""
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal((16000, channels)), 16000)
    content = bytearray(path.read_bytes())
    fields = int.from_bytes(
        content[18:26], "big"
    )  # rate: 20 bits, channels: 3, bits per sample: 5, samples: 36
    fields = (fields & ~(0xFFFFF << 44)) | (rate_hz << 44)
    fields = fields if total is None else (fields & ~(2**36 - 1)) | total
    content[18:26] = fields.to_bytes(8, "big")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("says", "text"),
    [
        ({"rate_hz": 655_350, "channels": 8}, "655350 Hz is not resampled"),
        ({"rate_hz": 44_101}, "44101 Hz is not resampled"),
        ({"rate_hz": 1}, "1 Hz is not resampled"),
        ({"total": 2**36 - 1}, "the header promises 68719476735"),
        (
            {"total": 50 * 60 * 192_000, "rate_hz": 192_000, "channels": 8},
            "the header promises 576000000",
        ),
    ],
)
def test_a_header_that_promises_too_much_is_refused_before_anything_is_decoded(
    tmp_path: Path, says: dict[str, int], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = patched_flac(tmp_path / "bomb.flac", **says)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(DataError, match=rf"bomb\.flac: .*{text}"):
        read_audio(path)


def test_usual_rates_and_an_hour_are_not_refused(tmp_path: Path) -> None:
    for rate_hz in (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 96000, 192000):
        path = tmp_path / f"{rate_hz}.wav"
        soundfile.write(path, np.zeros(rate_hz // 4), rate_hz)
        assert len(read_audio(path)) == 4000 and audio_info(path) == (rate_hz // 4, rate_hz)
    assert MAX_DECODED > 3600 * 48000 * 2


def test_hours_of_silence_in_a_small_file_are_cropped_without_being_decoded(tmp_path: Path) -> None:
    """Ten hours in a sparse wav: a crop of it takes the memory of a crop; all of it at once is refused."""
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(16000), 16000, subtype="PCM_16")
    size = 10 * 3600 * 16000 * 2
    content = bytearray(path.read_bytes())
    content[4:8], content[40:44] = (36 + size).to_bytes(4, "little"), size.to_bytes(4, "little")
    path.write_bytes(content)
    os.truncate(path, 44 + size)
    code = (
        "import resource, sys; from pathlib import Path; from fedhubert.data.audio import read_audio; from fedhubert.errors import DataError\n"
        "path = Path(sys.argv[1]); read_audio(path, num_samples=16000)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert len(read_audio(path, start=9 * 3600 * 16000, num_samples=160000)) == 160000\n"
        "try: read_audio(path)\n"
        "except DataError as error: assert '36000 s in one piece' in str(error)\n"
        "else: sys.exit('not refused')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 20_000  # kB
