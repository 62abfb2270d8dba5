"""What encoders take to run: products counted by hand, real processes, and what goes wrong with them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedhubert.cli import main
from fedhubert.config import ModelConfig
from fedhubert.errors import FedhubertError
from fedhubert.evaluation import speed, speed_worker
from fedhubert.evaluation.speed import SpeedSettings, size_of, speeds_of
from fedhubert.models.frames import frames_of
from fedhubert.models.hubert import build_hubert, encoder_parameters


def products_by_hand(config: ModelConfig, samples: int) -> int:
    """Multiplications of convolutions, projection, positions, attention and feed-forward parts."""
    channels, total = 1, 0
    for layer, (out, kernel, _) in enumerate(config.conv_layers, start=1):
        frames = int(frames_of(samples, config.conv_layers[:layer]))
        total += frames * out * channels * kernel
        channels = out
    width, per_group = config.embed_dim, config.embed_dim // config.pos_conv_groups
    # an even kernel gives one frame too many, which is cut off
    positions = frames + 1 - config.pos_conv_kernel % 2
    total += frames * channels * width
    total += positions * width * per_group * config.pos_conv_kernel
    layer_products = 4 * frames * width**2 + 2 * frames**2 * width
    layer_products += 2 * frames * width * config.ffn_dim
    return total + config.num_layers * layer_products


@pytest.mark.parametrize("seconds", [1.0, 10.0])
def test_products_are_those_counted_by_hand(tiny_model_config: ModelConfig, seconds: float) -> None:
    model = build_hubert(tiny_model_config, 0)
    size = size_of("tiny", model, seconds)
    by_hand = products_by_hand(tiny_model_config, round(seconds * 16_000)) / seconds
    assert size.macs_per_s == pytest.approx(by_hand, rel=1e-6)
    assert size.parameters == encoder_parameters(model)


def test_torch_is_measured_in_a_process_of_its_own(tiny_model_config: ModelConfig) -> None:
    models = [("small", build_hubert(tiny_model_config, 0))]
    settings = SpeedSettings(runs=("torch",), threads=(1,), seconds=2.0, repeats=2)
    (found,) = speeds_of(models, settings)
    weights = 4 * encoder_parameters(models[0][1])
    assert (found.model, found.run, found.threads) == ("small", "torch", 1)
    assert weights < found.file_bytes < 1.1 * weights + 20_000
    assert 0 < found.cpu_s < 1.0 and found.wall_s > 0.5 * found.cpu_s
    assert 5e7 < found.peak_bytes < 4e9


@pytest.mark.slow
def test_the_command_measures_models_beside_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript", reason="pip install 'fedhubert[onnx]'")
    flags = ["--seconds", "4", "--repeats", "2", "--threads", "1", "--out", f"{tmp_path / 'f'}"]
    assert main(["bench-model", "model=hubert_tiny", "model=student_tiny", *flags]) == 0
    printed = capsys.readouterr().out
    assert "hubert_tiny, fresh" in printed and "1.04 M" in printed
    figures = json.loads((tmp_path / "f").read_text())
    assert [size["model"] for size in figures["sizes"]] == [
        "hubert_tiny, fresh",
        "student_tiny, fresh",
    ]
    runs = {(case["model"], case["run"]): case for case in figures["speeds"]}
    assert len(runs) == 6
    # nothing but the interpreter, NumPy and onnxruntime
    assert runs["hubert_tiny, fresh", "onnx"]["peak_bytes"] < 2e8
    sizes = [runs["hubert_tiny, fresh", run]["file_bytes"] for run in ("onnx", "int8")]
    assert sizes[1] < 0.5 * sizes[0]


def test_a_graph_is_run_without_torch() -> None:
    code = f"import sys, {speed_worker.__name__}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_process_that_dies_is_said_with_its_last_words(
    tiny_model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: object, runs: object, folder: Path) -> dict[str, Path]:
        folder.mkdir()
        (folder / "torch.safetensors").write_bytes(b"no weights")
        return {"torch": folder / "torch.safetensors"}

    monkeypatch.setattr(speed, "_files", broken)
    with pytest.raises(FedhubertError, match=r"ended with 1: .*[Hh]eader"):
        speeds_of([("broken", build_hubert(tiny_model_config, 0))], SpeedSettings(runs=("torch",)))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--runs", "torch,tflite"], "--runs"),
        (["--threads", "none"], "--threads"),
        (["--threads", "0"], "--threads"),
        (["--repeats", "0"], "--repeats"),
        (["--runs", "torch", "--seconds", "0.01"], "shorter than a frame"),
    ],
)
def test_flags_that_measure_nothing_are_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench-model", "model=student_tiny", *flags]) == 1
    assert message in capsys.readouterr().err
