"""A client's own head (``task.head=personal``) on the encoder that all have trained: at its site,
which alone has it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fedhubert.errors import CheckpointError, ConfigError
from fedhubert.formats.answers import answers_of
from fedhubert.formats.source import Source
from fedhubert.models.heads import is_objectives_own


def with_head(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return a round ``checkpoint`` with the head that a site has kept at ``path``, as if it had
    been everybody's.

    Raises:
        ConfigError: the run's heads are not personal.
        CheckpointError: the file is no state with a head, or its head is another task's.
    """
    if Source.of(checkpoint).learned.shares_head:
        raise ConfigError(
            f"--head {path}: the run has no personal heads (task.head); leave it out",
            setting="--head",
        )
    try:
        head = torch.load(path, map_location="cpu", weights_only=True)["head"]
        if not head or not all(map(is_objectives_own, head)):
            raise ValueError
    except Exception as error:  # a damaged file: torch raises many kinds
        reason = "is not there" if isinstance(error, FileNotFoundError) else "has no head"
        raise CheckpointError(
            f"{path} {reason}: name a round of the run in the site's state folder, "
            "runs/RUN/partition_N/round_R.pt",
            setting="--head",
        ) from None
    run = checkpoint["config"]
    whole = {
        **checkpoint,
        "model": {**checkpoint["model"], **head},
        "config": {**run, "task": {**run["task"], "head": "shared"}},
    }
    source = Source.of(whole)
    answers = answers_of(source)
    if answers is None:
        raise CheckpointError(f"{path} has the head of another task", setting="--head")
    answers.head(source.heads)  # whether it fits
    return whole
