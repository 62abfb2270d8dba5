"""What becomes of an update before it leaves a client: each step by hand, and their order."""

from dataclasses import replace

import pytest
import torch

from fedhubert.compose import compose
from fedhubert.config import ClientJob
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.federation.updates.codecs import decode
from fedhubert.federation.updates.pipeline import (
    AddResidual,
    Clip,
    Encode,
    NormaliseBySteps,
    Outgoing,
    run_steps,
    steps_of,
)

SHAPES = ((2, 3), (4,))
NUMEL = 10


def job_of(*overrides: str) -> ClientJob:
    return client_job(compose(["experiment=demo_fedavg", *overrides]))


def kinds(job: ClientJob, clip_norm: float | None = None) -> list[type]:
    return [
        type(step) for step in steps_of(job, SHAPES, local_steps=2, clip_norm=clip_norm, seed=1)
    ]


def vector(seed: int) -> torch.Tensor:
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(seed))


def test_each_setting_brings_its_step_and_their_order_stays() -> None:
    assert kinds(job_of()) == [Encode]
    assert kinds(job_of("federated.strategy=FedNova")) == [NormaliseBySteps, Encode]
    everything = job_of("federated.strategy=FedNova", "federated.update_codec=int8")
    assert kinds(everything, clip_norm=1.0) == [NormaliseBySteps, AddResidual, Clip, Encode]


@pytest.mark.parametrize("clip_norm", [1e3, 0.5])
def test_all_steps_by_hand(clip_norm: float) -> None:
    """(update / steps + what was left over), clipped, is what is sent and what is left over
    together."""
    job = job_of(
        "federated.strategy=FedNova",
        "federated.update_codec=int8",
        "client.optimizer=sgd",
        "client.momentum=0.5",
    )
    steps = steps_of(job, SHAPES, local_steps=2, clip_norm=clip_norm, seed=1)
    sent = run_steps(Outgoing(vector(0), residual=vector(1)), steps)
    wanted = vector(0) / (2 + 0.5) + vector(
        1
    )  # the first gradient counts 1.5 times, the second once
    norm = float(wanted.norm())
    expected = wanted * min(1.0, clip_norm / norm)
    assert sent.residual is not None and sent.metrics == {
        "update_unclipped": int(norm <= clip_norm)
    }
    torch.testing.assert_close(sent.update + sent.residual, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(decode("int8", sent.arrays, SHAPES), sent.update)
    assert 0 < float(sent.residual.abs().max()) < float(expected.abs().max()) / 100


def test_without_a_lossy_codec_what_was_kept_stays_and_nothing_is_added() -> None:
    sent = run_steps(
        Outgoing(vector(0), residual=vector(1)),
        steps_of(job_of(), SHAPES, local_steps=2, clip_norm=None, seed=1),
    )
    assert (
        torch.equal(sent.update, vector(0))
        and sent.residual is not None
        and torch.equal(sent.residual, vector(1))
    )
    assert sent.metrics == {} and set(sent.arrays) == {"update"}


def test_a_step_of_ones_own_fits_in() -> None:
    def negate(sent: Outgoing) -> Outgoing:
        return replace(sent, update=-sent.update, metrics={"negated": 1})

    sent = run_steps(
        Outgoing(vector(0)),
        [negate, *steps_of(job_of(), SHAPES, local_steps=1, clip_norm=None, seed=1)],
    )
    assert torch.equal(sent.update, -vector(0)) and sent.metrics == {"negated": 1}
