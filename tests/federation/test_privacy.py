"""The mechanism of central differential privacy, round by round, under Flower's own ``start()``."""

import math
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

from fedhubert.compose import compose
from fedhubert.errors import CheckpointError, ConfigError, FederationError
from fedhubert.federation.privacy.accounting import Ledger
from fedhubert.federation.privacy.mechanism import CentralPrivacy
from fedhubert.federation.privacy.secret import FILE_NAME, Secret, create_secret, load_secret
from fedhubert.federation.rounds.journal import Journal
from fedhubert.federation.rounds.shared import StepNotFinite
from fedhubert.federation.strategies.strategy import check_strategy
from fedhubert.federation.updates.clipping import clipped, norm_in_double
from fedhubert.federation.updates.codecs import CodecName, decode, encode
from fedhubert.federation.updates.exact_sum import GRID_BITS, ExactSum, UpdateRejected
from fedhubert.federation.wire import protocol
from fedhubert.federation.wire.messages.message import Failure
from tests.flower import noise_std, said_by

from .conftest import NUMEL, Played, reply
from .test_rounds import failing

FOUR = [
    *(
        "privacy=central",
        "federated.num_clients=4",
        "federated.client_fraction=1",
        "federated.strategy=FedAvg",
    ),
    *("privacy.clip_norm=2", "client.local_steps=8"),
]
SILENT = "privacy.noise_multiplier=0"
CLIP = 2.0


def private_reply(node: int, update: Any = None, **changes: Any) -> Message:
    return reply(node, update, **{"weight": 1, "update_unclipped": 1, **changes})


def answering(updates: dict[int, Any], **changes: Any) -> Any:
    """Node 100 + p sends ``updates[p]``; None: it fails."""

    def answer(node: int, task: dict[str, Any]) -> Message:
        update = updates[node - 100]
        return (
            failing(node)
            if update is None
            else private_reply(node, update, round=task["round"], **changes)
        )

    return answer


def vectors(*lengths: float) -> dict[int, np.ndarray[Any, Any]]:
    draw = np.random.default_rng(5)
    directions = [draw.normal(size=NUMEL) for _ in lengths]
    return {
        n: (d / np.linalg.norm(d) * length).astype(np.float32)
        for n, (d, length) in enumerate(zip(directions, lengths, strict=True))
    }


def test_long_updates_are_scaled_to_the_norm_and_short_ones_left_as_they_are() -> None:
    updates = vectors(0.5, 1.9, 4.0, 300.0)
    expected = (
        sum(
            updates[n].astype(np.float64) * min(1.0, CLIP / np.linalg.norm(updates[n]))
            for n in range(4)
        )
        / 4
    )
    assert Played([*FOUR, SILENT], answering(updates)).run(1) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("length", [1e3, 1e30])
def test_a_client_that_does_not_clip_is_clipped_by_the_server_whatever_it_says(
    length: float,
) -> None:
    updates = vectors(1e-3, 1e-3, 1e-3, length)
    model = Played([*FOUR, SILENT], answering(updates, update_norm=0.1, update_unclipped=1)).run(1)
    assert np.linalg.norm(model.astype(np.float64)) <= (CLIP + 3e-3) / 4


@pytest.mark.parametrize(
    ("claimed", "code"), [({"weight": 7}, "update_weight"), ({"update_unclipped": 0.0}, None)]
)
def test_a_client_counts_once(claimed: dict[str, Any], code: str | None) -> None:
    def answer(node: int, task: dict[str, Any]) -> Message:
        return private_reply(
            node,
            np.ones(NUMEL, np.float32) / 4,
            round=task["round"],
            **(claimed if node == 103 else {}),
        )

    played = Played([*FOUR, SILENT], answer)
    assert played.run(1) == pytest.approx([(3 if code else 4) / 16] * NUMEL)
    assert [failure.code for failure in played.outcomes[0].failures] == ([code] if code else [])


def test_a_shard_whose_clients_are_not_clipped_is_refused() -> None:
    """One node hosts all four, and replies with a sum that is longer than four clipped updates can be."""

    def answer(node: int, task: dict[str, Any]) -> Message:
        total = ExactSum(NUMEL)
        total.add(torch.full((NUMEL,), length / math.sqrt(NUMEL)), 1)
        part = total.partial()
        request = Message(RecordDict(), node, "train.round")
        about = {
            "weight": 1,
            "train_micro_batches": 4,
            "train_steps": 4,
            "update_norm": length,
            "update_unclipped": 1,
        }
        about |= {
            "train_audio_s": 1.0,
            "train_cross_entropy_sum": 30.0,
            "train_masked_frames": 10,
            "train_correct": 1,
        }
        info = {"round": task["round"], "layout": played.federation.layout.fingerprint}
        metrics = {partition: dict(about) for partition in task["partitions"]}
        message = protocol.reply_of(
            request, metrics=metrics, arrays={"sum": part.total.numpy()}, info=info
        )
        return said_by(node, message)

    for length, fine in ((4 * CLIP * 0.99, True), (4 * CLIP * 1.01, False)):  # noqa: B007 (answer() takes it)
        played = Played([*FOUR, SILENT], answer)
        played.federation.hosts = {100: [0, 1, 2, 3]}
        played.grid.nodes = [100]
        model = played.run(1)
        codes = {failure.code for failure in played.outcomes[0].failures}
        assert (bool(model.any()), codes) == ((True, set()) if fine else (False, {"update_norm"}))


