import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import fedhubert.formats
from fedhubert.cli import main
from fedhubert.config import ModelConfig
from fedhubert.errors import CheckpointError
from fedhubert.formats import FORMATS
from fedhubert.formats.export import export as export_to
from fedhubert.formats.importing import import_encoder
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.models.hubert import build_hubert

from .common import FILES, run_export, saved, trained


def test_config_keeps_the_recipe_in_huggingfaces_names(
    tmp_path: Path, tiny_model_config: ModelConfig
) -> None:
    transformers = pytest.importorskip("transformers")
    rates = {
        "dropout": 0.11,
        "attention_dropout": 0.12,
        "activation_dropout": 0.13,
        "feature_dropout": 0.14,
        "layer_drop": 0.15,
    }
    model = build_hubert(tiny_model_config.model_copy(update=rates), 0)
    out = export_to(load_checkpoint(saved(tmp_path, model)), "huggingface", tmp_path / "hf")
    config = transformers.HubertConfig.from_pretrained(out)
    named = (
        "hidden_dropout",
        "attention_dropout",
        "activation_dropout",
        "feat_proj_dropout",
        "layerdrop",
    )
    assert [getattr(config, name) for name in named] == list(rates.values())
    extractor = transformers.AutoFeatureExtractor.from_pretrained(out)
    assert (extractor.do_normalize, extractor.sampling_rate, extractor.return_attention_mask) == (
        False,
        16000,
        True,
    )
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert not any("logit" in name for name in file.keys())  # noqa: SIM118 (not a dict)


