"""Checkpoint files: our own round's, and those of HuggingFace, s3prl, torchaudio and fairseq, read
and written; model cards."""

FORMATS = {
    "huggingface": 'transformers.HubertModel.from_pretrained("{out}")',
    "s3prl": 's3prl.upstream.hubert.hubconf.hubert_local("{out}/hubert_s3prl.pt")',
    "torchaudio": 'runpy.run_path("{out}/load.py")["load_model"]()',
    "fairseq": 'fairseq.checkpoint_utils.load_model_ensemble_and_task(["{out}/hubert_fairseq.pt"])',
}
"""Formats, each with the Python that loads it; ``{out}`` is the folder."""

REFUSED = {
    "distiller": "s3prl's distiller_local has no LayerNorm before the projection, and these encoders have one: no such file computes the same. "
    "Use `--format s3prl`: it loads with hubert_local, students too"
}
"""Formats that people look for and that cannot hold these models exactly, each with the reason and
the remedy."""
