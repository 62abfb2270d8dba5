"""Models that are exported and imported."""

from pathlib import Path

import pytest

from fedhubert.config import ModelConfig
from fedhubert.models.hubert import HubertModel

from .common import SHAPES, saved, trained


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest, tiny_model_config: ModelConfig) -> HubertModel:
    return trained(tiny_model_config.model_copy(update=SHAPES[request.param]))


@pytest.fixture
def base(tiny_model_config: ModelConfig) -> HubertModel:
    return trained(tiny_model_config)


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_model_config: ModelConfig) -> Path:
    return saved(tmp_path / "run" / "checkpoints", trained(tiny_model_config))
