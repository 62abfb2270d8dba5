"""What of a model is trained, where that is not all of it: the rest stays as the run began, does
not travel, and is brought to a site once."""

from dataclasses import dataclass

from torch import nn

from fedhubert.config import Config, ModelConfig
from fedhubert.errors import CheckpointError
from fedhubert.models.adapters import is_adapters
from fedhubert.models.frozen import ENCODER, FrozenModel, layer_of, short_digest
from fedhubert.models.hubert import HubertModel


def freeze(model: HubertModel, trainable: str) -> None:
    """Let only what ``model.trainable`` names be trained, of what is trained now.

    Whatever is not the encoder's always is: the mask embedding and the heads. Of the encoder
    ``head`` trains nothing, ``bias`` the biases (BitFit, Ben Zaken et al. 2022, section 3),
    ``adapters`` those of :mod:`fedhubert.models.adapters`, and ``top:N`` the last N layers, with
    the norm that ends a ``layer_norm_first`` encoder.
    """
    if trainable == "all":
        return
    for name, parameter in model.named_parameters():
        if name.startswith(ENCODER) and not _is_trained(name, trainable, model.config):
            parameter.requires_grad_(False)


def _is_trained(name: str, trainable: str, config: ModelConfig) -> bool:
    if trainable == "head":
        return False
    if trainable == "bias":
        return name.endswith(".bias")
    if trainable == "adapters":
        return is_adapters(name)
    first = config.num_layers - int(trainable.removeprefix("top:"))
    ends = f"{ENCODER}encoder.transformer.layer_norm."
    return layer_of(name) >= first or (config.layer_norm_first and name.startswith(ends))


@dataclass(frozen=True, eq=False)
class FrozenPart(FrozenModel):
    """The parameters of a model that a run does not train; ``state`` has the names of
    :class:`~fedhubert.models.hubert.HubertModel`, and ``key`` 32 hexadecimal digits.

    It travels and is kept as a model that gives features is.
    """

    noun = "frozen part of the model"
    key_noun = "key of a frozen model"
    error = CheckpointError
    setting = key_setting = "model.trainable"

    new_digest = staticmethod(short_digest)

    @classmethod
    def of(cls, model: HubertModel) -> "FrozenPart | None":
        """Return what ``model.trainable`` has frozen of a model; None where that is nothing."""
        if model.config.trainable == "all":
            return None
        state = {
            name: parameter.detach().float().cpu().contiguous()
            for name, parameter in _frozen(model).items()
        }
        return cls(model.config.model_copy(update={"frozen_part": None}), state)

    def load_into(self, model: HubertModel) -> None:
        """Copy the part to where it is frozen in a model; raises :class:`CheckpointError` where it
        is another part, by the first name that differs."""
        frozen = _frozen(model)
        shapes = {name: parameter.shape for name, parameter in frozen.items()}
        found = {name: tensor.shape for name, tensor in self.state.items()}
        if shapes != found:
            wrong = min(name for name, _ in shapes.items() ^ found.items())
            raise CheckpointError(
                f"the frozen part is another model's: {wrong} differs", setting="model.trainable"
            )
        for name, parameter in frozen.items():
            parameter.data.copy_(self.state[name])


def with_frozen_part(config: Config, part: FrozenPart | None) -> Config:
    """Return a configuration that tells the sites which part they need."""
    if part is None:
        return config
    model = config.model.model_copy(update={"frozen_part": part.key})
    return config.model_copy(update={"model": model})


def _frozen(model: HubertModel) -> dict[str, nn.Parameter]:
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    }