@pytest.mark.parametrize("codec", ["fp32", "bf16", "fp16", "int8"])
@pytest.mark.parametrize("clip_norm", [1e-3, 0.1, 7.0])
def test_what_one_client_adds_to_the_integer_sum_is_never_longer_than_the_norm(
    codec: CodecName, clip_norm: float
) -> None:
    """In exact arithmetic, after the codec's and the grid's rounding."""
    shapes, limit = [(50, 30), (1000,), (7, 3, 2)], (Fraction(clip_norm) * 2**GRID_BITS) ** 2
    numel, draw = 2542, torch.Generator().manual_seed(3)
    for scale in (clip_norm / math.sqrt(numel), 1.0, 1e4):
        update, _ = clipped(torch.randn(numel, generator=draw) * scale, clip_norm)
        sent = [decode(codec, encode(codec, update, shapes, seed), shapes) for seed in range(10)]
        if scale >= 1.0 and codec == "int8":
            assert (
                max(map(norm_in_double, sent)) > clip_norm
            )  # so it is not enough that clients clip
        for decoded in sent:
            total = ExactSum(numel)
            total.add(clipped(decoded, clip_norm)[0], 1)
            length = sum(int(value) ** 2 for value in total.partial().total)
            assert length <= limit and (scale < 1.0 or length > 0.99 * limit)


def test_a_value_that_is_not_finite_is_not_clipped_but_refused() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(UpdateRejected, match="not_finite"):
            clipped(torch.tensor([1.0, value]), 1.0)
    with pytest.raises(UpdateRejected, match="range"):  # its factor would lose digits in float32
        clipped(torch.full((4,), 3e38), 1.0)


@pytest.mark.parametrize("broken", [None, np.full(NUMEL, np.nan, np.float32)])
def test_who_fails_adds_nothing_and_the_denominator_stays_and_nobody_is_asked_instead(
    broken: Any,
) -> None:
    updates = {**vectors(1.0, 1.0, 1.0, 1.0), 2: broken}
    played = Played(
        [*FOUR, SILENT, "federated.min_clients=4", "federated.round_retries=2"], answering(updates)
    )
    expected = sum(updates[n].astype(np.float64) for n in (0, 1, 3)) / 4
    assert played.run(1) == pytest.approx(expected, rel=1e-5)
    assert [failure.partition for failure in played.outcomes[0].failures] == [2] and len(
        played.grid.asked
    ) == 4


def test_who_is_not_connected_adds_nothing_either() -> None:
    played = Played([*FOUR, SILENT], answering(vectors(1.0, 1.0, 1.0, 1.0)))
    played.grid.nodes.remove(101)
    updates = vectors(1.0, 1.0, 1.0, 1.0)
    assert played.run(1) == pytest.approx(sum(updates[n] for n in (0, 2, 3)) / 4, rel=1e-5)
    assert played.outcomes[0].failures == [Failure(1, "not_connected")]


def test_a_federation_that_has_broken_down_stops_before_it_is_noise_alone() -> None:
    played = Played([*FOUR, "federated.round_retries=1"], lambda node, task: failing(node))
    with pytest.raises(
        FederationError, match=r"round 2: no usable update in 2 rounds in a row.*data"
    ) as error:
        played.run(5)
    assert len(played.models) == 2 and not isinstance(error.value, StepNotFinite)


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


# Adaptive clipping


ADAPTIVE = ["privacy.target_quantile=0.75", "privacy.clip_learning_rate=0.5"]


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


# Replays


def test_a_replayed_round_is_the_same_release_and_costs_nothing(tmp_path: Path) -> None:
    updates = vectors(1.0, 2.0, 3.0, 4.0)
    first = Played([*FOUR, *ADAPTIVE], answering(updates), Journal(tmp_path))
    first.run(2)
    again = Played([*FOUR, *ADAPTIVE], answering(updates), Journal(tmp_path))
    assert np.array_equal(again.run(2), first.models[-1])
    assert [outcome.privacy for outcome in again.outcomes] == [
        outcome.privacy for outcome in first.outcomes
    ]
    assert first.outcomes[1].privacy["clip_norm"] != CLIP
    assert Journal(tmp_path).releases() == {1: 1, 2: 1}
    assert (tmp_path / "accepted.jsonl").read_text().count("\n") == 2


