"""Cohorts and noise: drawn from the secret alone, and of the size that was paid for."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

from fedhubert.compose import compose
from fedhubert.federation.privacy.accounting import Ledger
from fedhubert.federation.privacy.mechanism import CentralPrivacy
from fedhubert.federation.privacy.secret import Secret
from fedhubert.federation.updates.exact_sum import ExactSum
from tests.federation.private import ADAPTIVE, CLIP, FOUR, SILENT, answering, private_reply, vectors
from tests.flower import noise_std

from .conftest import NUMEL, Played


def test_flowers_fixed_clipping_gives_the_same_mean_and_has_the_same_noise() -> None:
    """FedAvg with equal weights, everybody in the round; Flower clips and averages whole weights."""
    start, updates = np.arange(NUMEL, dtype=np.float32) / 8, vectors(0.7, 1.99, 2.01, 50.0)
    ours = Played([*FOUR, SILENT], answering(updates))
    ours.models = [start]
    flower = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, CLIP, 4)
    flower.current_arrays = ArrayRecord({"model": Array(start)})
    replies = []
    for number in range(4):
        content = RecordDict({"metrics": MetricRecord({"num-examples": 1})})
        content["arrays"] = ArrayRecord({"model": Array(start + updates[number])})
        replies.append(Message(content, reply_to=Message(RecordDict(), 1, "train")))
    theirs, _ = flower.aggregate_train(1, replies)
    assert theirs is not None
    np.testing.assert_allclose(ours.run(1), theirs["model"].numpy(), rtol=1e-5, atol=1e-6)
    config = compose([*FOUR, "privacy.noise_multiplier=1.7"])
    privacy = CentralPrivacy(config, Secret(bytes(32)), Ledger(1.0, 1.7))
    assert privacy.noise_std / 4 == pytest.approx(noise_std(1.7, CLIP, 4), rel=1e-12)


def test_cohorts_are_drawn_client_by_client_from_the_secret_and_not_from_the_seed() -> None:
    settings = ["privacy=central", "federated.num_clients=10", "federated.client_fraction=0.3"]

    def cohorts(secret: bytes, *overrides: str) -> np.ndarray[Any, Any]:
        privacy = CentralPrivacy(compose([*settings, *overrides]), Secret(secret), Ledger(0.3, 1.0))
        drawn = np.zeros((4000, 10), bool)
        for number in range(4000):
            drawn[number, privacy.cohort(number)] = True
        return drawn

    drawn = cohorts(bytes(32))
    assert np.array_equal(drawn, cohorts(bytes(32), "seed=7"))
    other = cohorts(bytes(31) + b"1")
    assert np.mean(drawn == other) == pytest.approx(
        0.3**2 + 0.7**2, abs=0.01
    )  # as two that know nothing of each other
    assert drawn.mean(axis=0) == pytest.approx([0.3] * 10, abs=0.03)
    sizes = drawn.sum(axis=1)
    assert sizes.var() == pytest.approx(
        10 * 0.3 * 0.7, rel=0.1
    )  # binomial: a fixed size would have none
    together = np.corrcoef(drawn.T) - np.eye(10)
    assert np.abs(together).max() < 0.06


def test_an_empty_cohort_is_a_round_of_noise() -> None:
    played = Played([*FOUR, "federated.client_fraction=1e-9"], answering(vectors(1, 1, 1, 1)))
    model = played.run(1)
    assert played.grid.asked == [] and played.outcomes[0].clients == {} and model.all()


def noise_of(played: Played, rounds: int) -> np.ndarray[Any, Any]:
    model = played.run(rounds)
    assert model.dtype == np.float32
    return np.diff(np.array(played.models, np.float64), axis=0)


def test_noise_differs_by_round_by_secret_and_by_what_it_is_added_to_and_by_nothing_else() -> None:
    zeros, ones = {n: np.zeros(NUMEL, np.float32) for n in range(4)}, vectors(1.0, 1.0, 1.0, 1.0)
    first = noise_of(Played(FOUR, answering(zeros)), 2)
    assert not np.intersect1d(first[0], first[1]).size
    assert np.array_equal(first, noise_of(Played([*FOUR, "seed=3"], answering(zeros)), 2))
    other = noise_of(Played(FOUR, answering(zeros), secret=b"1" * 32), 2)
    assert np.abs(first - other).min() > 1e-6
    added = noise_of(Played(FOUR, answering(ones)), 1)[0] - sum(ones.values()) / 4
    assert (
        np.abs(added - first[0]).min() > 1e-6
    )  # one noise on two sums would tell their difference


def test_the_secrets_normal_numbers_are_normal() -> None:
    from scipy import stats

    draws = np.concatenate(
        [Secret(bytes(32)).derive("x", n).stream().normal(50_001) for n in range(8)]
    )
    assert stats.kstest(draws, "norm").pvalue > 0.01
    assert stats.kurtosis(draws) == pytest.approx(0.0, abs=0.03) and abs(draws).max() > 4.0
    halves = draws[: len(draws) // 2], draws[len(draws) // 2 :]
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(halves[0][:200_000], halves[1][:200_000])[0, 1]) < 0.01


def test_noise_on_the_exact_sum_has_its_standard_deviation_and_lies_on_the_grid() -> None:
    total = ExactSum(200_000)
    total.add(torch.full((200_000,), 0.25), 1)
    stream = Secret(bytes(32)).stream()
    total.add_noise(3.0, stream.normal)
    mean = total.mean(2.0).double()
    assert float(mean.std()) == pytest.approx(1.5, rel=0.01) and float(
        mean.mean()
    ) == pytest.approx(0.125, abs=0.01)
    assert total.partial().total.dtype == torch.int64


def test_the_norm_follows_the_noised_share_of_updates_that_it_leaves_as_they_are() -> None:
    """Andrew et al. 2021, algorithm 1: C exp(-eta (b - gamma)), where b counts from the middle, so that who is absent is neither."""
    tiny = "privacy.count_noise=1e-9"
    for unclipped, share in (((1, 1, 1, 1), 1.0), ((0, 0, 0, 1), 0.25)):

        def answer(node: int, task: dict[str, Any], bits: tuple[int, ...] = unclipped) -> Message:
            return private_reply(
                node,
                np.zeros(NUMEL, np.float32),
                round=task["round"],
                update_unclipped=bits[node - 100],
            )

        played = Played([*FOUR, SILENT, *ADAPTIVE, tiny], answer)
        played.run(2)
        expected = [CLIP * math.exp(-0.5 * (share - 0.75)) ** number for number in range(2)]
        assert [task["clip_norm"] for task in played.grid.tasks[::4]] == pytest.approx(
            expected, rel=1e-6
        )
    failed = Played(
        [*FOUR, SILENT, *ADAPTIVE, tiny],
        answering({0: None, 1: None, 2: None, 3: np.zeros(NUMEL, np.float32)}),
    )
    failed.run(2)
    assert failed.grid.tasks[4]["clip_norm"] == pytest.approx(
        CLIP * math.exp(-0.5 * (0.5 + 0.5 / 4 - 0.75))
    )


def test_the_counts_noise_is_paid_for_by_more_noise_on_the_updates() -> None:
    """The pair (sum / (z_delta C), bits / sigma_b) moves by at most 1 / z: the two together are one Gaussian at the noise multiplier."""
    config = compose([*FOUR, *ADAPTIVE, "privacy.noise_multiplier=0.8", "privacy.count_noise=0.6"])
    privacy = CentralPrivacy(config, Secret(bytes(32)), Ledger(1.0, 0.8))
    assert (CLIP / privacy.noise_std) ** 2 + (0.5 / 0.6) ** 2 == pytest.approx(
        (1 / 0.8) ** 2, rel=1e-12
    )
    noised = [privacy._next_clip_norm(Secret(bytes([n] * 32)), 0.0) for n in range(250)]
    shares = np.array([0.75 - math.log(norm / CLIP) / 0.5 for norm in noised])
    assert shares.std() == pytest.approx(0.6 / 4, rel=0.15) and shares.mean() == pytest.approx(
        0.5, abs=0.04
    )
