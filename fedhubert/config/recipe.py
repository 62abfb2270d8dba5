"""Several runs in a row."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import Field, model_validator

from fedhubert.config.base import Model

PLACEHOLDER = re.compile(r"\{([a-z0-9][a-z0-9_-]*)\}")
"""In a recipe's overrides: the last checkpoint of another stage."""


class Stage(Model):
    """One step of a recipe: a training run (``overrides`` of ``fedhubert train``), or an export of
    an earlier stage's last checkpoint.

    ``{previous}`` and ``{NAME}`` in overrides stand for the last checkpoint of the training stage
    before, or of that name.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    """Of the stage, its folder, and its checkpoint in later stages' overrides."""

    overrides: tuple[str, ...] = ()
    """What its training takes, as on the command line of ``fedhubert train``; empty for an
    export."""

    export: str | None = None
    """Format to export to (``fedhubert export --format``) instead of training."""

    of: str = "previous"
    """Stage whose last checkpoint is exported."""

    @property
    def needs(self) -> list[str]:
        """The stages whose checkpoints this one takes."""
        return (
            [self.of]
            if self.export
            else [name for text in self.overrides for name in PLACEHOLDER.findall(text)]
        )


class Recipe(Model):
    """Stages in the order in which they run."""

    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    """What is run, one after the other."""

    @model_validator(mode="after")
    def _stages_in_order(self) -> Self:
        trained: list[str] = []
        for number, stage in enumerate(self.stages):
            if stage.name in [*(other.name for other in self.stages[:number]), "previous"]:
                raise ValueError(f"stage {stage.name!r}: the name is taken")
            if bool(stage.overrides) == bool(stage.export):
                raise ValueError(f"stage {stage.name!r} needs either overrides or export")
            unknown = [
                name
                for name in stage.needs
                if name not in trained and not (name == "previous" and trained)
            ]
            if unknown:
                raise ValueError(
                    f"stage {stage.name!r} takes the checkpoint of {unknown[0]!r}, which is no "
                    "training stage before it"
                )
            if stage.overrides:
                trained.append(stage.name)
        return self
