"""Exports that run by themselves: in onnxruntime and torch, the same layers for any length and batch, without this package."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch

from fedhubert.commands import export
from fedhubert.config import ModelConfig
from fedhubert.errors import CheckpointError, ConfigError
from fedhubert.formats.export import export as export_to
from fedhubert.formats.programs import (
    Agreement,
    ProgramSettings,
    agreement,
    least_samples,
    must_be_equal,
)
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.models.hubert import HubertModel
from fedhubert.models.layers import LayerEncoder, model_layers

from .common import SHAPES, saved, trained

Floats = npt.NDArray[np.float32]
BATCHES = ((1, 400), (2, 719), (3, 9_123), (1, 48_000))
ALONE = '''
import runpy, sys

class Refuse:
    """Every package but what the script may need: torch and this one, for all it could find."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchaudio", "onnx", "onnxscript", "fedhubert", "safetensors", "transformers"):
            raise ImportError(f"{name} is refused")

sys.meta_path.insert(0, Refuse())
script = sys.argv[1]
sys.argv = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
'''


def onnxruntime() -> object:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(
            package, reason=f"{package} is not installed: pip install 'fedhubert[onnx]'"
        )
    return pytest.importorskip("onnxruntime", reason="pip install 'fedhubert[onnx]'")


def run_onnx(folder: Path, waveforms: Floats) -> dict[str, Floats]:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"waveforms": waveforms}), strict=True))


def noise(*shape: int) -> Floats:
    return (0.1 * np.random.default_rng(1).standard_normal(shape)).astype(np.float32)


def expected(model: HubertModel, waveforms: Floats) -> list[Floats]:
    with torch.inference_mode():
        return [layer.numpy() for layer in model_layers(model, torch.from_numpy(waveforms))]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name == "base" else pytest.mark.slow) for name in SHAPES
    ],
)
def shaped(request: pytest.FixtureRequest, tiny_model_config: ModelConfig) -> HubertModel:
    return trained(tiny_model_config.model_copy(update=SHAPES[request.param]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_model_config: ModelConfig) -> Path:
    return saved(tmp_path_factory.mktemp("run") / "checkpoints", trained(tiny_model_config))


@pytest.fixture(scope="module")
def in_8_bits(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    onnxruntime()
    program = ProgramSettings(layers=(2, 1), int8=True)
    out = tmp_path_factory.mktemp("int8") / "out"
    return export_to(load_checkpoint(checkpoint), "onnx", out, program=program)


def _run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    return export.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.mark.slow
def test_onnx_gives_torchs_layers_for_any_length_and_batch(
    tmp_path: Path, shaped: HubertModel
) -> None:
    onnxruntime()
    every = tuple(range(shaped.config.num_layers + 1))
    content = load_checkpoint(saved(tmp_path, shaped))
    out = export_to(content, "onnx", tmp_path / "out", program=ProgramSettings(layers=every))
    for rows, samples in BATCHES:
        waveforms = noise(rows, samples)
        ours, theirs = expected(shaped, waveforms), run_onnx(out, waveforms)
        assert list(theirs) == [f"layer_{layer}" for layer in every]
        for mine, other in zip(ours, theirs.values(), strict=True):
            assert mine.shape == other.shape
            assert np.abs(mine - other).max() <= 5e-6 * max(1.0, np.abs(mine).max())


def test_torch_export_gives_the_same_bits_or_nearly(tmp_path: Path, shaped: HubertModel) -> None:
    out = export_to(load_checkpoint(saved(tmp_path, shaped)), "torch_export", tmp_path / "out")
    program = torch.export.load(out / "model.pt2").module()
    with pytest.raises(AssertionError, match="Guard failed"):
        program(torch.zeros(1, 719))
    for rows, samples in ((1, 720), *BATCHES[2:]):
        waveforms = noise(rows, samples)
        (other,) = program(torch.from_numpy(waveforms))
        mine = expected(shaped, waveforms)[-1]
        assert np.abs(mine - other.detach().numpy()).max() <= 5e-6 * max(1.0, np.abs(mine).max())


@pytest.mark.slow
def test_a_program_has_the_layers_that_are_named_and_nothing_deeper(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime()
    named = ("--checkpoint", checkpoint, "--format", "onnx")
    assert _run(*named, "--out", tmp_path / "whole") == 0
    assert _run(*named, "--out", tmp_path / "first", "--layers", "0,1") == 0
    printed = capsys.readouterr().out
    assert (
        "float32 differs from torch by" in printed and "over 4 batches of 400 to 160000" in printed
    )
    assert printed.rstrip().endswith(f'InferenceSession("{tmp_path / "first" / "model.onnx"}")')
    assert list(run_onnx(tmp_path / "first", noise(1, 9_000))) == ["layer_0", "layer_1"]
    assert list(run_onnx(tmp_path / "whole", noise(1, 9_000))) == ["layer_2"]
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("first", "whole")]
    assert sizes[0] < 0.8 * sizes[1]
    assert "differs from torch by" in (tmp_path / "first" / "README.md").read_text()


def test_int8_is_smaller_and_nearly_the_same(in_8_bits: Path, checkpoint: Path) -> None:
    weights = sum(tensor.nbytes for tensor in load_checkpoint(checkpoint)["model"].values())
    assert (in_8_bits / "model.onnx").stat().st_size < weights
    card = (in_8_bits / "README.md").read_text()
    said = next(line for line in card.splitlines() if line.startswith("- int8: cosine"))
    assert float(said.split("float32's ")[1].split()[0]) > 0.99
    assert "on made sounds" in said


def test_the_script_needs_neither_torch_nor_this_package(
    in_8_bits: Path, tmp_path: Path, tiny_model_config: ModelConfig
) -> None:
    """The interpreter refuses them, and the working folder is not this repository."""
    audio = tmp_path / "a speech.wav"
    soundfile.write(audio, np.stack([noise(16_000), noise(16_000)], 1), 16_000, subtype="FLOAT")
    command = [sys.executable, "-c", ALONE, in_8_bits / "infer.py", audio]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "layer_2 (49, 48) layer_1 (49, 48)" in done.stdout
    with np.load(f"{audio}.npz") as found:
        theirs = run_onnx(in_8_bits, noise(1, 16_000))
        assert all(np.array_equal(found[name], theirs[name][0]) for name in theirs)
    assert len((in_8_bits / "infer.py").read_text().splitlines()) < 40
    soundfile.write(audio, noise(8_000), 8_000)
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (
        refused.returncode == 1 and "8000 samples at 8000 Hz; give 400 at 16000" in refused.stderr
    )


@pytest.mark.slow
def test_int8_is_compared_on_the_audio_that_is_given(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime()
    flags = ("--format", "onnx", "--int8", "--manifest", corpus / "manifest.csv")
    assert _run("--checkpoint", checkpoint, *flags, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "at least, on 16 utterances" in printed and "over 20 batches" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--format", "onnx", "--layers", "3"), "layers 0 to 2; name each once"),
        (("--format", "onnx", "--layers", "1,1"), "layers 0 to 2; name each once"),
        (("--format", "onnx", "--layers", "-1"), "layers 0 to 2; name each once"),
        (("--format", "onnx", "--layers", "one"), "give numbers"),
        (("--format", "huggingface", "--int8"), "--int8 goes with --format onnx or torch_export"),
        (("--format", "torch_export", "--int8"), "--int8 goes with --format onnx"),
        (("--format", "onnx", "--streaming-chunk", "1.0"), "group norm .*attention"),
    ],
)
def test_what_no_program_can_be_is_refused_by_its_flag(
    checkpoint: Path, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    if "onnx" in flags:
        onnxruntime()
    with pytest.raises(ConfigError, match=message):
        _run("--checkpoint", checkpoint, *flags, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_torchscript_is_refused_by_name(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _run("--checkpoint", checkpoint, "--format", "torchscript", "--out", tmp_path / "out")
    assert "--format torch_export" in capsys.readouterr().err


def test_taking_layers_leaves_the_model_as_it_was(tiny_model_config: ModelConfig) -> None:
    model, waveforms = trained(tiny_model_config), noise(2, 5_000)
    before = expected(model, waveforms)
    names = list(model.state_dict())
    for _ in range(2):
        with torch.inference_mode():
            (first,) = LayerEncoder(model, [1])(torch.from_numpy(waveforms))
        assert np.array_equal(first.numpy(), before[1])
    assert np.array_equal(expected(model, waveforms)[2], before[2])
    assert list(model.state_dict()) == names and model.mask_generator is not None


def test_chunks_change_what_comes_out(tiny_model_config: ModelConfig) -> None:
    """Why they are refused: no frame of half of the audio is that of the whole."""
    model, waveforms = trained(tiny_model_config), noise(1, 32_000)
    half = expected(model, waveforms[:, :16_000])[-1][0]
    assert np.abs(half - expected(model, waveforms)[-1][0, : len(half)]).max(-1).min() > 1e-3


def test_a_program_that_computes_something_else_is_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = LayerEncoder.forward

    def another(self: LayerEncoder, waveforms: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = plain(self, waveforms)
        exporting = torch.compiler.is_exporting()
        return tuple(layer + 1e-3 for layer in found) if exporting else found

    monkeypatch.setattr(LayerEncoder, "forward", another)
    with pytest.raises(CheckpointError, match="no rounding"):
        _run("--checkpoint", checkpoint, "--format", "torch_export", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_rounding_makes_is_told_from_what_it_does_not(tiny_model_config: ModelConfig) -> None:
    """The model with its rounding, and off by 20 times as much on audio so quiet that the share alone would not say which is which."""
    model = trained(tiny_model_config)
    encoder, waveforms = LayerEncoder(model, [0, 2]), 1e-6 * noise(1, 9_000)

    def off_by(times: float) -> Agreement:
        with torch.inference_mode():
            exact = LayerEncoder(model, [0, 2]).double()(torch.from_numpy(waveforms).double())
        ours = expected(model, waveforms)
        own = [np.abs(ours[2 * i] - exact[i].numpy()).max() for i in range(2)]
        run = [exact[i].numpy() + times * own[i] for i in range(2)]
        return agreement(encoder, lambda _: run, [waveforms])

    close, far = off_by(3.9), off_by(20.0)
    assert close.rounding and far.share > 5e-6 and not far.rounding
    assert "differs from torch by" in must_be_equal(close, [waveforms])
    with pytest.raises(CheckpointError, match="no rounding"):
        must_be_equal(far, [waveforms])
    with pytest.raises(CheckpointError, match="not finite"):
        agreement(encoder, lambda _: [np.full((1, 27, 48), np.nan)] * 2, [waveforms])


def test_more_weights_than_a_file_of_onnx_holds_are_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime()
    monkeypatch.setattr("fedhubert.formats.onnx_form.MOST_BYTES", 10_000)
    with pytest.raises(CheckpointError, match=r"ONNX file holds 2 GB: .*--format torch_export"):
        _run("--checkpoint", checkpoint, "--format", "onnx", "--out", tmp_path / "out")


def test_what_onnx_needs_is_named_where_it_is_missing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'fedhubert\[onnx\]'"):
        _run("--checkpoint", checkpoint, "--format", "onnx", "--out", tmp_path / "out")


def test_the_least_samples_of_a_frame(tiny_model_config: ModelConfig) -> None:
    assert [least_samples(tiny_model_config, frames) for frames in (1, 2)] == [400, 720]
    ours = tiny_model_config.model_copy(update={"conv_layers": ((8, 7, 4), (8, 85, 80))})
    assert least_samples(ours) == 84 * 4 + 7


def test_a_programs_weights_are_not_taken_for_a_checkpoint(in_8_bits: Path) -> None:
    from fedhubert.formats.importing import import_encoder

    for given in (in_8_bits, in_8_bits / "model.onnx"):
        with pytest.raises(CheckpointError, match=r"is an ONNX graph.*checkpoint that it was made"):
            import_encoder(given)
    torch.export.save(
        torch.export.export(torch.nn.ReLU(), (torch.ones(3),)), in_8_bits.parent / "model.pt2"
    )
    with pytest.raises(CheckpointError, match=r"is a program of torch\.export"):
        import_encoder(in_8_bits.parent / "model.pt2")


def test_facts_are_in_the_file(in_8_bits: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(in_8_bits / "model.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert (facts["least_samples"], facts["sample_rate_hz"], facts["round"]) == (
        "400",
        "16000",
        "1",
    )
    text = json.dumps(sorted(facts)) + str(model.graph.node[0])
    assert "/" + "tmp" not in text and "fedhubert/" not in str(model)
