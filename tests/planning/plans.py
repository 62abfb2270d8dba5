"""Plans of runs whose clients' audio is given by numbers."""

from typing import Any

from fedhubert.compose import compose
from fedhubert.planning.inputs import ClientAudio, Inputs, Rates
from fedhubert.planning.rounds import RunPlan, plan
from fedhubert.training.parameters import ParameterLayout
from tests.federation.conftest import app_identity  # noqa: F401


def audio(batch_s: float, scored_s: float = 0.0, num_batches: int = 10) -> ClientAudio:
    return ClientAudio(
        num_batches * batch_s,
        0.0,
        scored_s,
        2 * scored_s,
        num_batches,
        lambda positions: batch_s * len(positions),
    )


def planned(
    clients: list[ClientAudio], overrides: list[str], **rates: Any
) -> tuple[Inputs, RunPlan]:
    """RunPlan for a model of 1e6 parameters, whose labels are there already."""
    base = [
        "experiment=demo_fedavg",
        "targets=precomputed",
        "targets.labels=x.km",
        "checkpoint.keep_best=false",
        "client.local_steps=10",
        "federated.client_cosines=false",
    ]
    config = compose(
        [*base, f"federated.num_clients={len(clients)}", "federated.num_rounds=2", *overrides]
    )
    inputs = Inputs(
        config,
        ParameterLayout(("weight",), ((1000, 1000),)),
        1_000_000,
        tuple(clients),
        Rates(**rates),
    )
    return inputs, plan(inputs)
