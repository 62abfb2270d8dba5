"""What models have beside the encoder: the mask embedding, the masked-prediction head, and the head
that tells labels apart.

Shape suffixes: B batch, T 50-Hz frames, D encoder width, M masked frames, C classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskGenerator(nn.Module):
    """Holds the vector that stands in for every masked frame."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.mask_embedding = nn.Parameter(torch.empty(embed_dim))

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Return ``x_BTD`` with its masked frames replaced."""
        return torch.where(mask_BT.unsqueeze(-1), self.mask_embedding.to(x_BTD.dtype), x_BTD)


class LogitGenerator(nn.Module):
    """Cosine similarity of projected frames to one embedding per class, over a temperature.

    fairseq and torchaudio expand each frame against each class to [C + 1, M, final_dim] before
    taking the similarity. Of unit vectors it is one matrix product, with the same loss and
    gradients.
    """

    def __init__(
        self, embed_dim: int, num_classes: int, final_dim: int, temperature: float
    ) -> None:
        super().__init__()
        self.label_embeddings = nn.Parameter(torch.empty(num_classes, final_dim))
        self.final_proj = nn.Linear(embed_dim, final_dim)
        self.temperature = temperature

    def forward(self, x_MD: Tensor) -> Tensor:
        """Return logits [M, C], in float32 at least."""
        projected = at_least_float32(self.final_proj(x_MD))
        with torch.autocast(projected.device.type, enabled=False):
            frames = F.normalize(projected, dim=-1, eps=1e-8)
            classes = F.normalize(at_least_float32(self.label_embeddings), dim=-1, eps=1e-8)
            return frames @ classes.T / self.temperature


class ClassifyHead(nn.Module):
    """From layers [b, T, D] to scores of labels [b, C]."""

    def __init__(self, num_layers: int, width: int, projection: int, labels: int) -> None:
        super().__init__()
        self.layer_weights = nn.Parameter(torch.zeros(num_layers + 1))
        self.projector = nn.Linear(width, projection)
        self.classifier = nn.Linear(projection, labels)

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """Return the scores, in float32 at least."""
        weights = self.layer_weights.softmax(0)
        mixed_bTD = (torch.stack(list(layers)) * weights.view(-1, 1, 1, 1)).sum(0)
        return at_least_float32(self.classifier(self.projector(mixed_bTD).mean(1)))


def own_heads(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy on the CPU of what an objective added to ``model``, by name."""
    return {
        name: tensor.detach().to("cpu", copy=True)
        for name, tensor in model.state_dict().items()
        if is_objectives_own(name)
    }


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if it is of a narrower type."""
    return x.float() if x.dtype.itemsize < 4 else x


def is_objectives_own(name: str) -> bool:
    """Whether a tensor belongs to a head that an objective added to the model: to a module whose
    name ends in ``_head`` or ``_heads``."""
    return name.split(".")[0].endswith(("_head", "_heads"))
