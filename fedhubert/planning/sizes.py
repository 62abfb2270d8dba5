"""Bytes: on the wire, in memory, on disks. All arithmetic over the number of parameters."""

from fedhubert.federation.engine.simulation import num_supernodes, object_store_bytes
from fedhubert.federation.server import space
from fedhubert.federation.strategies.strategy import strategy_of
from fedhubert.federation.updates.codecs import num_bytes
from fedhubert.federation.updates.ring import RING_BITS
from fedhubert.federation.updates.sketches import sketch_width
from fedhubert.objectives.spec import spec_of
from fedhubert.planning import secure
from fedhubert.planning.inputs import ClientAudio, Inputs
from fedhubert.training.ranks import BUCKET_BYTES

_SERVER_BYTES, _SERVER_BYTES_EACH = 400e6, 19.0
"""Private memory of the server that adds updates up, without a model and per parameter: measured by
tests/benchmarks/rounds.py."""
_CLIENT_BYTES = 2000.0
"""Of each client that there is, and what it has said: measured by tests/benchmarks/cohorts.py."""
_ROW_BYTES, _MAPPED_ROW_BYTES = 370.0, 195.0
"""Of each row of the manifest: measured by tests/benchmarks/corpora.py."""


def model_bytes(inputs: Inputs) -> int:
    """Return the bytes of the model as it travels to a node."""
    return num_bytes(inputs.config.federated.broadcast_codec, inputs.layout.shapes)


def reply_bytes(inputs: Inputs, clients: int) -> int:
    """Return the bytes of a node's reply for so many clients: an encoded update, or the exact sum
    of several; and sketches of each. With secure sums: its masked part of a round's."""
    if inputs.config.secure.enabled:
        cohort = inputs.config.federated.clients_per_round
        return secure.masked_bytes(inputs, cohort, clients)
    codec = inputs.config.federated.update_codec
    update = (
        num_bytes(codec, inputs.layout.shapes)
        if clients == 1 or codec in RING_BITS
        else 8 * inputs.numel
    )
    return update + clients * 4 * sketch_width(inputs.numel) * inputs.config.sends_sketches


def server_memory(inputs: Inputs) -> float:
    """Return the bytes of the server's process and, in a simulation, of Ray's object store, which
    goes on to fresh memory up to its size before it uses again what was freed."""
    federated = inputs.config.federated
    memory = (
        _SERVER_BYTES
        + _SERVER_BYTES_EACH * inputs.numel
        + 4.0 * inputs.all_parameters
        + space.server_state_bytes(inputs.config, inputs.layout)
        + _CLIENT_BYTES * len(inputs.clients)
    )
    memory += strategy_of(federated).round_bytes(inputs.numel)
    if not inputs.rates.on_sites:
        nodes, workers = num_supernodes(inputs.config), inputs.config.simulation.num_workers
        sharded = nodes < len(inputs.clients)
        sharded |= inputs.config.secure.enabled  # 8 bytes a parameter, too
        replies = min(nodes, federated.clients_per_round)
        put = inputs.numel * (4 + replies * (8 if sharded else 4)) * federated.num_rounds
        memory += min(put, object_store_bytes(inputs.numel, workers, sharded=sharded))
    return memory


def data_memory(inputs: Inputs) -> tuple[float, float]:
    """Return the bytes that the manifest and its cut into clients take in the first process of a
    site, which reads it, and in a later one, which maps what the first has written."""
    return _ROW_BYTES * inputs.rows, _MAPPED_ROW_BYTES * inputs.rows


def client_memory(inputs: Inputs) -> float:
    """Return the bytes of weights, gradients and optimiser on each of a client's devices, and of a
    teacher; activations come on top."""
    anchor = 4 if strategy_of(inputs.config.federated).client_terms().proximal_mu else 0
    beside = spec_of(inputs.config.task).device_bytes(inputs.teacher_bytes)
    return (
        4.0 * inputs.all_parameters
        + inputs.numel * (4 + anchor)
        + space.optimizer_bytes(inputs.config.client, inputs.layout)
        + beside
        + (inputs.ranks > 1) * min(BUCKET_BYTES, 4.0 * inputs.numel)
    )


def written(inputs: Inputs, number: int) -> int:
    """Return the bytes that round ``number`` writes: its checkpoint, if it has one, and the best
    model, taken to be better every time."""
    checkpoint, last = inputs.config.checkpoint, inputs.config.federated.num_rounds
    due = number == last or number % checkpoint.every == 0
    best = space.saved_model_bytes(inputs.config, inputs.all_parameters)
    return due * _checkpoint(inputs) + (checkpoint.keep_best and number > 1) * best


def checkpoint_disk(inputs: Inputs) -> int:
    """Return the bytes of the checkpoints that are kept, with the one that is being written."""
    return space.checkpoints_disk(inputs.config, inputs.layout, inputs.all_parameters)


def site_disk(inputs: Inputs, client: ClientAudio) -> float:
    """Return the bytes that a client's site keeps: labels, k-means' sample of MFCC, optimisers and
    left-over rounding, what of the model is not trained, a teacher and its outputs."""
    config = inputs.config
    disk = space.labels_disk(config, client.train_s + client.validation_s)
    if not config.targets.of_a_layer:  # a sample of layer features does not stay
        disk += space.sample_disk(config, client.train_s)
    disk += space.state_disk(config, inputs.layout) + inputs.frozen_bytes
    return disk + spec_of(config.task).site_bytes(inputs.teacher_bytes)


def _checkpoint(inputs: Inputs) -> int:
    """A round's checkpoint with what resuming needs."""
    return space.checkpoint_bytes(inputs.config, inputs.layout, inputs.all_parameters)
