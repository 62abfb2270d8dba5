"""The model whose layer gives a second iteration's features: cut down to that layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fedhubert.config import ModelConfig, TargetsConfig
from fedhubert.errors import TargetsError
from fedhubert.formats.importing import import_on_server
from fedhubert.models.frozen import ENCODER, NO_HEAD, UNUSED, FrozenModel, layer_of, short_digest
from fedhubert.models.hubert import HubertModel, build_hubert


@dataclass(frozen=True, eq=False)
class Extractor(FrozenModel):
    """A HuBERT encoder up to one of its layers.

    ``config.num_layers`` is the layer whose output is the feature; ``state`` is the ``state_dict``
    of the encoder (``HubertModel.wav2vec2``); ``key`` has 32 hexadecimal digits.
    """

    noun = "extractor"
    key_noun = "key of an extractor"
    error = TargetsError
    setting = key_setting = "targets.checkpoint"

    new_digest = staticmethod(short_digest)

    @classmethod
    def of(cls, targets: TargetsConfig) -> "Extractor | None":
        """Read the model that ``targets.source=layer:N`` names, cut down to that layer; None for
        other sources.

        Raises:
            CheckpointError, TargetsError: nothing usable at ``targets.checkpoint``, or a model of
                fewer layers.
        """
        if targets.layer is None:
            return None
        imported = import_on_server(str(targets.checkpoint))
        return cls.cut(imported.config, imported.state, targets.layer)

    @classmethod
    def cut(cls, config: ModelConfig, state: Mapping[str, Tensor], layer: int) -> "Extractor":
        """Return what the output of ``layer`` (from 1) of a trained model depends on.

        Raises:
            TargetsError: the model has fewer layers, or weights that do not fit its configuration.
        """
        if layer > config.num_layers:
            raise TargetsError(
                f"targets.source=layer:{layer}, but the model in targets.checkpoint has "
                f"{config.num_layers} layers",
                setting="targets.source",
            )
        kept = {
            name.removeprefix(ENCODER): tensor.float().contiguous()
            for name, tensor in state.items()
            if name.startswith(ENCODER) and layer_of(name) < layer
        }
        fixed = {"name": "extractor", "num_layers": layer, **UNUSED, **NO_HEAD}
        extractor = cls(config.model_copy(update=fixed), kept)
        extractor.build()
        return extractor

    def build(self) -> HubertModel:
        """Return the model in evaluation mode, on these weights (not a copy); raises
        :class:`TargetsError` when they do not fit the shape."""
        model = build_hubert(self.config, seed=0)
        try:
            model.wav2vec2.load_state_dict(dict(self.state), assign=True)  # no copy
        except RuntimeError as error:
            raise TargetsError(
                f"the weights in targets.checkpoint do not fit its configuration: {error}",
                setting="targets.checkpoint",
            ) from None
        return model.eval().requires_grad_(False)


def load_extractor(folder: Path, key: str) -> Extractor:
    """Like :meth:`Extractor.find`; raises :class:`TargetsError` where there is none."""
    extractor = Extractor.find(folder, key)
    if extractor is None:
        raise TargetsError(
            f"{Extractor.file(folder, key)} is missing or damaged; start the run again, which "
            "sends it",
            setting="client.state_dir",
        )
    return extractor
