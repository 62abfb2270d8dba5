"""The planner's times, worked out by hand."""

from dataclasses import replace

import pytest

from fedhubert.planning import sizes
from fedhubert.planning.rounds import plan
from fedhubert.training.parameters import ParameterLayout
from tests.federation.conftest import app_identity  # noqa: F401

from .plans import audio, planned


def test_rounds_that_are_not_scored_take_no_time_for_it() -> None:
    clients, rates = [audio(4.0, 8.0)], {"audio_s_per_s": 2.0, "score_audio_s_per_s": 8.0}
    _, found = planned(clients, ["client.validation_every=2"], **rates)
    assert [part.clients_s for part in found.rounds] == pytest.approx([21.0, 20.0])


def test_a_round_of_real_sites_lasts_as_long_as_its_slowest() -> None:
    """Two sites: 10 steps of 4 s at 2 s/s, 8 s scored at 8 s/s, 4 MB up at 1 MB/s and down at 2 MB/s, each MB in 0.25 s at the
    site and, while that goes on, in 0.625 s in the SuperLink; the other half of all but the line.

    The end scores twice as much.
    """
    times = {
        "audio_s_per_s": 2.0,
        "score_audio_s_per_s": 8.0,
        "up_mbit_s": 8.0,
        "down_mbit_s": 16.0,
    }
    server = {"round_overhead_s": 3.0, "fold_ns": 1000.0, "step_ns": 250.0, "disk_mb_s": 4.0}
    server |= {"client_ms": 125.0, "message_ns": 250.0, "superlink_ns": 625.0}
    _, found = planned(
        [audio(4.0, 8.0), audio(2.0, 4.0)], ["checkpoint.every=2"], **times, **server
    )
    slowest = 20.0 + 1.0 + 4.0 + 2.0 + 2.0
    server_s = 2.5 + 2.0
    assert [part.clients_s for part in found.rounds] == pytest.approx([slowest, slowest])
    assert [part.seconds for part in found.rounds] == pytest.approx(
        [slowest + server_s + 3.0, slowest + server_s + 3.0 + 1.0]
    )
    assert found.server_s == pytest.approx(2 * server_s + 1.0)
    assert [share.device_s for share in found.shares] == pytest.approx(
        [2 * 21.0 + 2.0, 2 * 10.5 + 1.0]
    )  # and the final scores
    assert found.final_s == pytest.approx(2.0 + 2.0 + 1.0 + 3.0) and found.labels_s == 0.0
    assert found.seconds == pytest.approx(2 * (slowest + server_s + 3.0) + 1.0 + 8.0)
    assert [part.bytes_up for part in found.rounds] == [8_000_000, 8_000_000]


def test_a_simulation_shares_its_workers() -> None:
    """Five clients of 10 s on two workers: three turns, not two and a half. With a worker each, one."""
    for workers, seconds in ((2, 30.0), (5, 10.0)):
        _, found = planned(
            [audio(1.0)] * 5, [f"simulation.num_workers={workers}"], audio_s_per_s=1.0
        )
        assert [part.clients_s for part in found.rounds] == pytest.approx([seconds, seconds])
        assert sum(share.device_s for share in found.shares) == pytest.approx(100.0)


def test_who_is_asked_in_excess_is_not_waited_for_but_works_all_the_same() -> None:
    clients = [audio(1.0), audio(2.0), audio(50.0)]
    _, found = planned(
        clients,
        ["federated.client_fraction=0.5", "federated.over_commit=1.5"],
        audio_s_per_s=1.0,
        up_mbit_s=1e9,
        message_ns=0.0,
    )
    assert [part.clients_s for part in found.rounds] == pytest.approx([20.0, 20.0], rel=1e-3)
    assert [share.rounds for share in found.shares] == [2, 2, 0] and found.shares[2].steps == 0
    assert found.shares[2].device_s == pytest.approx(1000.0) and found.shares[2].bytes_up == 0
    assert found.rounds[0].bytes_down == 3 * 4_000_000 and found.rounds[0].bytes_up == 2 * 4_000_000


def test_clients_stop_at_their_time_limit_and_late_ones_are_named() -> None:
    _, found = planned([audio(1.0), audio(4.0)], ["client.max_seconds=12"], audio_s_per_s=1.0)
    assert [share.steps for share in found.shares] == [20, 6] and not found.warnings
    _, found = planned(
        [audio(1.0), audio(4.0)], ["federated.round_timeout_s=15"], audio_s_per_s=1.0, up_mbit_s=1e9
    )
    (warning,) = found.warnings
    assert (
        "1 clients would be too late, first client 1 in round 1" in warning
        and "federated.round_timeout_s=15" in warning
    )


def test_muon_costs_the_server_time_and_memory_and_is_warned_of() -> None:
    """Newton-Schulz by hand: five iterations on a [1000, 1000] matrix are 5 * 6e9 operations."""
    name = ParameterLayout(("wav2vec2.encoder.weight", "bias"), ((1000, 1000), (1000,)))
    found = {}
    for strategy in ("FedAvg", "FedMuon"):
        inputs, _ = planned([audio(1.0)], [f"federated.strategy={strategy}"], audio_s_per_s=1.0)
        inputs = replace(inputs, layout=name)
        found[strategy] = (inputs, plan(inputs))
    (average, plain), (muon, stepped) = found["FedAvg"], found["FedMuon"]
    written = (sizes.written(muon, 2) - sizes.written(average, 2)) * 1e-6 / muon.rates.disk_mb_s
    assert stepped.server_s - plain.server_s == pytest.approx(2 * 30.0 / 50.0 + written)
    kept = 4 * (1_000_000 + 2 * 1000 + 1)
    assert sizes.server_memory(muon) - sizes.server_memory(average) == kept
    assert "client.local_steps=1" in stepped.warnings[0] and not plain.warnings
    client = muon.config.client.model_copy(update={"optimizer": "muon", "optimizer_policy": "keep"})
    local = replace(muon, config=muon.config.model_copy(update={"client": client}))
    adamw = client.model_copy(update={"optimizer": "adamw"})
    usual = replace(muon, config=muon.config.model_copy(update={"client": adamw}))
    assert sizes.client_memory(usual) - sizes.client_memory(local) == 4_000_000


def test_secure_sums_cost_masks_and_a_message_more() -> None:
    clients = [audio(4.0) for _ in range(5)]
    rates = {"audio_s_per_s": 1.0, "up_mbit_s": 80.0, "round_overhead_s": 3.0}
    _, plain = planned(clients, ["federated.client_fraction=1"], **rates)
    inputs, secure = planned(clients, ["federated.client_fraction=1", "secure=pairwise"], **rates)
    assert secure.rounds[0].bytes_up > 2 * plain.rounds[0].bytes_up
    assert secure.rounds[0].bytes_down == plain.rounds[0].bytes_down + 5 * 5 * 128
    # 4 bytes a parameter more on the line, five masks, the second message
    longer = 4 * inputs.numel * 8 / 80e6 + 3.0
    assert secure.rounds[0].seconds - plain.rounds[0].seconds == pytest.approx(longer, rel=0.1)
