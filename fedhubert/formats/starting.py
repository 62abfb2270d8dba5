"""An imported encoder as the start of a model (``init_from``)."""

import logging
from dataclasses import dataclass
from typing import Any

from fedhubert.errors import CheckpointError
from fedhubert.formats.importing import ImportedEncoder, import_on_server
from fedhubert.formats.sizes import STRUCTURE
from fedhubert.models.adapters import is_adapters
from fedhubert.models.hubert import HubertModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_into` did: the model's tensors that were ``used`` from the file, and those
    that ``missed`` and stay as they were."""

    used: tuple[str, ...]
    missed: tuple[str, ...]


def load_into(model: HubertModel, imported: ImportedEncoder) -> LoadReport:
    """Copy an imported encoder into ``model``, and the mask embedding and the head where the file
    has them in the model's sizes.

    Raises:
        CheckpointError: the encoder has other sizes than the model; every one that differs is
            named.
    """
    ours, theirs = model.config, imported.config
    wrong = [name for name in STRUCTURE if getattr(ours, name) != getattr(theirs, name)]
    if wrong:
        listed = ", ".join(
            f"model.{name} is {getattr(ours, name)} and the file has {getattr(theirs, name)}"
            for name in wrong
        )
        raise CheckpointError(
            f"the imported encoder does not fit the model: {listed}", setting=f"model.{wrong[0]}"
        )
    state = model.state_dict()
    fitting = {
        name: tensor for name, tensor in imported.state.items() if tensor.shape == state[name].shape
    }
    head = {name for name in state if name.startswith("logit_generator.")}
    if not head <= fitting.keys():  # half a head is none
        fitting = {name: tensor for name, tensor in fitting.items() if name not in head}
    model.load_state_dict(state | fitting)
    return LoadReport(
        tuple(name for name in state if name in fitting),
        tuple(name for name in state if name not in fitting and not is_adapters(name)),
    )


def start_from(model: HubertModel, source: str) -> dict[str, Any]:
    """Start ``model`` from the encoder at ``source`` (``init_from``), say so in the log, and return
    its lineage as plain values.

    Raises:
        CheckpointError: it cannot be read, or has other sizes than the model.
    """
    imported = import_on_server(source, like=model.config)
    report = load_into(model, imported)
    log.info(
        "starting from %s (%s, encoder SHA-256 %s): %d tensors used, %d missed%s",
        source,
        imported.source_format,
        imported.sha256[:12],
        len(report.used),
        len(report.missed),
        f" ({', '.join(report.missed)})" if report.missed else "",
    )
    if imported.assumed:
        log.warning(
            "%s does not say %s: taken from the configuration", source, ", ".join(imported.assumed)
        )
    if imported.normalize:
        log.warning(
            "%s asks for normalised waveforms (zero mean, unit variance); here they go in as they "
            "are",
            source,
        )
    return {
        "format": imported.source_format,
        "encoder_sha256": imported.sha256,
        "missed": list(report.missed),
    }
