"""Models that are exported and imported."""

import pytest

from fedhubert.config import ModelConfig
from fedhubert.models.hubert import HubertModel

from .common import SHAPES, trained


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest, tiny_model_config: ModelConfig) -> HubertModel:
    return trained(tiny_model_config.model_copy(update=SHAPES[request.param]))


@pytest.fixture
def base(tiny_model_config: ModelConfig) -> HubertModel:
    return trained(tiny_model_config)