@pytest.mark.parametrize(
    "given", ["run", "run/checkpoints", "run/checkpoints/round_001_checkpoint.pt"]
)
def test_command_takes_a_file_or_a_folder(
    checkpoint: Path, tmp_path: Path, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    assert run_export("--checkpoint", tmp_path / given, "--out", out) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
    printed = capsys.readouterr().out
    assert f"{checkpoint} -> {out}: {', '.join(FILES)}" in printed
    assert printed.rstrip().endswith(f'transformers.HubertModel.from_pretrained("{out}")')


def test_folder_in_use_is_left_alone_unless_forced(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert run_export("--checkpoint", checkpoint, "--out", out) == 0  # an empty folder is free
    (out / "notes.txt").write_text("mine")
    (out / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"out is not empty.*--force"):
        run_export("--checkpoint", checkpoint, "--out", out)
    assert (out / "config.json").read_text() == "{}"
    assert run_export("--checkpoint", checkpoint, "--out", out, "--force") == 0
    assert json.loads((out / "config.json").read_text())["model_type"] == "hubert"
    assert (out / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "notes.txt"])


def test_out_that_cannot_be_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file is a file"):
        run_export("--checkpoint", checkpoint, "--out", tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"cannot write to .*file/out"):
        run_export("--checkpoint", checkpoint, "--out", tmp_path / "file" / "out")


@pytest.mark.parametrize("before", [None, "old"])
def test_failure_while_writing_leaves_nothing_half_done(
    checkpoint: Path, tmp_path: Path, before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if before is not None:
        out.mkdir()
        (out / "model.safetensors").write_text(before)
    listing = sorted(tmp_path.iterdir())
    monkeypatch.setattr(
        os,
        "fsync",
        lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(CheckpointError, match="No space left") as caught:
        run_export("--checkpoint", checkpoint, "--out", out, "--force")
    assert caught.value.setting == "out"
    assert sorted(tmp_path.iterdir()) == listing
    assert before is None or [path.read_text() for path in out.iterdir()] == [before]


def test_checkpoints_that_do_not_fit_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    content = load_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match="no `model`"):
        export_to(content | {"config": {}}, "huggingface", tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"weights hold `student\.weight`"):
        export_to(
            content | {"model": content["model"] | {"student.weight": torch.ones(1)}},
            "huggingface",
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, fedhubert.commands.export; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_formats_that_cannot_be_exact_are_refused_by_name(
    checkpoint: Path,
    tmp_path: Path,
    tiny_model_config: ModelConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run_export("--checkpoint", checkpoint, "--format", "distiller", "--out", tmp_path / "out")
    assert (
        "no LayerNorm before the projection" in (said := capsys.readouterr().err.replace("\n", " "))
        and "--format s3prl" in said
    )
    with pytest.raises(SystemExit):
        run_export("--checkpoint", checkpoint, "--format", "tflite", "--out", tmp_path / "out")
    assert (
        "'tflite' is none of huggingface, s3prl, torchaudio, fairseq, onnx"
        in capsys.readouterr().err
    )
    as_wide = load_checkpoint(
        saved(tmp_path / "wide", trained(tiny_model_config.model_copy(update={"embed_dim": 32})))
    )
    for format_name in ("s3prl", "fairseq"):
        with pytest.raises(
            CheckpointError, match=r"both 32 wide .*--format huggingface or torchaudio"
        ):
            export_to(as_wide, format_name, tmp_path / "out")
        with pytest.raises(CheckpointError, match=r"weights hold `student\.weight`"):
            content = load_checkpoint(checkpoint)
            export_to(
                content | {"model": content["model"] | {"student.weight": torch.ones(1)}},
                format_name,
                tmp_path / "out",
            )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_mode_that_the_umask_says(
    checkpoint: Path, tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        for format_name in FORMATS:
            run_export(
                "--checkpoint", checkpoint, "--format", format_name, "--out", tmp_path / "new"
            )
            run_export(
                *("--checkpoint", checkpoint, "--format", format_name),
                *("--out", tmp_path / "new", "--force"),
            )
            modes = {
                file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "new").iterdir()
            }
            assert set(modes.values()) == {0o666 & ~umask}, modes
            assert (tmp_path / "new").stat().st_mode & 0o777 == 0o777 & ~umask
            shutil.rmtree(tmp_path / "new")
    finally:
        os.umask(before)


def test_the_chapters_first_command_works(
    tmp_path: Path, tiny_model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    chapter = Path(fedhubert.formats.__file__).with_name("README.md").read_text()
    program, *arguments = shlex.split(chapter.split("```bash\n")[1].splitlines()[0])
    monkeypatch.chdir(tmp_path)
    saved(Path("runs/calls/checkpoints"), trained(tiny_model_config))
    assert program == "fedhubert" and main(arguments) == 0
    assert sorted(path.name for path in Path("calls-hf").iterdir()) == FILES


@pytest.mark.parametrize("format_name", FORMATS)
def test_heads_that_no_objective_trained_stay_out(
    tmp_path: Path, tiny_model_config: ModelConfig, format_name: str
) -> None:
    """A student that learns layers has HuBERT's head and mask embedding as they were drawn."""
    model = trained(tiny_model_config)
    teacher = {"name": "distill", "teacher": "x", "layers": [1]}
    for weights, kept in (({"layers": 1.0}, False), ({"layers": 1.0, "logits": 1.0}, True)):
        path = saved(tmp_path / str(kept), model, task=teacher | {"objectives": weights})
        out = export_to(load_checkpoint(path), format_name, tmp_path / f"out{kept}")
        state = import_encoder(out).state
        head = model.logit_generator.final_proj.weight
        found = state.get("logit_generator.final_proj.weight")
        mask = state.get("mask_generator.mask_embedding")
        if format_name in ("s3prl", "fairseq"):  # they need one: a neutral one
            assert found is not None and mask is not None
            assert bool(torch.equal(found, head)) is kept and bool(mask.any()) is kept
        else:
            assert (found is not None) is (kept and format_name == "torchaudio")
            assert (mask is not None) is kept


def test_the_printed_python_loads_whatever_the_folder_is_called(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'it\'s "my" model\\1'
    assert run_export("--checkpoint", checkpoint, "--format", "torchaudio", "--out", out) == 0
    code = capsys.readouterr().out.split("load it with ")[1]
    assert isinstance(eval(code, {"runpy": runpy}), torch.nn.Module)