def test_a_replay_that_comes_out_differently_has_other_noise_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    updates = vectors(1.0, 1.0, 1.0, 1.0)
    first = Played(FOUR, answering(updates), Journal(tmp_path))
    first.run(1)
    without = answering({**updates, 2: None})
    again = Played([*FOUR, "federated.round_retries=0"], without, Journal(tmp_path))
    with caplog.at_level("WARNING", logger="fedhubert"):
        again.run(1)
    difference = first.models[-1] - again.models[-1]
    assert (
        np.linalg.norm(difference - updates[2] / 4) > 0.1
    )  # else the client's own update would lie open
    assert "come out differently" in caplog.text
    assert again.outcomes[0].privacy["epsilon"] > first.outcomes[0].privacy["epsilon"]
    budget = f"privacy.max_epsilon={again.outcomes[0].privacy['epsilon'] + 0.1}"
    with pytest.raises(FederationError, match=r"privacy\.max_epsilon"):
        Played(
            [*FOUR, budget, "federated.round_retries=0"],
            answering(vectors(1.0, 1.0, 1.0, 0.5)),
            Journal(tmp_path),
        ).run(1)


# The secret


def test_the_secret_is_only_its_owners_and_is_not_told(tmp_path: Path) -> None:
    secret = create_secret(tmp_path)
    file = tmp_path / FILE_NAME
    assert file.stat().st_mode & 0o777 == 0o600 and [path.name for path in tmp_path.iterdir()] == [
        FILE_NAME
    ]
    key = file.read_bytes()
    assert (
        len(key) == 32
        and key.hex() not in repr(secret) + str(vars(type(secret)))
        and secret.tag() not in key.hex()
    )
    assert load_secret(tmp_path).tag() == secret.tag()
    assert create_secret(tmp_path).tag() != secret.tag()


def test_the_secret_owes_nothing_to_the_runs_generators(tmp_path: Path) -> None:
    tags = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        tags.append(create_secret(folder).tag())
    assert tags[0] != tags[1]


def test_a_secret_that_is_lost_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"privacy\.key"):
        load_secret(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"privacy\.key is damaged"):
        load_secret(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ("federated.strategy=FedNova", "federated.strategy=FedNova"),
        ("federated.strategy=FedMedian", "federated.strategy=FedMedian"),
        ("federated.weight_by=frames", "federated.weight_by=uniform"),
        ("federated.over_commit=1.3", "federated.over_commit"),
        ("federated.max_norm_ratio=10", "federated.max_norm_ratio=0"),
        ("checkpoint.keep_best=true", "checkpoint.keep_best=false"),
        ("federated.early_stopping.patience=3", "federated.early_stopping"),
        ("federated.num_clients=200000 privacy.clip_norm=1000", "privacy.clip_norm"),
        ("privacy.delta=0.2", "privacy.delta"),
        ("privacy.delta=0", "privacy.delta"),
        ("privacy.clip_norm=0", "privacy.clip_norm"),
        ("privacy.noise_multiplier=-1", "privacy.noise_multiplier"),
        ("privacy.noise_multiplier=0 privacy.max_epsilon=3", "max_epsilon"),
        ("privacy.target_quantile=0.5 privacy.count_noise=0.5", "count_noise=0.5"),
        ("privacy.target_quantile=1", "privacy.target_quantile"),
        ("privacy.mechanism=local", "privacy.mechanism"),
    ],
)
def test_what_privacy_does_not_go_with_is_refused_by_name(overrides: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_strategy(compose(["privacy=central", *overrides.split()]))
    assert named in str(error.value)


def test_privacy_brings_what_it_needs_and_is_off_without_it() -> None:
    for experiment in ("demo", "speech_mini", "research_standard_pretraining"):
        chosen = [f"experiment={experiment}", "data.manifest=m", "federated.sampling=random"]
        config = compose(["privacy=central", *chosen])
        assert (
            config.federated.weight_by == "uniform"
            and config.federated.max_norm_ratio == 0
            and not config.checkpoint.keep_best
        )
        assert not compose([f"experiment={experiment}", "data.manifest=m"]).privacy.enabled
    loose = [
        "privacy.client_metrics=true",
        "checkpoint.keep_best=true",
        "federated.early_stopping.patience=2",
    ]
    assert compose(["privacy=central", *loose]).checkpoint.keep_best
