"""Checkpoint files: our own round's, and those of HuggingFace, s3prl, torchaudio and fairseq, read
and written; model cards."""

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


def loading(format_name: str, out: Path) -> str:
    """Return the Python that loads an export from its folder, whatever is in the folder's name."""
    code, file = FORMATS[format_name]
    return code.format(json.dumps(str(out / file), ensure_ascii=False))


REFUSED = {
    "distiller": "s3prl's distiller_local has no LayerNorm before the projection, and these "
    "encoders have one: no such file computes the same. "
    "Use `--format s3prl`: it loads with hubert_local, students too"
}
"""Formats that people look for and that cannot hold these models exactly, each with the reason and
the remedy."""
