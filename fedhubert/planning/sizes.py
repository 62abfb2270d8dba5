"""Bytes: on the wire, in memory, on disks. All arithmetic over the number of parameters."""

import math

from fedhubert.federation.engine.simulation import num_supernodes, object_store_bytes
from fedhubert.federation.strategies.strategy import strategy_of
from fedhubert.federation.updates.codecs import num_bytes
from fedhubert.federation.updates.sketches import sketch_width
from fedhubert.objectives.spec import spec_of
from fedhubert.planning.inputs import ClientAudio, Inputs
from fedhubert.targets.mfcc import NUM_FEATURES
from fedhubert.training.muon import numel_of_matrices

_SERVER_BYTES, _SERVER_BYTES_EACH = 400e6, 19.0
"""Private memory of the server that adds updates up, without a model and per parameter: measured by
tests/benchmarks/rounds.py."""
_STATE_VERSIONS = 4
"""Versions of a partition's state that its site keeps at most (see
:mod:`fedhubert.clients.state`)."""


def model_bytes(inputs: Inputs) -> int:
    """Return the bytes of the model as it travels to a node."""
    return num_bytes(inputs.config.federated.broadcast_codec, inputs.layout.shapes)


def reply_bytes(inputs: Inputs, clients: int) -> int:
    """Return the bytes of a node's reply for so many clients: an encoded update, or the exact sum
    of several; and sketches of each."""
    update = (
        num_bytes(inputs.config.federated.update_codec, inputs.layout.shapes)
        if clients == 1
        else 8 * inputs.numel
    )
    return update + clients * 4 * sketch_width(inputs.numel) * inputs.config.sends_sketches


def server_memory(inputs: Inputs) -> float:
    """Return the bytes of the server's process and, in a simulation, of Ray's object store."""
    federated = inputs.config.federated
    memory = (
        _SERVER_BYTES
        + _SERVER_BYTES_EACH * inputs.numel
        + 4.0 * inputs.all_parameters
        + _server_state(inputs)
    )
    memory += strategy_of(federated).round_bytes(inputs.numel)
    if not inputs.rates.on_sites:
        sharded = num_supernodes(inputs.config) < len(inputs.clients)
        memory += object_store_bytes(
            inputs.numel, inputs.config.simulation.num_workers, sharded=sharded
        )
    return memory


def client_memory(inputs: Inputs) -> float:
    """Return the bytes of weights, gradients and optimiser on a client's device, and of a teacher;
    activations come on top."""
    anchor = 4 if strategy_of(inputs.config.federated).client_terms().proximal_mu else 0
    beside = spec_of(inputs.config.task).device_bytes(inputs.teacher_bytes)
    return 4.0 * inputs.all_parameters + inputs.numel * (4 + anchor) + _optimizer(inputs) + beside


def written(inputs: Inputs, number: int) -> int:
    """Return the bytes that round ``number`` writes: its checkpoint, if it has one, and the best
    model, taken to be better every time."""
    checkpoint, last = inputs.config.checkpoint, inputs.config.federated.num_rounds
    due = number == last or number % checkpoint.every == 0
    return (
        due * _checkpoint(inputs)
        + (checkpoint.keep_best and number > 1) * 4 * inputs.all_parameters
    )


def checkpoint_disk(inputs: Inputs) -> int:
    """Return the bytes of the checkpoints that are kept, with the one that is being written."""
    checkpoint, rounds = inputs.config.checkpoint, inputs.config.federated.num_rounds
    kept = min(checkpoint.keep_last + 1, math.ceil(rounds / checkpoint.every))
    return (
        kept * _checkpoint(inputs)
        + (checkpoint.keep_best and rounds > 1) * 4 * inputs.all_parameters
    )


def site_disk(inputs: Inputs, client: ClientAudio) -> float:
    """Return the bytes that a client's site keeps: labels, k-means' sample of MFCC, optimisers and
    left-over rounding, a teacher and its outputs."""
    config, task, targets = inputs.config, inputs.config.task, inputs.config.targets
    disk = 0.0
    if task.needs_labels and targets.kind == "kmeans":
        width = 2 if targets.num_clusters <= 2**15 else 4
        disk += width * targets.label_rate_hz * (client.train_s + client.validation_s)
        if not targets.layer:
            disk += (
                4
                * NUM_FEATURES
                * min(targets.max_frames_per_client, targets.label_rate_hz * client.train_s)
            )
    kept = _optimizer(inputs) if config.client.optimizer_policy == "keep" else 0
    kept += 4 * inputs.numel if config.federated.update_codec == "int8" else 0
    disk += _STATE_VERSIONS * kept
    return disk + spec_of(task).site_bytes(inputs.teacher_bytes)


def _optimizer(inputs: Inputs) -> int:
    """Bytes of a local optimiser's state."""
    settings, numel = inputs.config.client, inputs.numel
    if settings.optimizer == "muon":
        return 8 * numel - 4 * numel_of_matrices(inputs.layout)
    return numel * (8 if settings.optimizer == "adamw" else 4 if settings.momentum else 0)


def _server_state(inputs: Inputs) -> int:
    """Bytes of what the strategy keeps between rounds."""
    return 4 * strategy_of(inputs.config.federated).state_numel(inputs.layout)


def _checkpoint(inputs: Inputs) -> int:
    """A round's checkpoint with what resuming needs."""
    return 4 * inputs.all_parameters + _server_state(inputs)
