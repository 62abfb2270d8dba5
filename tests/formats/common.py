"""Models and checkpoints that the tests of formats share."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhubert.commands import export
from fedhubert.config import ModelConfig
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.runs.store import RoundStore

SHAPES: dict[str, dict[str, Any]] = {
    "base": {},
    "large": {"layer_norm_first": True, "conv_norm": "layer_norm", "final_dim": 48},
    "mixed": {"layer_norm_first": True, "conv_norm": "group_norm"},
    "other": {
        "conv_layers": (
            (24, 10, 5),
            (32, 3, 2),
            (32, 3, 2),
            (32, 3, 2),
            (32, 3, 2),
            (32, 2, 2),
            (40, 2, 2),
        ),
        "conv_norm": "layer_norm",
        "conv_bias": True,
        "num_layers": 3,
        "pos_conv_kernel": 31,
        "pos_conv_groups": 4,
        "layer_drop": 0.25,
    },
}
"""What differs from the ``tiny_model_config``: post-norm as in base, pre-norm as in large, and what no released model has."""


def trained(config: ModelConfig) -> HubertModel:
    """A model none of whose weights is at its initial value, a norm's 1 or a bias's 0."""
    model = build_hubert(config, 0)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return model.eval()


def saved(
    folder: Path,
    model: HubertModel,
    number: int = 1,
    metrics: dict[str, Any] | None = None,
    **run: Any,
) -> Path:
    """Save ``model`` as a round; ``run`` are further parts of the run's configuration."""
    config = {"model": model.config.model_dump(mode="json"), **run}
    return RoundStore(folder).save(
        number, model.state_dict(), config=config, federated_metrics=metrics or {}, resume=None
    )


def hubert_local() -> Any:
    """s3prl's own loader; the test is skipped where s3prl is not installed."""
    reason = "s3prl is not installed, whose loader this compares with: pip install s3prl==0.4.18"
    return pytest.importorskip("s3prl.upstream.hubert.hubconf", reason=reason).hubert_local


FILES = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]


def run_export(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    return export.run(parser.parse_args([str(argument) for argument in arguments]))
