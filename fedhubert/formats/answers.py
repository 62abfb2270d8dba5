"""What the scores of fine-tuned models stand for, as programs say it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fedhubert.data.texts import BLANK, NEVER_WRITTEN, SPACE, Vocabulary
from fedhubert.errors import CheckpointError
from fedhubert.formats.source import Source
from fedhubert.models.heads import ClassifyHead


@dataclass(frozen=True)
class Answers:
    """Of a fine-tuned model.

    Attributes:
        name: ``ctc`` or ``classify``.
        said: What ``file`` holds: the labels in the order of their scores, or the tokens, with the
            places of the blank, of the space, and of those that are never written.
    """

    name: str
    said: Mapping[str, Any]

    @property
    def file(self) -> str:
        """The name of the file beside the program."""
        return "labels.json" if self.name == "classify" else "vocabulary.json"

    @property
    def as_json(self) -> str:
        """What is said, in one line of ASCII."""
        return json.dumps(self.said)

    def write(self, folder: Path) -> None:
        """Write the file."""
        text = json.dumps(self.said, ensure_ascii=False, indent=1)
        (folder / self.file).write_text(f"{text}\n", encoding="utf-8")

    def head(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Return the head with its weights.

        Raises:
            CheckpointError: they are others than the task has.
        """
        own = {
            name.partition(".")[2]: tensor
            for name, tensor in tensors.items()
            if name.startswith(f"{self.name}_head.")
        }
        try:
            head = self._empty(own)
            head.load_state_dict(own)
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"the head does not fit task={self.name}: {error}") from None
        return head

    def _empty(self, own: Mapping[str, Tensor]) -> nn.Module:
        if self.name == "ctc":
            return nn.Linear(own["weight"].shape[1], len(self.said["tokens"]))
        projection, width = own["projector.weight"].shape
        layers, labels = len(own["layer_weights"]) - 1, len(self.said["labels"])
        return ClassifyHead(layers, width, projection, labels)


def answers_of(source: Source) -> Answers | None:
    """Return what a model answers, by its tensors; None for one that was not fine-tuned, or whose
    heads are not in its checkpoint."""
    names, task = {name.partition(".")[0] for name in source.heads}, source.run.get("task", {})
    if "classify_head" in names:
        return Answers("classify", {"labels": list(task["labels"])})
    if "ctc_head" in names:
        tokens = Vocabulary(task["vocabulary"]).tokens
        places = {"blank": BLANK, "space": SPACE, "never_written": NEVER_WRITTEN}
        return Answers("ctc", {"tokens": list(tokens), **places})
    return None
