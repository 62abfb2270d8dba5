"""Models of several sets of labels in other tools' forms: fairseq's and s3prl's have every head, others the encoder and the first."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fedhubert.config import ModelConfig
from fedhubert.formats.export import export
from fedhubert.formats.importing import import_encoder
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.models.hubert import HubertModel

from .common import hubert_local, saved, trained

SETS = {"targets": {"sets": ["mfcc", "static:50"], "label_rate_hz": 100, "num_clusters": 100}}


@pytest.fixture(scope="module")
def model(tiny_model_config: ModelConfig) -> HubertModel:
    return trained(tiny_model_config.model_copy(update={"other_classes": (54, 12)}))


@torch.no_grad()
@pytest.mark.parametrize("form", ["round", "s3prl"])
def test_s3prl_has_a_projection_and_rows_of_each_set(
    tmp_path: Path, model: HubertModel, form: str
) -> None:
    path = saved(tmp_path, model, **SETS)
    if form == "s3prl":
        path = export(load_checkpoint(path), "s3prl", tmp_path / "out") / "hubert_s3prl.pt"
    theirs = hubert_local()(str(path)).eval().model  # loads strictly
    heads = [model.logit_generator, *model.label_heads]
    x = torch.randn(7, model.config.embed_dim)
    rows = [104, 54, 12]
    assert theirs.num_classes == rows and theirs.untie_final_proj
    projected = theirs.final_proj(x).chunk(len(heads), dim=-1)
    for head, frames, labels in zip(
        heads, projected, theirs.label_embs_concat.split(rows), strict=True
    ):
        expected = F.cosine_similarity(frames[:, None], labels[None], dim=-1)
        torch.testing.assert_close(head(x), expected / theirs.logit_temp, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("form", ["round", "s3prl", "fairseq", "torchaudio", "huggingface"])
def test_the_encoder_comes_back_from_every_form(
    tmp_path: Path, model: HubertModel, form: str
) -> None:
    path = saved(tmp_path, model, **SETS)
    if form != "round":
        path = export(load_checkpoint(path), form, tmp_path / "out")
        card = (path / "README.md").read_text()
        assert "| targets.sets | mfcc, static:50 |" in card
    imported = import_encoder(path, like=model.config)
    assert imported.config.other_classes == ()
    ours = model.state_dict()
    for name, tensor in imported.state.items():
        if name.startswith("wav2vec2."):
            torch.testing.assert_close(tensor, ours[name])
    heads = {name for name in imported.state if name.startswith("logit_generator.")}
    assert bool(heads) == (form in ("round", "torchaudio"))  # of several sets none comes back
