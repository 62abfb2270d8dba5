"""The mechanism of central differential privacy, round by round, under Flower's own ``start()``."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict

from fedhubert.errors import FederationError
from fedhubert.federation.rounds.shared import StepNotFinite
from fedhubert.federation.updates.clipping import clipped, norm_in_double
from fedhubert.federation.updates.codecs import CodecName, decode, encode
from fedhubert.federation.updates.exact_sum import GRID_BITS, ExactSum, UpdateRejected
from fedhubert.federation.wire import protocol
from fedhubert.federation.wire.messages.message import Failure
from tests.federation.private import CLIP, FOUR, SILENT, answering, private_reply, vectors
from tests.flower import said_by

from .conftest import NUMEL, Played
from .test_rounds import failing


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
