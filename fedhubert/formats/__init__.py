"""Checkpoint files: our own round's, and those of HuggingFace, s3prl, torchaudio and fairseq, read
and written; programs for onnxruntime and torch; model cards."""

import json
from pathlib import Path

FORMATS = {
    "huggingface": ("transformers.HubertModel.from_pretrained({})", ""),
    "s3prl": ("s3prl.upstream.hubert.hubconf.hubert_local({})", "hubert_s3prl.pt"),
    "torchaudio": ('runpy.run_path({})["load_model"]()', "load.py"),
    "fairseq": (
        "fairseq.checkpoint_utils.load_model_ensemble_and_task([{}])",
        "hubert_fairseq.pt",
    ),
}
"""Formats, each with the Python that loads it and the file in its folder that this takes ("": the
folder)."""

PROGRAMS = {
    "onnx": ("onnxruntime.InferenceSession({})", "model.onnx"),
    "torch_export": ("torch.export.load({}).module()", "model.pt2"),
}
"""The same of exports that run by themselves: they have no weights to go on training from."""


def loading(format_name: str, out: Path, pipeline: str = "") -> str:
    """Return the Python that loads an export from its folder, whatever is in the folder's name;
    ``pipeline``: HuggingFace's name of what a fine-tuned model does."""
    code, file = (FORMATS | PROGRAMS)[format_name]
    if pipeline:
        code = f'transformers.pipeline("{pipeline}", {{}})'
    return code.format(json.dumps(str(out / file), ensure_ascii=False))


REFUSED = {
    "distiller": "s3prl's distiller_local has no LayerNorm before the projection, and these "
    "encoders have one: no such file computes the same. "
    "Use `--format s3prl`: it loads with hubert_local, students too",
    "torchscript": (
        "torch has given TorchScript up in favour of torch.export. Use `--format torch_export`, or "
        "`--format onnx`"
    ),
}
"""Formats that people look for and that cannot hold these models exactly, each with the reason and
the remedy."""
