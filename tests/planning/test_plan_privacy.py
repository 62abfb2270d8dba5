"""The planner on runs with differential privacy."""

from dataclasses import asdict

import pytest

from fedhubert.commands.plan import report
from fedhubert.federation.privacy.accounting import epsilon_of
from fedhubert.planning.privacy import NOISE_S, PrivacyPlan, privacy_of
from tests.planning.plans import audio, planned


@pytest.mark.parametrize("mechanism", ["central", "distributed"])
def test_what_privacy_spends_and_adds_is_planned(mechanism: str) -> None:
    """Five clients, of whom four have to be honest; epsilon as the run's own accountant has it."""
    settings = ["federated.client_fraction=1", "federated.num_rounds=20", "privacy.clip_norm=0.5"]
    settings += ["privacy.noise_multiplier=4", "federated.num_clients=5", "secure=pairwise"]
    rates = {"audio_s_per_s": 1.0, "up_mbit_s": 80.0}
    inputs, plain = planned([audio(4.0)] * 5, settings, **rates)
    assert privacy_of(inputs.config) is None
    inputs, found = planned([audio(4.0)] * 5, [*settings, f"privacy={mechanism}"], **rates)
    told = privacy_of(inputs.config)
    assert told == PrivacyPlan(
        mechanism,
        epsilon_of(((1.0, 4.0, 20),), 1e-5),
        1e-5,
        4.0 * 0.5 / 5,
        4 if mechanism == "distributed" else None,
    )
    drawn = found.rounds[0].seconds - plain.rounds[0].seconds
    assert drawn == pytest.approx(NOISE_S * inputs.numel)
    assert (found.server_s > plain.server_s) == (mechanism == "central")
    assert report(inputs, found, {})["privacy"] == asdict(told)
