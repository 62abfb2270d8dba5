"""Batch plans of made-up lengths."""

from typing import Any

from fedhubert.config import DataConfig

RATE = 16000


def data_config(**values: Any) -> DataConfig:
    return DataConfig(
        **{"min_seconds": 0.5, "max_seconds": 2.0, "batch_seconds": 4.0, "num_workers": 0, **values}
    )
